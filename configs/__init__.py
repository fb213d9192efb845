"""What to run: each file is a difference from `base.py`, with the story of its runs."""
