"""What it learned: evaluators, baselines, generation and pictures of attention."""
