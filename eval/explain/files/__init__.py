"""Files that explanations are written to, and that their inputs are read from."""
