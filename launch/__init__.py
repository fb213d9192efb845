"""Where it runs: one file per verb."""
