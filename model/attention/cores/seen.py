"""Blocks that are found empty when a program runs: of a mask that holds arrays nothing is known before."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.attention.masks.base import Mask, Start

Add = Callable[[Any, tuple[Start, Start]], Any]


def over_seen(
    mask: Mask,
    count: Start,
    starts_N2: jax.Array,
    size: tuple[int, int],
    at: tuple[Start, Start],
    add: Add,
    carry: Any,
) -> Any:
    """`carry = add(carry, (i0, j0))` for the first `count` blocks of `size`, but those of which no query sees a key.

    Blocks begin at `starts_N2`, and the mask is asked with `at` added. Asking costs 1 / (heads x head width) of
    computing. The loop ends early: a branch in each of its rounds would make XLA copy all that is carried.
    """

    def one(start_2: jax.Array) -> jax.Array:
        return jnp.any(mask.block(at[0] + start_2[0], at[1] + start_2[1], *size), axis=(1, 2, 3))

    seen_N = _by_anybody(jax.lax.map(one, starts_N2)) & (jnp.arange(len(starts_N2)) < count)
    return over_first(jnp.sum(seen_N), starts_N2[jnp.argsort(~seen_N, stable=True)], add, carry)


def over_first(count: Start, starts_N2: jax.Array, add: Add, carry: Any) -> Any:
    """`carry = add(carry, (i0, j0))` for the first `count` blocks."""
    return jax.lax.fori_loop(0, count, lambda n, carry: add(carry, (starts_N2[n, 0], starts_N2[n, 1])), carry)


@jax.custom_batching.custom_vmap
def _by_anybody(seen_NB: jax.Array) -> jax.Array:
    return jnp.any(seen_NB, axis=1)


@_by_anybody.def_vmap
def _by_any_seed(size: int, batched: Any, seen_XNB: jax.Array) -> tuple[jax.Array, bool]:
    """With a number of rounds for each seed, a loop would run for all seeds as long as for one, and choose each time
    between all that is carried. Seeds that the compiler splits over devices are not asked: they work apart.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.are_all_axes_manual:
        return jnp.any(seen_XNB, axis=(0, 2)), False
    return jnp.ones(seen_XNB.shape[1], bool), False
