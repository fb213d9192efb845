"""How a model learns where a token is: added to the embeddings, or turned into the queries and keys."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.axes import parameter, pin
from model.errors import UserError


class Rotation(NamedTuple):
    """Cosines and sines of each position's angles, both (B, T, 1, K / 2)."""

    cos: jax.Array
    sin: jax.Array


class NoPosition(nnx.Module):
    """No position at all (NoPE); also what the other kinds inherit from."""

    limited = False  # whether positions >= max_length have no meaning

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        pass

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What the first block gets, from the embeddings."""
        return x_BTD

    def rotation(self, positions_BT: jax.Array) -> Rotation | None:
        """What queries and keys are rotated by, in each layer."""
        return None


class Sinusoidal(NoPosition):
    """Adds sin and cos of position / 10000^(2i / D) to the embeddings (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        if width % 2:
            raise UserError(f"sinusoidal positions need an even width, not --config.model.width={width}.")
        self.half = width // 2

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The embeddings plus the table, sines in the first half of D, cosines in the second."""
        angles = positions_BT[..., None] * _frequencies(self.half)
        table_BTD = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return x_BTD + table_BTD.astype(x_BTD.dtype)


class Learned(NoPosition):
    """Adds row `position` of a learned table (max_length, D) to the embeddings."""

    limited = True

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        self.table = parameter(
            rngs, nnx.initializers.normal(1 / math.sqrt(width)), (max_length, width), ("position", "embed")
        )

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The embeddings plus the learned rows."""
        table_TD = pin(self.table[...].astype(x_BTD.dtype), None, None)
        return x_BTD + jnp.take(table_TD, positions_BT, axis=0, mode="clip")


class Rotary(NoPosition):
    """Rotates pairs (i, i + K/2) of q and k by position / 10000^(2i / K) (Su et al. 2021, equation 34)."""

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        if head_width % 2:
            raise UserError(
                f"rotary positions need an even head width, not {head_width}: --config.model.width / "
                "--config.model.num_heads."
            )
        self.half = head_width // 2

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """The angles of each position, computed once for all layers."""
        angles = (positions_BT[..., None] * _frequencies(self.half))[:, :, None]
        return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x_BTHK: jax.Array, rotation: Rotation | None) -> jax.Array:
    """Queries or keys turned by their positions' angles, in float32."""
    if rotation is None:
        return x_BTHK
    left, right = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1).astype(x_BTHK.dtype)


def _frequencies(half: int) -> np.ndarray:
    return (10000.0 ** -(np.arange(half) / half)).astype(np.float32)[None, None]


POSITIONS: dict[str, type[NoPosition]] = {
    "rope": Rotary,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "none": NoPosition,
}
