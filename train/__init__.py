"""How it learns: state, step, loop, sharding, optimizers, checkpoints and data."""

import model  # which tells jax of this machine: see model/platforms.py
