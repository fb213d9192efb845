"""The kinds of models that a config can name."""
