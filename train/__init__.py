"""How it learns: state, step, loop, sharding, optimizers, checkpoints and data."""
