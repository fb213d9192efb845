"""The contract of a position: what is added to embeddings, and what queries and keys are turned by."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
from flax import nnx

from model.parameters import Module

Pairs = Literal["halves", "interleaved"]
"""Which columns of the first R turn together: i and i + R/2, or 2i and 2i + 1."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotation:
    """Cosines and sines of each position's angles, both (B, T, 1, R / 2), for the first R columns of a head."""

    cos: jax.Array
    sin: jax.Array
    pairs: Pairs = dataclasses.field(default="halves", metadata={"static": True})


class NoPosition(Module):
    """No position at all (NoPE); also what the other kinds inherit from."""

    limited = False  # whether positions >= max_length have no meaning
    at_embedding = False  # whether it acts there, once for all layers

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        pass

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What the first block gets, from the embeddings."""
        return x_BTD

    def rotation(self, positions_BT: jax.Array) -> Rotation | None:
        """What queries and keys are rotated by, in each layer."""
        return None


PositionMaker = Callable[[int, int, int, nnx.Rngs], NoPosition]
"""From (width, head_width, max_length, rngs)."""


def frequencies_of(half: int, base: float) -> np.ndarray:
    """Radians per place of each pair of 2 x half columns, base^(-i / half)."""
    return base ** -(np.arange(half) / half)


def angles_of(positions_BT: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """The angles of each position, (B, T, R / 2)."""
    return positions_BT[..., None] * frequencies.astype(np.float32)[None, None]
