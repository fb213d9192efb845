"""How the branches of a block (attention, cross-attention, MLP) and its norms are joined to the residual stream.

Each way is a function of the stream x, the branches by name and in order (a map of (B, T, D) each, its dropout in it),
and `norm(name, x)`, what the block's norm of that name makes of x.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax

from model.axes import pin

Map = Callable[[jax.Array], jax.Array]
Branches = Mapping[str, Map]
Norms = Callable[[str, jax.Array], jax.Array]


class NormPlace(NamedTuple):
    """A way to join them, the names of the norms of each branch, and whether one more norm follows the last block.

    A name without a place for the branch's is that of one norm which all branches share.
    """

    join: Callable[[jax.Array, Branches, Norms], jax.Array]
    each: tuple[str, ...]
    last: bool = True

    def norms(self, branches: Iterable[str]) -> tuple[str, ...]:
        """The names of the norms of a block with these branches."""
        return tuple(dict.fromkeys(one.format(name) for name in branches for one in self.each))


def pre(x_BTD: jax.Array, branches: Branches, norm: Norms) -> jax.Array:
    """x + f(norm(x)), branch by branch (Xiong et al. 2020)."""
    for name, branch in branches.items():
        x_BTD = _pinned(x_BTD + branch(norm(f"{name}_norm", x_BTD)))
    return x_BTD


def post(x_BTD: jax.Array, branches: Branches, norm: Norms) -> jax.Array:
    """norm(x + f(x)), branch by branch (Vaswani et al. 2017, section 3.1)."""
    for name, branch in branches.items():
        x_BTD = _pinned(norm(f"{name}_norm", x_BTD + branch(x_BTD)))
    return x_BTD


def output(x_BTD: jax.Array, branches: Branches, norm: Norms) -> jax.Array:
    """x + norm(f(x)), branch by branch (OLMo 2, 2025)."""
    for name, branch in branches.items():
        x_BTD = _pinned(x_BTD + norm(f"{name}_output_norm", branch(x_BTD)))
    return x_BTD


def sandwich(x_BTD: jax.Array, branches: Branches, norm: Norms) -> jax.Array:
    """x + norm(f(norm(x))), branch by branch (Ding et al. 2021, section 2.4; Gemma 2, 2024, section 2)."""
    for name, branch in branches.items():
        y_BTD = branch(norm(f"{name}_norm", x_BTD))
        x_BTD = _pinned(x_BTD + norm(f"{name}_output_norm", y_BTD))
    return x_BTD


def parallel(x_BTD: jax.Array, branches: Branches, norm: Norms) -> jax.Array:
    """x + f(norm(x)) + g(norm'(x)) (GPT-NeoX: Black et al. 2022, section 2.1)."""
    sum_BTD = x_BTD
    for name, branch in branches.items():
        sum_BTD = sum_BTD + branch(norm(f"{name}_norm", x_BTD))
    return _pinned(sum_BTD)


def parallel_shared(x_BTD: jax.Array, branches: Branches, norm: Norms) -> jax.Array:
    """x + f(norm(x)) + g(norm(x)), with one norm (GPT-J: Wang and Komatsuzaki 2021)."""
    y_BTD, sum_BTD = norm("attention_norm", x_BTD), x_BTD
    for branch in branches.values():
        sum_BTD = sum_BTD + branch(y_BTD)
    return _pinned(sum_BTD)


def _pinned(x_BTD: jax.Array) -> jax.Array:
    return pin(x_BTD, "batch", "length", None)


NORM_PLACES: dict[str, NormPlace] = {
    "pre": NormPlace(pre, ("{}_norm",)),
    "post": NormPlace(post, ("{}_norm",), last=False),
    "sandwich": NormPlace(sandwich, ("{}_norm", "{}_output_norm")),
    "output": NormPlace(output, ("{}_output_norm",)),
    "parallel": NormPlace(parallel, ("{}_norm",)),
    "parallel_shared": NormPlace(parallel_shared, ("attention_norm",)),
}
