"""How a block's attention, MLP and norms are joined to the residual stream.

Each way is a function of the stream x, the two branches (a map of (B, T, D) each, its dropout in it), and the block's
norms, in the order of their names.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from model.axes import pin

Map = Callable[[jax.Array], jax.Array]
Watch = Callable[[jax.Array], None]


class NormPlace(NamedTuple):
    """A way to join them, the names of the norms of a block, and whether one more follows the last block."""

    join: Callable[..., jax.Array]
    norms: tuple[str, ...]
    last: bool = True


def pre(x_BTD: jax.Array, attention: Map, mlp: Map, first: Map, second: Map) -> jax.Array:
    """x + f(norm(x)), branch by branch (Xiong et al. 2020)."""
    for branch, norm in ((attention, first), (mlp, second)):
        x_BTD = _pinned(x_BTD + branch(norm(x_BTD)))
    return x_BTD


def post(x_BTD: jax.Array, attention: Map, mlp: Map, first: Map, second: Map) -> jax.Array:
    """norm(x + f(x)), branch by branch (Vaswani et al. 2017, section 3.1)."""
    for branch, norm in ((attention, first), (mlp, second)):
        x_BTD = _pinned(norm(x_BTD + branch(x_BTD)))
    return x_BTD


def output(x_BTD: jax.Array, attention: Map, mlp: Map, first: Map, second: Map) -> jax.Array:
    """x + norm(f(x)), branch by branch (OLMo 2, 2025)."""
    for branch, norm in ((attention, first), (mlp, second)):
        x_BTD = _pinned(x_BTD + norm(branch(x_BTD)))
    return x_BTD


def sandwich(x_BTD: jax.Array, attention: Map, mlp: Map, *norms: Map) -> jax.Array:
    """x + norm(f(norm(x))), branch by branch (Ding et al. 2021, section 2.4; Gemma 2, 2024, section 2)."""
    for branch, before, after in ((attention, *norms[:2]), (mlp, *norms[2:])):
        x_BTD = _pinned(x_BTD + after(branch(before(x_BTD))))
    return x_BTD


def parallel(x_BTD: jax.Array, attention: Map, mlp: Map, first: Map, second: Map) -> jax.Array:
    """x + f(norm(x)) + g(norm'(x)) (GPT-NeoX: Black et al. 2022, section 2.1)."""
    return _pinned(x_BTD + attention(first(x_BTD)) + mlp(second(x_BTD)))


def parallel_shared(x_BTD: jax.Array, attention: Map, mlp: Map, norm: Map) -> jax.Array:
    """x + f(norm(x)) + g(norm(x)), with one norm (GPT-J: Wang and Komatsuzaki 2021)."""
    y_BTD = norm(x_BTD)
    return _pinned(x_BTD + attention(y_BTD) + mlp(y_BTD))


def watched(norm: Map, watch: Watch) -> Map:
    """The norm, of whose input `watch` is told."""

    def normed(x_BTD: jax.Array) -> jax.Array:
        watch(x_BTD)
        return norm(x_BTD)

    return normed


def _pinned(x_BTD: jax.Array) -> jax.Array:
    return pin(x_BTD, "batch", "length", None)


_BEFORE, _AFTER = ("attention_norm", "mlp_norm"), ("attention_output_norm", "mlp_output_norm")
NORM_PLACES: dict[str, NormPlace] = {
    "pre": NormPlace(pre, _BEFORE),
    "post": NormPlace(post, _BEFORE, last=False),
    "sandwich": NormPlace(sandwich, ("attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm")),
    "output": NormPlace(output, _AFTER),
    "parallel": NormPlace(parallel, _BEFORE),
    "parallel_shared": NormPlace(parallel_shared, ("attention_norm",)),
}
