"""The contract of a task: a loss gives sums and counts, which add over micro-batches, devices and hosts."""

from collections.abc import Callable

import jax

from train.state import Params

Batch = dict[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
Loss = Callable[[Params, Batch, jax.Array | None], Sums]
