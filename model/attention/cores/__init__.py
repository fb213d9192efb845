"""Cores: what computes attention, each in a file, and the table of them."""
