"""Attention rollout: how much of each token has come to each place, if attention and the residual stream were all that
mixes them (Abnar and Zuidema 2020, section 3).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.looked import Looked
from model.attention.scores import wide
from model.errors import Range, UserError, check_range
from model.families.family import Model
from model.taps import Hook, Number, Taps

FUSIONS: dict[str, Callable[..., jax.Array]] = {"mean": jnp.mean, "max": jnp.max, "min": jnp.min}
RANGES = {"residual": Range(0, 1), "discard": Range(0, 1, below=True)}


def fused(looked: Looked, fusion: str = "mean") -> jax.Array:
    """The weights of all heads as one map, (B, T, S), made of a slab of keys at a time."""
    return looked.by_slab(lambda weights_BTHS, v_BSHK: FUSIONS[fusion](wide(weights_BTHS), axis=2))


def mixed(weights_BTT: jax.Array, residual: Any = 0.5, discard: float = 0.0) -> jax.Array:
    """What a layer makes of its tokens: rows of (1 - residual) x weights + residual x identity, which sum to 1.

    Of the weights of each example that are above zero the `discard` smallest share is left out before, but for those to
    the token itself and to the first one, which others stand on. What a sink takes, all others have in proportion.
    """
    B, T, S = weights_BTT.shape
    if discard:
        kept = jnp.eye(T, S, dtype=bool) | (jnp.arange(S) == 0)[None]
        flat = jnp.where(kept[None] | (weights_BTT <= 0), jnp.inf, weights_BTT).reshape(B, T * S)
        rank = jnp.argsort(jnp.argsort(flat, axis=1), axis=1).reshape(B, T, S)
        count_B11 = jnp.floor(discard * jnp.sum(weights_BTT > 0, axis=(1, 2), keepdims=True))
        weights_BTT = jnp.where(rank < count_B11, 0, weights_BTT)
    both_BTT = (1 - residual) * weights_BTT + residual * jnp.eye(T, S)[None]
    sums_BT1 = jnp.sum(both_BTT, axis=-1, keepdims=True)
    return jnp.where(sums_BT1 > 0, both_BTT / jnp.where(sums_BT1 > 0, sums_BT1, 1), 0)


def rollout(
    model: Model,
    *,
    fusion: str = "mean",
    residual: float = 0.5,
    discard: float = 0.0,
    start_layer: int = 0,
    fair: bool = False,
    **inputs: Any,
) -> dict[str, jax.Array]:
    """For each place the shares of the tokens that have come to it, in rows that sum to 1: `stack` (B, T, T); of pairs
    `encoder` (B, S, S), and `decoder` (B, T, T) and `cross` (B, T, S), whose rows sum to 1 together.

    R_l = A_l R_(l-1), from the identity before layer `start_layer`, where A_l is `mixed` of the heads' `fusion`; it is
    carried from layer to layer. Cross-attention C keeps `residual` of what the target's place had, and adds
    (1 - residual) C of what the encoder's places have. `fair` divides the shares of a causal model's tokens by those
    that they would have if all weights of a row were equal, for early tokens are seen by more places; then rows sum to
    nothing in particular (our definition).

    Raises:
        UserError: a value out of its range, or a model whose states mix tokens, too.
    """
    for name, allowed in RANGES.items():
        check_range(name, {"residual": residual, "discard": discard}[name], allowed)
    if fusion not in FUSIONS:
        raise UserError(f"--fusion={fusion!r} is not one of: {', '.join(FUSIONS)}.")
    if not model.config.sites:
        raise UserError(
            "rollout: what a recurrent model has read comes to a place by its states too, of which attention tells "
            "nothing; take raw weights or gradients."
        )
    layers = max(site.stack.num_layers for site in model.config.sites.values())
    check_range("start_layer", start_layer, Range(0, layers - 1))
    graphdef, params = nnx.split(model)
    given = graphdef, params, inputs, residual, start_layer
    found = _rollout(*given, discard, fusion)
    if not fair:
        return found
    even = _rollout(*given, 0.0, "even")
    return {name: jnp.where(even[name] > 0, x / jnp.maximum(even[name], 1e-30), 0) for name, x in found.items()}


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _rollout(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: dict[str, Any],
    residual: Any,
    start_layer: Any,
    discard: float,
    fusion: str,
) -> dict[str, jax.Array]:
    model = nnx.merge(graphdef, params)

    def one(looked: Looked) -> jax.Array:
        if fusion != "even":
            return fused(looked, fusion)
        seen_BTS = (fused(looked, "max") > 0).astype(jnp.float32)
        return seen_BTS / jnp.maximum(jnp.sum(seen_BTS, axis=-1, keepdims=True), 1)

    def hook(update: Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]], state: Any) -> Hook:
        def call(state: Any, number: Number, looked: Looked) -> tuple[Any, Looked, None]:
            later = jax.lax.cond(number >= start_layer, lambda: update(state, one(looked)), lambda: state)
            return later, looked, None

        return Hook(call, state, "rollout")

    def own(*names: str) -> Callable[..., dict[str, jax.Array]]:
        def update(state: dict[str, jax.Array], weights_BTT: jax.Array) -> dict[str, jax.Array]:
            mix_BTT = mixed(weights_BTT, residual, discard)
            return state | {name: mix_BTT @ state[name] for name in names}

        return update

    def across(state: dict[str, jax.Array], weights_BTS: jax.Array) -> dict[str, jax.Array]:
        sums_BT1 = jnp.sum(weights_BTS, axis=-1, keepdims=True)
        taken_BTS = jnp.where(sums_BT1 > 0, weights_BTS / jnp.where(sums_BT1 > 0, sums_BT1, 1), 0)
        kept_BT1 = jnp.where(sums_BT1 > 0, residual, 1)
        cross_BTS = kept_BT1 * state["cross"] + (1 - kept_BT1) * (taken_BTS @ state["encoder"])
        return state | {"decoder": kept_BT1 * state["decoder"], "cross": cross_BTS}

    if "pairs" in inputs:
        (B, S), T = inputs["pairs"].sources_BS.shape, inputs["pairs"].tokens_BT.shape[1]
        state = {"encoder": _identity(B, S), "decoder": _identity(B, T), "cross": jnp.zeros((B, T, S))}
        updates = {"encoder.attention": own("encoder"), "decoder.attention": own("decoder", "cross")}
        updates |= {"decoder.cross": across}
    else:
        state, updates = {"stack": _identity(*inputs["tokens_BT"].shape)}, {"stack.attention": own("stack")}
    taps = Taps({f"{place}.weights": hook(update, state) for place, update in updates.items()})
    model.vectors(**inputs, taps=taps)
    return taps.states["rollout"]


def _identity(rows: int, places: int) -> jax.Array:
    return jnp.broadcast_to(jnp.eye(places), (rows, places, places))
