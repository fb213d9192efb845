"""What it learned: evaluators, baselines, generation and pictures of attention."""

import model  # which tells jax of this machine: see model/platforms.py
