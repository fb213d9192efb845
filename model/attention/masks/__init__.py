"""Masks: which keys a query may look at, as values."""
