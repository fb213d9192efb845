"""Biases: what is added to scores by where query and key stand, as values."""
