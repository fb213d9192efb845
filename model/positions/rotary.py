"""Positions that turn queries and keys, in each layer."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.errors import UserError
from model.positions.base import NoPosition, Pairs, PositionMaker, Rotation, angles_of, frequencies_of


class Rotary(NoPosition):
    """Rotates pair i of the first R columns of q and k by position x frequency i (Su et al. 2021, equation 34).

    `frequencies` are R/2 numbers of radians per place; `gain` multiplies what is turned. Pair i is columns i and
    i + R/2 (`halves`, as in GPT-NeoX and Llama's checkpoints in transformers), or 2i and 2i + 1 (`interleaved`, as in
    the paper and GPT-J): the same model with its query's and key's columns in another order.
    """

    def __init__(self, frequencies: np.ndarray, gain: float = 1.0, pairs: Pairs = "halves"):
        self.frequencies, self.gain, self.pairs = tuple(frequencies.tolist()), gain, pairs

    def rotation(self, positions_BT: jax.Array) -> Rotation:
        """The angles of each position, computed once for all layers."""
        angles = angles_of(positions_BT, np.array(self.frequencies))[:, :, None]
        return Rotation(self.gain * jnp.cos(angles), self.gain * jnp.sin(angles), self.pairs)


def rotate(x_BTHK: jax.Array, rotation: Rotation | None) -> jax.Array:
    """Queries or keys turned by their positions' angles, in float32."""
    if rotation is None:
        return x_BTHK
    cos, sin, half = rotation.cos, rotation.sin, rotation.cos.shape[-1]
    columns, rest = jnp.split(x_BTHK, (2 * half,), axis=-1)
    if rotation.pairs == "halves":
        left, right = jnp.split(columns.astype(jnp.float32), 2, axis=-1)
        turned = jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)
    else:
        left, right = columns[..., ::2].astype(jnp.float32), columns[..., 1::2].astype(jnp.float32)
        turned = jnp.stack([left * cos - right * sin, left * sin + right * cos], axis=-1).reshape(columns.shape)
    turned = turned.astype(x_BTHK.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def rope(fraction: float = 1.0, base: float = 10000.0, pairs: Pairs = "halves") -> PositionMaker:
    """Frequencies base^(-2i / R), where R is the first `fraction` of the K columns of a head."""
    return _rotary(fraction, base, pairs)


def rope_linear(factor: float, fraction: float = 1.0, base: float = 10000.0, pairs: Pairs = "halves") -> PositionMaker:
    """Position interpolation: all frequencies / factor (Chen et al. 2023, section 2.3)."""
    _check_factor(factor)
    return _rotary(fraction, base, pairs, lambda frequencies: frequencies / factor)


def rope_ntk(factor: float, fraction: float = 1.0, base: float = 10000.0, pairs: Pairs = "halves") -> PositionMaker:
    """The base x factor^(R / (R - 2)): the highest frequency is kept, the lowest divided by factor (Peng et al. 2023,
    definition 1).
    """
    _check_factor(factor)
    return _rotary(
        fraction, base, pairs, lambda frequencies: frequencies * factor ** -np.linspace(0, 1, len(frequencies))
    )


def rope_yarn(
    factor: float,
    length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    fraction: float = 1.0,
    base: float = 10000.0,
    pairs: Pairs = "halves",
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

    return _rotary(fraction, base, pairs, change, gain)


def rope_llama3(
    factor: float,
    low: float = 1.0,
    high: float = 4.0,
    length: int = 8192,
    fraction: float = 1.0,
    base: float = 500000.0,
    pairs: Pairs = "halves",
) -> PositionMaker:
    """`by_parts` with the base and the bounds of Llama 3.1, from training at `length` (Grattafiori et al. 2024)."""
    return _rotary(fraction, base, pairs, by_parts(factor, length, low, high))


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


def _rotary(
    fraction: float, base: float, pairs: Pairs, change: Change = lambda x: x, gain: float = 1.0
) -> PositionMaker:
    if not 0 < fraction <= 1:
        raise UserError(f"--config.model.position: fraction={fraction} must be above 0 and at most 1.")
    if not 1 < base < math.inf:
        raise UserError(f"--config.model.position: base={base} must be above 1.")

    def make(width: int, head_width: int, max_length: int, rngs: nnx.Rngs) -> NoPosition:
        half = round(fraction * head_width / 2)
        if not half or abs(2 * half - fraction * head_width) > 1e-6:
            raise UserError(
                f"--config.model.position turns {fraction:g} x {head_width} columns of each head, which must be an "
                "even number; change fraction, or --config.model.head_width."
            )
        return Rotary(change(frequencies_of(half, base)), gain, pairs)

    return make


def _check_factor(factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise UserError(f"--config.model.position: factor={factor} must be at least 1.")


def _check_length(length: int) -> None:
    if length < 1:
        raise UserError(f"--config.model.position: length={length} must be at least 1.")
