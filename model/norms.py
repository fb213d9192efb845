"""Norms over the last axis, computed in float32, which no finite input overflows."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from model.errors import UserError
from model.expressions import Table, parse
from model.parameters import Module, parameter


class Norm(Module):
    """normalised(x) * scale (+ bias) over the last axis, in float32 and given back in the dtype of x.

    `scale` begins at 1, or is stored as its distance from one, which begins at 0.
    """

    def __init__(
        self, width: int, epsilon: float, *, centred: bool, from_one: bool = False, bias: bool = False, rngs: nnx.Rngs
    ):
        self.epsilon, self.centred, self.from_one = epsilon, centred, from_one
        first = nnx.initializers.zeros if from_one else nnx.initializers.ones
        self.scale = parameter(rngs, first, (width,), ("norm",))
        self.bias = parameter(rngs, nnx.initializers.zeros, (width,), ("norm",)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x normalised, in the dtype of x."""
        y, epsilon = _with_squares(x, self.epsilon)
        if self.centred:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        scale = 1 + self.scale[...] if self.from_one else self.scale[...]
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon) * _last(scale, x)
        return (y if self.bias is None else y + _last(self.bias[...], x)).astype(x.dtype)


class NormMaker(Protocol):
    """What makes a norm over `width` entries."""

    def __call__(self, width: int, *, bias: bool = False, rngs: nnx.Rngs) -> Norm:
        """`bias` asks for one; a norm that never has one ignores it."""


def layer(epsilon: float = 1e-6) -> NormMaker:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias (Ba et al. 2016, equation 4)."""
    _check_epsilon(epsilon)

    def make(width: int, *, bias: bool = False, rngs: nnx.Rngs) -> Norm:
        return Norm(width, epsilon, centred=True, bias=bias, rngs=rngs)

    return make


def rms(epsilon: float = 1e-6) -> NormMaker:
    """x / sqrt(mean(x^2) + epsilon) * scale, never with a bias (Zhang and Sennrich 2019, equation 4)."""
    _check_epsilon(epsilon)

    def make(width: int, *, bias: bool = False, rngs: nnx.Rngs) -> Norm:
        return Norm(width, epsilon, centred=False, rngs=rngs)

    return make


def rms_plus_one(epsilon: float = 1e-6) -> NormMaker:
    """x / sqrt(mean(x^2) + epsilon) * (1 + scale), never with a bias (Gemma 2024, its published code)."""
    _check_epsilon(epsilon)

    def make(width: int, *, bias: bool = False, rngs: nnx.Rngs) -> Norm:
        return Norm(width, epsilon, centred=False, from_one=True, rngs=rngs)

    return make


NORMS: Table = {"layer": layer, "rms": rms, "rms_plus_one": rms_plus_one}


def parse_norm(text: Any, key: str = "model.norm") -> NormMaker:
    """What makes the norm of a name or a call with a number, such as `layer(1e-5)` or `rms(epsilon=1e-5)`.

    Raises:
        UserError: another name, or a number that the norm refuses.
    """
    return parse(text, NORMS, key)


def _check_epsilon(epsilon: float) -> None:
    # Its square root to the third, of which a gradient takes the inverse, must be a float32 at each size of input.
    if not 1e-12 <= epsilon <= 1:
        raise UserError(f"--config.model.norm: epsilon={epsilon} must be at least 1e-12 and at most 1.")


def _with_squares(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """x in float32 and the epsilon of a norm, rows with an entry above 2^20 divided by about that entry.

    A power of two changes no digit. So neither the squares nor, in the gradient, the -3/2 power of their mean leaves
    the range of float32 (jax gets it as rsqrt / mean, which is 0 from 2^42 on); all other rows stay as they are.
    """
    y = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(y)), axis=-1, keepdims=True)
    _, exponent = jnp.frexp(largest)
    # At most 2^100, whose inverse is far from what a device takes for 0.
    factor = jnp.where(largest > 2.0**20, jnp.ldexp(jnp.float32(1), -jnp.minimum(exponent, 100)), 1.0)
    # Never so small that a row without spread is 0 / 0; 1e-12 of the largest entry is below its last digit.
    return y * factor, jnp.maximum(epsilon * factor * factor, 1e-24)


def _last(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
