"""Where it runs: one file per command."""

import model  # which tells jax of this machine: see model/platforms.py
