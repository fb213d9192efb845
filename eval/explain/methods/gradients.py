"""How an answer changes with the vectors of the tokens: its gradient, times them, and over noise."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eval.explain.targets import Target, embedded, given, places
from model.errors import Range, check_range
from model.families.family import Model

Vectors = dict[str, jax.Array]  # (B, n, D), by the site at which they stand


def value_and_gradient(model: Model, inputs: dict[str, Any], target: Target, x: Vectors) -> tuple[jax.Array, Vectors]:
    """The target's value of each example, (B,), and its gradient by the vectors that stand for its tokens."""

    def total(x: Vectors) -> tuple[jax.Array, jax.Array]:
        value_B = target.value(model, inputs, given(x))
        return jnp.sum(value_B), value_B  # of rows that know nothing of each other

    gradient, value_B = jax.grad(total, has_aux=True)(x)
    return value_B, gradient


def gradient(model: Model, inputs: dict[str, Any], target: Target) -> dict[str, jax.Array]:
    """The length of the gradient by each token's vector, (B, n) by site (Simonyan et al. 2014, section 3)."""
    x, slope = _at(*nnx.split(model), inputs, target)
    return {site: jnp.linalg.norm(slope[site], axis=-1) for site in x}


def gradient_x_input(model: Model, inputs: dict[str, Any], target: Target) -> dict[str, jax.Array]:
    """The gradient along each token's vector, (B, n) by site, with its sign (Denil et al. 2014)."""
    x, slope = _at(*nnx.split(model), inputs, target)
    return {site: jnp.sum(slope[site] * x[site], axis=-1) for site in x}


def smooth_gradient(
    model: Model, inputs: dict[str, Any], target: Target, *, draws: int = 25, spread: float = 0.15, seed: int = 0
) -> dict[str, jax.Array]:
    """As `gradient_x_input`, of the mean gradient where normal noise is added to the vectors, whose standard deviation
    is `spread` times the range of the example's numbers (Smilkov et al. 2017, section 3).

    Raises:
        UserError: a value out of its range.
    """
    check_range("draws", draws, Range(1))
    check_range("spread", spread, Range(0, 10))
    return _smooth(*nnx.split(model), inputs, target, draws, spread, jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def _at(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> tuple[Vectors, Vectors]:
    model = nnx.merge(graphdef, params)
    x = embedded(model, inputs)
    return x, value_and_gradient(model, inputs, target, x)[1]


@functools.partial(jax.jit, static_argnums=(0, 4))
def _smooth(
    graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target, draws: int, spread: Any, key: jax.Array
) -> dict[str, jax.Array]:
    model = nnx.merge(graphdef, params)
    x = embedded(model, inputs)
    real = places(inputs)
    spreads = {site: spread * _range(one, real[site]) for site, one in x.items()}

    def add(sums: Vectors, number: jax.Array) -> tuple[Vectors, None]:
        keys = dict(zip(x, jax.random.split(jax.random.fold_in(key, number), len(x)), strict=True))
        noisy = {site: one + spreads[site] * _noise(keys[site], one) for site, one in x.items()}
        return jax.tree.map(jnp.add, sums, value_and_gradient(model, inputs, target, noisy)[1]), None

    sums, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, x), jnp.arange(draws))
    return {site: jnp.sum(sums[site] * one, axis=-1) / draws for site, one in x.items()}


def _range(x_BnD: jax.Array, real_Bn: jax.Array) -> jax.Array:
    """The largest number of each row's tokens less the smallest, (B, 1, 1)."""
    real_Bn1, axes = real_Bn[..., None], (1, 2)
    largest, smallest = (jnp.where(real_Bn1, x_BnD, sign * -jnp.inf) for sign in (1, -1))
    return jnp.max(largest, axes, keepdims=True) - jnp.min(smallest, axes, keepdims=True)


def _noise(key: jax.Array, x_BnD: jax.Array) -> jax.Array:
    """Normal noise for each place, the same in all rows, so that a row's map is its own."""
    keys_n = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x_BnD.shape[1]))
    return jax.vmap(lambda one: jax.random.normal(one, x_BnD.shape[2:], x_BnD.dtype))(keys_n)[None]
