"""How a model learns where a token is: added to the embeddings, or turned into the queries and keys."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.axes import pin
from model.bounds import rows_of
from model.cycles import Cycle
from model.errors import UserError
from model.expressions import Table, parse
from model.parameters import Module, parameter


class Rotation(NamedTuple):
    """Cosines and sines of each position's angles, both (B, T, 1, R / 2), for the first R columns of a head."""

    cos: jax.Array
    sin: jax.Array


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


class Sinusoidal(NoPosition):
    """Adds sin and cos of position / 10000^(2i / D) to the embeddings (Vaswani et al. 2017, section 3.5)."""

    at_embedding = True

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        if width % 2:
            raise UserError(f"sinusoidal positions need an even width, not --config.model.width={width}.")
        self.half = width // 2

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The embeddings plus the table, sines in the first half of D, cosines in the second."""
        angles = _angles(positions_BT, _frequencies(self.half, 10000.0))
        table_BTD = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return x_BTD + table_BTD.astype(x_BTD.dtype)


class Learned(NoPosition):
    """Adds row `position` of a learned table (max_length, D) to the embeddings."""

    limited = at_embedding = True

    def __init__(self, width: int, head_width: int, max_length: int, rngs: nnx.Rngs):
        self.table = parameter(
            rngs, nnx.initializers.normal(1 / math.sqrt(width)), (max_length, width), ("position", "embed")
        )

    def add(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """The embeddings plus the learned rows; NaN at a position outside of the table."""
        table_TD = pin(self.table[...].astype(x_BTD.dtype), None, None)
        return x_BTD + rows_of(table_TD, positions_BT)


class Rotary(NoPosition):
    """Rotates pairs (i, i + R/2) of the first R columns of q and k by position x frequency i (Su et al. 2021, equation
    34).

    `frequencies` are R/2 numbers of radians per place; `gain` multiplies what is turned.
    """

    def __init__(self, frequencies: np.ndarray, gain: float = 1.0):
        self.frequencies, self.gain = tuple(frequencies.tolist()), gain

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """The angles of each position, computed once for all layers."""
        angles = _angles(positions_BT, np.array(self.frequencies))[:, :, None]
        return Rotation(self.gain * jnp.cos(angles), self.gain * jnp.sin(angles))


def rotate(x_BTHK: jax.Array, rotation: Rotation | None) -> jax.Array:
    """Queries or keys turned by their positions' angles, in float32."""
    if rotation is None:
        return x_BTHK
    cos, sin = rotation
    half = cos.shape[-1]
    left, right, rest = jnp.split(x_BTHK, (half, 2 * half), axis=-1)
    left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    turned = jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1).astype(x_BTHK.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


PositionMaker = Callable[[int, int, int, nnx.Rngs], NoPosition]
"""From (width, head_width, max_length, rngs)."""


def none() -> PositionMaker:
    """Nothing."""
    return NoPosition


def sinusoidal() -> PositionMaker:
    """Fixed sines and cosines."""
    return Sinusoidal


def learned() -> PositionMaker:
    """A learned vector for each place."""
    return Learned


def rope(fraction: float = 1.0, base: float = 10000.0) -> PositionMaker:
    """Frequencies base^(-2i / R), where R is the first `fraction` of the K columns of a head."""
    return _rotary(fraction, base)


def rope_linear(factor: float, fraction: float = 1.0, base: float = 10000.0) -> PositionMaker:
    """Position interpolation: all frequencies / factor (Chen et al. 2023, section 2.3)."""
    _check_factor(factor)
    return _rotary(fraction, base, lambda frequencies: frequencies / factor)


def rope_ntk(factor: float, fraction: float = 1.0, base: float = 10000.0) -> PositionMaker:
    """The base x factor^(R / (R - 2)): the highest frequency is kept, the lowest divided by factor (Peng et al. 2023,
    definition 1).
    """
    _check_factor(factor)
    return _rotary(fraction, base, lambda frequencies: frequencies * factor ** -np.linspace(0, 1, len(frequencies)))


def rope_yarn(
    factor: float,
    length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    fraction: float = 1.0,
    base: float = 10000.0,
) -> PositionMaker:
    """YaRN, from training at `length`: frequencies are kept for the first pairs, / factor for the last, and mixed
    linearly in the number of the pair between those that turn `beta_fast` and `beta_slow` times; what is turned is
    multiplied by `attention_factor`, 0.1 ln(factor) + 1 where it is not given (Peng et al. 2023, equation 22).

    The ramp is that of the authors' program and of transformers, so of the checkpoints that exist; the paper's
    (definition 2) is linear in turns.
    """
    _check_factor(factor)
    _check_length(length)
    if not 0 < beta_slow < beta_fast < math.inf:
        raise UserError(
            f"--config.model.position: beta_fast={beta_fast} and beta_slow={beta_slow} must be above 0, the first one "
            "larger."
        )
    gain = 0.1 * math.log(factor) + 1 if attention_factor is None else attention_factor
    if not 0 < gain < math.inf:
        raise UserError(f"--config.model.position: attention_factor={gain} must be above 0.")

    def pair(turns: float, columns: int) -> float:
        """The number of the pair that turns so many times within `length`."""
        return columns * math.log(length / (2 * math.pi * turns)) / (2 * math.log(base))

    def change(frequencies: np.ndarray) -> np.ndarray:
        columns = 2 * len(frequencies)
        low = max(math.floor(pair(beta_fast, columns)), 0)
        high = min(math.ceil(pair(beta_slow, columns)), columns - 1)
        ramp = (np.arange(len(frequencies)) - low) / (high - low or 0.001)
        divided = np.clip(ramp, 0, 1)
        return (1 - divided) * frequencies + divided * frequencies / factor

    return _rotary(fraction, base, change, gain)


def rope_llama3(
    factor: float,
    low: float = 1.0,
    high: float = 4.0,
    length: int = 8192,
    fraction: float = 1.0,
    base: float = 500000.0,
) -> PositionMaker:
    """`by_parts` with the base and the bounds of Llama 3.1, from training at `length` (Grattafiori et al. 2024)."""
    return _rotary(fraction, base, by_parts(factor, length, low, high))


Change = Callable[[np.ndarray], np.ndarray]


def by_parts(factor: float, length: int, low: float, high: float) -> Change:
    """Frequencies / factor for pairs that turn less than `low` times within `length`, kept for those that turn more
    than `high` times, in between mixed linearly (Peng et al. 2023, definition 2).

    Raises:
        UserError: factor < 1, length < 1, or bounds in the wrong order.
    """
    _check_factor(factor)
    _check_length(length)
    if not 0 <= low < high:
        raise UserError(f"--config.model.position: the bounds {low} and {high} must be >= 0, the second one larger.")

    def change(frequencies: np.ndarray) -> np.ndarray:
        kept = np.clip((length * frequencies / (2 * math.pi) - low) / (high - low), 0, 1)
        return kept * frequencies + (1 - kept) * frequencies / factor

    return change


def _rotary(fraction: float, base: float, change: Change = lambda x: x, gain: float = 1.0) -> PositionMaker:
    if not 0 < fraction <= 1:
        raise UserError(f"--config.model.position: fraction={fraction} must be above 0 and at most 1.")
    if not 1 < base < math.inf:
        raise UserError(f"--config.model.position: base={base} must be above 1.")

    def make(width: int, head_width: int, max_length: int, rngs: nnx.Rngs) -> NoPosition:
        half = round(fraction * head_width / 2)
        if not half or abs(2 * half - fraction * head_width) > 1e-6:
            raise UserError(
                f"--config.model.position turns {fraction:g} x {head_width} columns of each head, which must be an "
                "even number; change fraction, or --config.model.width / --config.model.num_heads."
            )
        return Rotary(change(_frequencies(half, base)), gain)

    return make


def _check_factor(factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise UserError(f"--config.model.position: factor={factor} must be at least 1.")


def _check_length(length: int) -> None:
    if length < 1:
        raise UserError(f"--config.model.position: length={length} must be at least 1.")


def _frequencies(half: int, base: float) -> np.ndarray:
    return base ** -(np.arange(half) / half)


def _angles(positions_BT: jax.Array, frequencies: np.ndarray) -> jax.Array:
    return positions_BT[..., None] * frequencies.astype(np.float32)[None, None]


POSITIONS: Table = {
    "rope": rope,
    "rope_linear": rope_linear,
    "rope_ntk": rope_ntk,
    "rope_yarn": rope_yarn,
    "rope_llama3": rope_llama3,
    "learned": learned,
    "sinusoidal": sinusoidal,
    "none": none,
}


def parse_position(text: str | PositionMaker) -> PositionMaker:
    """What makes the position of a name or a call with numbers, such as `rope_yarn(4, length=2048)`.

    Raises:
        UserError: another name, or numbers that the position refuses.
    """
    return parse(text, POSITIONS, "model.position")


def positions_in_turn(cycle: Cycle[Any], width: int, head_width: int, max_length: int, rngs: nnx.Rngs) -> Cycle[Any]:
    """What layers take for positions, in turn; equal ones are one.

    Raises:
        UserError: a cycle with one that acts at the embedding.
    """
    positions = cycle.map(lambda one: parse_position(one)(width, head_width, max_length, rngs))
    if len(positions) > 1 and any(one.at_embedding for one in positions.values):
        raise UserError(
            f"--config.model.position='{cycle}': learned and sinusoidal positions act at the embedding, once for all "
            "layers; write one of them alone, or a cycle of others."
        )
    return positions
