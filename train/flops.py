"""The floating-point operations that a model needs, from which the share of the matrix rate is told."""

import functools
from typing import Any

import jax
import numpy as np
from flax import nnx

from model.attention import Mask
from model.attention.cores.table import recurrent
from model.attention.masks.base import BlockState
from model.cycles import Cycle
from model.families.family import AttentionSite, Family

_BLOCK = 512  # queries and keys of the largest part of a mask that is written out to be counted


def flops_per_token(config: Family) -> float:
    """Floating-point operations of one training step per token of its rows, the model's own, without recomputation.

    6 x (entries of all matrices, the output head included, the embedding lookup not) + 12 x (keys that a token sees, on
    average over a window, summed over the layers) x H K for attention: two products of 2 K per head and pair, and twice
    that for their gradients (Chowdhery et al. 2022, appendix B, which takes all T keys for seen; a causal mask shows
    (T + 1) / 2). Of a core with a state, 12 x its numbers: each is written by one product, and read by one. Where there
    are sources, tokens are theirs, and what is done of the targets, which may be shorter, counts for these.
    """
    model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    paths = [(tuple(str(one.key) for one in path), leaf.size) for path, leaf in _leaves(model)]
    kernels = sum(size * config.uses(path) for path, size in paths if path[-1] == "kernel")
    if model.head is not None and model.head.kernel is None:
        kernels += config.vocab_size * config.width * config.uses(("head",))
    return 6.0 * kernels + attention_flops_per_token(config) + config.other_flops


def attention_flops_per_token(config: Family) -> float:
    """The part of `flops_per_token` that all layers need between queries, keys and values."""
    between = attention_flops(config)
    return sum(
        between[name][layer] * site.queries / config.max_length
        for name, site in config.sites.items()
        for layer in range(site.stack.num_layers)
    )


def attention_flops(config: Family) -> dict[str, Cycle[float]]:
    """Those that one layer needs between a query, keys and values, at each place of the unit of each site."""

    def one(site: AttentionSite, place: int) -> float:
        sizes, core = site.attention(place).sizes, recurrent(site.cores[place])
        if core is not None:
            return 12.0 * sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda: core.empty(sizes, 1, 1))))
        T = site.queries
        seen = config.max_length if site.own else visible_pairs(site.mask(place), T) / T  # of a memory, all
        return 12.0 * seen * sizes.H * sizes.K

    return {
        name: Cycle(tuple(one(site, place) for place in range(site.stack.unit))) for name, site in config.sites.items()
    }


@functools.lru_cache(maxsize=64)
def visible_pairs(mask: Mask, length: int) -> float:
    """How many of the T x T pairs of query and key a static mask shows, on average over rows and heads."""
    return _pairs(mask, 0, length, 0, length)


def _pairs(mask: Mask, i0: int, i1: int, j0: int, j1: int) -> float:
    rows, columns, state = i1 - i0, j1 - j0, mask.state(i0, i1, j0, j1)
    if state is not BlockState.MIXED or not rows or not columns:
        return float(rows * columns) if state is BlockState.FULL else 0.0
    if max(rows, columns) <= _BLOCK:
        block = np.asarray(mask.block(i0, j0, rows, columns))
        # An axis that the block leaves to be broadcast counts as often as it will be repeated.
        return float(block.sum() * rows * columns / block.size)
    i, j = (i0 + i1) // 2, (j0 + j1) // 2
    return sum(_pairs(mask, *queries, *keys) for queries in ((i0, i), (i, i1)) for keys in ((j0, j), (j, j1)))


def _leaves(module: nnx.Module) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
