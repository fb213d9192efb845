"""The files of a run: their names, what is written and read of them, what is damaged, and what they mean."""
