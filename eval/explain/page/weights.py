"""The attention weights that a page shows: all of them, or where they are too many, pooled before they are kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eval.explain.capture import capture, sizes
from eval.explain.page.content import axes
from eval.explain.page.quanta import SIDE
from model.attention.looked import Looked
from model.attention.scores import wide
from model.families.family import Model
from train.devices.placing import on_host

Maps = dict[str, np.ndarray]


def gathered(
    model: Model,
    names: Sequence[str],
    looking: Sequence[str],
    inputs: dict[str, Any],
    pieces: Mapping[str, Sequence[str]],
    budget: int,
) -> tuple[dict[str, jax.Array], Maps, Maps, list[str]]:
    """Of the first row: what is captured at `looking`; by place the weights (L, H, T, S), or pooled ones; (L, h, T, S)
    with the same mean over the second axis as the weights; and what is missing, in sentences.
    """
    taken = sum(sizes(model, names, **inputs).values())
    if taken <= budget:
        found = capture(model, [*names, *looking], budget=2 * budget, **inputs)  # in one pass
        weights = {_place(name): _cut(found[name][:, 0], _place(name), pieces) for name in names}
        return found, weights, weights, []
    left_out = [
        f"Whole maps of heads: all take {taken:,} bytes, and {budget:,} may be captured, so here they are pooled to "
        f"{SIDE} a side. --arrays=FILE.safetensors keeps all."
    ]
    weights, means = Maps(), Maps()
    for name in names:
        T, S = (len(pieces[site]) for site in axes(_place(name)))
        x_LBHTS = capture(model, [name], reduce=pooled_weights(T, S), budget=budget, **inputs)[name]
        weights[_place(name)] = np.asarray(on_host(x_LBHTS)[:, 0], np.float32)
    if sum(sizes(model, names, _mean, **inputs).values()) > budget:
        return {}, weights, {}, [*left_out, "The rollout by layers, and queries and keys: they take more, too."]
    for name in names:
        mean_LBTS = capture(model, [name], reduce=_mean, budget=budget, **inputs)[name]
        means[_place(name)] = _cut(mean_LBTS[:, :1], _place(name), pieces)
    return {}, weights, means, [*left_out, "Queries and keys: they take more, too."]


def pooled_weights(T: int, S: int) -> Callable[[Any], jax.Array]:
    """What pools the weights of a layer over the first T queries and S keys, to (B, H, side, side), as `pooled` does,
    slab by slab of the keys.
    """

    def reduce(value: Any) -> jax.Array:
        if not isinstance(value, Looked):
            return _largest(_largest(value, 2, T), 3, S)
        x_BTHS = value.by_slab(lambda weights_BTHS, v_BSHK: _largest(wide(weights_BTHS), 1, T))
        return _largest(x_BTHS, 3, S).swapaxes(1, 2)

    return reduce


def _largest(x: jax.Array, axis: int, size: int) -> jax.Array:
    """The largest, with its sign, of each block of the first `size` along an axis."""
    x = jnp.moveaxis(jax.lax.slice_in_dim(x, 0, size, axis=axis), axis, 0)
    if size > SIDE:
        blocks: Any = {"segment_ids": jnp.arange(size) * SIDE // size, "num_segments": SIDE, "indices_are_sorted": True}
        high, low = jax.ops.segment_max(x, **blocks), jax.ops.segment_min(x, **blocks)
        x = jnp.where(-low > high, low, high)
    return jnp.moveaxis(x, 0, axis)


def _mean(value: Any) -> jax.Array:
    return value.mean() if isinstance(value, Looked) else value.mean(1)


def _place(name: str) -> str:
    return name.removesuffix(".weights")


def _cut(x_LHTS: jax.Array, place: str, pieces: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Without padding."""
    T, S = (len(pieces[site]) for site in axes(place))
    return np.asarray(on_host(x_LHTS)[:, :, :T, :S], np.float32)
