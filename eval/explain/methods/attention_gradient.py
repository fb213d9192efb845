"""Gradient x attention: the attention that the answer would miss, joined over the layers (Chefer et al., ICCV 2021)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from eval.explain.targets import Target, answering
from model.attention.looked import Looked
from model.attention.scores import wide
from model.errors import UserError
from model.families.family import Model
from model.taps import Hook, Number, Taps

Along = Callable[[Number, Any, jax.Array], Any]  # of a layer's number, what comes back to its state, and its E


def attention_gradient(model: Model, inputs: dict[str, Any], target: Target) -> dict[str, jax.Array]:
    """How much each token counts for the target's value, (B, n) by the site of its vectors; never below 0.

    With A a layer's weights and dA their gradient, E = mean over heads of relu(dA * A). What has come to the tokens is
    R = (1 + E_L) ... (1 + E_1), of which the row is read that answers: of the target's (first) place, or, of a label of
    the whole row, what its head reads (equations 5 and 6). It is carried from the last layer down, so no map of a head
    or of a layer is kept. Of pairs, both sides: a layer of cross-attention gives R_ts += norm(R_tt)' E norm(R_ss),
    where norm makes the rows of R - 1 sum to 1 and adds 1 again (equations 8 to 10); rows of nothing stay nothing.

    Raises:
        UserError: a model whose states mix tokens, too.
    """
    if not model.config.sites:
        raise UserError(
            "attention_gradient: what a recurrent model has read comes to a place by its states too, of which "
            "attention tells nothing; take gradients of the vectors."
        )
    if "pairs" in inputs:
        return _of_pairs(*nnx.split(model), inputs, target)
    return {"embedding": _carried(*nnx.split(model), inputs, target)}


@functools.partial(jax.jit, static_argnums=0)
def _carried(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> jax.Array:
    model = nnx.merge(graphdef, params)
    row_BT = read_places(model, inputs, target)

    def along(number: Number, given_BT: jax.Array, E_BTT: jax.Array) -> jax.Array:
        return given_BT + jnp.einsum("BT,BTS->BS", given_BT, E_BTT)

    site = "stack.attention.weights"
    return _back(model, inputs, target, along, {site: jnp.zeros_like(row_BT)}, {site: row_BT})[site]


@functools.partial(jax.jit, static_argnums=0)
def _of_pairs(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> dict[str, jax.Array]:
    model, pairs = nnx.merge(graphdef, params), inputs["pairs"]
    (B, S), T, sites = pairs.sources_BS.shape, pairs.tokens_BT.shape[1], model.config.sites
    sizes = {"encoder.attention": (S, S), "decoder.attention": (T, T), "decoder.cross": (T, S)}
    L = {"encoder": sites["encoder"].stack.num_layers, "decoder": sites["decoder"].stack.num_layers}
    none = {f"{name}.weights": jnp.zeros((L[name[:7]], B, *size)) for name, size in sizes.items()}

    def along(number: Number, given_LBTS: jax.Array, E_BTS: jax.Array) -> jax.Array:
        return given_LBTS.at[number].set(E_BTS)

    found = _back(model, inputs, target, along, none, none)
    E_of = {name: found[f"{name}.weights"] for name in sizes}
    R_ss, R_tt = (jnp.broadcast_to(jnp.eye(n), (B, n, n)) for n in (S, T))
    for E_BSS in E_of["encoder.attention"]:
        R_ss = R_ss + E_BSS @ R_ss
    R_ts = jnp.zeros((B, T, S))
    for E_BTT, E_BTS in zip(E_of["decoder.attention"], E_of["decoder.cross"], strict=True):
        R_tt, R_ts = R_tt + E_BTT @ R_tt, R_ts + E_BTT @ R_ts
        R_ts = R_ts + _normed(R_tt).swapaxes(1, 2) @ E_BTS @ _normed(R_ss)
    row_B1T = read_places(model, inputs, target)[:, None]
    return {"encoder.embedding": (row_B1T @ R_ts)[:, 0], "decoder.embedding": (row_B1T @ R_tt)[:, 0]}


def _normed(R_Bnn: jax.Array) -> jax.Array:
    one = jnp.eye(R_Bnn.shape[1])[None]
    sums_Bn1 = jnp.sum(R_Bnn - one, axis=-1, keepdims=True)
    return jnp.where(sums_Bn1 > 0, (R_Bnn - one) / jnp.where(sums_Bn1 > 0, sums_Bn1, 1), 0) + one


def _back(
    model: Model, inputs: dict[str, Any], target: Target, along: Along, states: dict[str, Any], given: dict[str, Any]
) -> dict[str, Any]:
    """What comes back to states at sites of weights, where `given` is what comes back to them behind the last layer."""

    def said(states: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        taps = Taps({site: Hook(_hook(along), state) for site, state in states.items()})
        return jnp.sum(target.value(model, inputs, taps)), taps.states

    _, back = jax.vjp(said, states)
    return back((jnp.float32(1), given))[0]


def _hook(along: Along) -> Callable[[Any, Number, Looked], tuple[Any, Looked, None]]:
    """A hook whose state goes on unchanged, and to whose state comes back what `along` makes of what came back."""

    def call(state: Any, number: Number, looked: Looked) -> tuple[Any, Looked, None]:
        @jax.custom_vjp
        def passed(state: Any, o_BTHK: jax.Array, number: Number, beside: Any) -> tuple[Any, jax.Array]:
            return state, o_BTHK

        def forward(state: Any, o_BTHK: jax.Array, number: Number, beside: Any) -> tuple[Any, Any]:
            return (state, o_BTHK), (number, beside)

        def backward(kept: Any, given: Any) -> tuple[Any, ...]:
            (number, beside), (given_state, do_BTHK) = kept, given
            q_BTHK, k_BSGK, v_BSGK, scores, module = beside
            there = Looked(do_BTHK, q_BTHK, k_BSGK, v_BSGK, scores, looked.core, module)
            return along(number, given_state, _missed(there)), do_BTHK, None, None

        passed.defvjp(forward, backward)
        beside = looked.q_BTHK, looked.k_BSGK, looked.v_BSGK, looked.scores, looked.module
        state, o_BTHK = passed(state, looked.o_BTHK, number, beside)
        return state, looked.replace(o_BTHK=o_BTHK), None

    return call


def _missed(looked: Looked) -> jax.Array:
    """E (B, T, S), where `o_BTHK` is the gradient of what was taken: dA = do . v."""

    def made(weights_BTHS: jax.Array, v_BSHK: jax.Array) -> jax.Array:
        slope_BTHS = jnp.einsum("BTHK,BSHK->BTHS", wide(looked.o_BTHK), wide(v_BSHK))
        return jnp.mean(jax.nn.relu(slope_BTHS * wide(weights_BTHS)), axis=2)

    return looked.by_slab(made)


def read_places(model: Model, inputs: dict[str, Any], target: Target) -> jax.Array:
    """Which places are read for the answers, (B, T): their shares, which sum to 1."""
    pool = getattr(model.config, "pool", None) if getattr(model.config, "head", "") in ("class", "pair") else None
    T = answering(inputs).shape[1]
    if pool == "mean":
        real_BT = answering(inputs)
        return real_BT / jnp.maximum(jnp.sum(real_BT, axis=1, keepdims=True), 1)
    places_BP = target.places_BP if pool is None else jnp.zeros_like(target.places_BP)
    return jnp.mean(jax.nn.one_hot(places_BP, T), axis=1)
