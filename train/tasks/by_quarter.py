"""Sums of a batch by how much of its document each target sees: what tells a loss by position."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from train.state import Params
from train.tasks.base import Batch

QUARTERS = 4
Pair = tuple[jax.Array, jax.Array]


def quarter(positions_BT: Any, length: int) -> Any:
    """In which quarter of a window of `length` tokens a position lies, 0 to 3: p in quarter 4p // T; NumPy or jax.

    A position counts from the start of the document, or of the window where that began before: the target there sees
    p + 1 tokens. What lies beyond the window is in the last quarter.
    """
    return (positions_BT * QUARTERS // length).clip(max=QUARTERS - 1)


def by_quarter(sums: Callable[[Params, Batch], Pair]) -> Callable[[Params, Batch], Pair]:
    """The same sums, which must be linear in the batch's weights, with an axis of quarters: (4,) each.

    The model runs once, since only the weights differ.
    """

    def split(params: Params, batch: Batch) -> Pair:
        own_1BT = quarter(batch["positions"], batch["positions"].shape[-1])[None]
        weights_QBT = jnp.where(own_1BT == jnp.arange(QUARTERS)[:, None, None], batch["weights"][None], 0.0)
        return jax.vmap(lambda weights_BT: sums(params, {**batch, "weights": weights_BT}))(weights_QBT)

    return split
