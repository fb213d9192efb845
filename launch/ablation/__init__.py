"""Ablations that end in a verdict: what is declared, what it costs, what runs, and what was looked at."""
