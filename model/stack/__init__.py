"""L blocks: how they are stored, how they run, and what they keep while they decode."""
