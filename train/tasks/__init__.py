"""What is learned: a task turns a model and a batch into sums and counts."""
