"""How the next token is chosen from logits: small filters that compose, and one draw."""

import dataclasses
import math
import numbers

import jax
import jax.numpy as jnp

from model.errors import UserError


def relative(logits_BV: jax.Array) -> jax.Array:
    """The logits minus the largest of their row, in float32: at most 0, and 0 for the likeliest also if it is infinite.

    So +inf takes all the mass, shared evenly where there are several, and a row of -inf alone knows no difference.
    """
    logits_BV = logits_BV.astype(jnp.float32)
    largest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.where(logits_BV == largest_B1, 0.0, logits_BV - largest_B1)


def at_temperature(logits_BV: jax.Array, temperature: float) -> jax.Array:
    """`relative` logits / temperature: the colder, the nearer to the greedy choice."""
    # Neither the divisor nor its inverse, which XLA multiplies by, may leave what float32 holds: 0 x inf is no number.
    # Logits that differ, differ by more than 1e-35, so that nothing is warmed by the lower bound.
    return relative(logits_BV) / min(max(temperature, 1e-37), 1e37)


def top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest logits of each row, ties with the last of them included; the rest becomes -inf."""
    kept = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0]
    return jnp.where(logits_BV >= kept[..., -1:], logits_BV, -jnp.inf)


def top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of likeliest tokens that holds at least the mass p (Holtzman et al. 2020); ties stay."""
    sorted_BV = jnp.sort(relative(logits_BV), axis=-1, descending=True)
    mass_BV = jnp.cumsum(jax.nn.softmax(sorted_BV, axis=-1), axis=-1)
    before_BV = jnp.pad(mass_BV[..., :-1], [(0, 0)] * (mass_BV.ndim - 1) + [(1, 0)])
    # The likeliest token has no mass before it, which is less than any p that is not rounded to 0.
    kept_BV = before_BV < max(p, float(jnp.finfo(jnp.float32).tiny))
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, 0.0), axis=-1, keepdims=True)
    return jnp.where(relative(logits_BV) >= least_B1, logits_BV, -jnp.inf)


def min_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """Keeps the tokens at least p times as probable as the likeliest one (Nguyen et al. 2024)."""
    return jnp.where(relative(logits_BV) >= math.log(p), logits_BV, -jnp.inf)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to draw: temperature first, then top_k, top_p and min_p, each on what the one before has left.

    temperature=0 takes the likeliest token; top_k=0, top_p=1 and min_p=0 filter nothing.

    Raises:
        UserError: a value out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "a finite number >= 0 (0: always the likeliest token)"),
            (
                "top_k",
                isinstance(self.top_k, numbers.Integral) and self.top_k >= 0,
                "a whole number >= 0 (0: all tokens)",
            ),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1 (1: all tokens)"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1 (0: all tokens)"),
        )
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"--{name}={getattr(self, name)} must be {rule}.")

    def filtered(self, logits_BV: jax.Array) -> jax.Array:
        """The logits at this (positive) temperature, the largest of a row at 0, and -inf for the tokens that may not
        be drawn.
        """
        logits_BV = at_temperature(logits_BV, self.temperature)
        if self.top_k:
            logits_BV = top_k(logits_BV, self.top_k)
        if self.top_p < 1:
            logits_BV = top_p(logits_BV, self.top_p)
        return min_p(logits_BV, self.min_p) if self.min_p else logits_BV

    def draw(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """One token per row, (B,) int32; row b is drawn with key b alone."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        return jax.vmap(jax.random.categorical)(keys_B, self.filtered(logits_BV)).astype(jnp.int32)
