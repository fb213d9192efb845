"""What may stand around an attention core, as values: each edit is a small module with two hooks."""
