"""What is asked: a plan of an ablation in each file, loaded by path."""
