"""Positions that are added to the embeddings, once for all layers, and none."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from model import sums
from model.axes import pin
from model.bounds import rows_of
from model.errors import Range, UserError, check_range
from model.parameters import parameter
from model.positions.base import NoPosition, PositionMaker, angles_of, frequencies_of


class Sinusoidal(NoPosition):
    """Adds sin and cos of position / 10000^(2i / D) to the embeddings (Vaswani et al. 2017, section 3.5)."""

    at_embedding = True

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        if width % 2:
            raise UserError(f"sinusoidal positions need an even width, not --config.model.width={width}.")
        self.half = width // 2

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The embeddings plus the table, sines in the first half of D, cosines in the second."""
        angles = angles_of(positions_BT, frequencies_of(self.half, 10000.0))
        table_BTD = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return x_BTD + table_BTD.astype(x_BTD.dtype)


class Learned(NoPosition):
    """Adds row `position + offset` of a learned table (max_length + offset, D) to the embeddings.

    The first `offset` rows belong to no position: OPT and RoBERTa have 2 of them.
    """

    limited = at_embedding = True

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs, offset: int = 0):
        sizes, axes = (max_length + offset, width), ("position", "embed")
        self.table, self.offset = parameter(rngs, nnx.initializers.normal(1 / math.sqrt(width)), sizes, axes), offset

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The embeddings plus the learned rows; NaN at a position below 0 or from max_length on."""
        table_TD = sums.cast(self.table[...], x_BTD.dtype, lambda table: pin(table, None, None))[self.offset :]
        return x_BTD + rows_of(table_TD, positions_BT).astype(x_BTD.dtype)


def none() -> PositionMaker:
    """Nothing."""
    return NoPosition


def sinusoidal() -> PositionMaker:
    """Fixed sines and cosines."""
    return Sinusoidal


def learned(offset: int = 0) -> PositionMaker:
    """A learned vector for each place, that of place p in row p + offset."""
    check_range("config.model.position: offset", offset, Range(0, 2**16))
    return functools.partial(Learned, offset=offset)
