"""Cores and the attention module against NumPy float64, forward and backward."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.attention import (
    CORES,
    KVCache,
    Mask,
    MultiHeadAttention,
    Scores,
    causal,
    full,
    padding,
    segments,
    select_core,
    window,
)
from model.errors import UserError
from model.positions import POSITIONS, Rotation
from tests import reference

B, T, S, K = 2, 5, 7, 11
HEADS = [(3, 3), (6, 2), (5, 1)]  # (H, G): multi-head, grouped, multi-query
RNG = np.random.default_rng(0)
IDS_BT, IDS_BS = RNG.integers(0, 3, (B, T)), RNG.integers(0, 3, (B, S))
VALID_BS = RNG.random((B, S)) < 0.6
# The last one hides everything from query 0 of row 0, and from all queries of row 1.
DEAD_BS = np.array([[False, True, True, False, True, True, True], [False] * S])
Q, J = np.arange(T)[None, :, None], np.arange(S)[None, None, :]
MASKS: dict[str, tuple[Mask, np.ndarray]] = {
    "full": (full(), Q >= -J),
    "causal": (causal(), Q >= J),
    "window": (window(2, 3), (-3 <= Q - J) & (Q - J <= 2)),
    "segments": (segments(jnp.array(IDS_BT), jnp.array(IDS_BS)), IDS_BT[:, :, None] == IDS_BS[:, None]),
    "either": (causal() | padding(jnp.array(VALID_BS)), (Q >= J) | VALID_BS[:, None]),
    "dead": (causal() & padding(jnp.array(DEAD_BS)), (Q >= J) & DEAD_BS[:, None]),
}


def qkv(heads: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Queries, keys, values and a cotangent for the output."""
    rng, (H, G) = np.random.default_rng(sum(heads)), heads
    shapes = (B, T, H, K), (B, S, G, K), (B, S, G, K), (B, T, H, K)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


@cache
def forward_and_backward(core: str) -> Any:
    """The core and its gradients as one jitted function: one compilation serves all masks of a kind."""

    def run(q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array, scores: Scores) -> tuple[jax.Array, ...]:
        o, vjp = jax.vjp(lambda *qkv: CORES[core](*qkv, scores), q, k, v)
        return o, *vjp(do.astype(o.dtype))

    return jax.jit(run)


def assert_close(got: Any, expected: np.ndarray, tolerance: float) -> None:
    """The largest difference, as a part of the largest number."""
    difference = np.abs(np.asarray(got, np.float64) - expected).max()
    assert difference <= tolerance * max(1.0, np.abs(expected).max()), difference


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("core", CORES)
def test_every_core_is_the_reference_forward_and_backward(core: str, heads: tuple[int, int], mask: str) -> None:
    q, k, v, do = qkv(heads)
    value, allowed_BTS = MASKS[mask]
    scale = K**-0.5 if heads == (6, 2) else 0.83
    got = forward_and_backward(core)(q, k, v, do, Scores(value, scale))
    expected = reference.attention(q, k, v, np.broadcast_to(allowed_BTS, (B, T, S)), scale, do)
    for name, one, other in zip(expected._fields, got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 3e-3)])
def test_half_precision_stays_close(core: str, dtype: str, tolerance: float) -> None:
    arrays = [jnp.asarray(x, dtype) for x in qkv((6, 2))]
    value, allowed_BTS = MASKS["causal"]
    got = forward_and_backward(core)(*arrays, Scores(value, K**-0.5))
    rounded = [np.asarray(x, np.float64) for x in arrays]
    expected = reference.attention(*rounded[:3], np.broadcast_to(allowed_BTS, (B, T, S)), K**-0.5, rounded[3])
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == dtype
        assert_close(one, other, tolerance)


@pytest.mark.parametrize("core", CORES)
def test_large_logits_do_not_overflow(core: str) -> None:
    q, k, v, do = qkv((3, 3))
    q, k = 50 * q, 50 * k
    got = forward_and_backward(core)(q, k, v, do, Scores(causal(), 1.0))
    expected = reference.attention(q, k, v, np.broadcast_to(Q >= J, (B, T, S)), 1.0, do)
    assert np.abs(np.einsum("bthk,bshk->bhts", q, k)).max() > 1e4  # exp would be infinite
    assert_close(got[0], expected.o_BTHK, 1e-3)
    assert all(np.isfinite(x).all() for x in got)


@pytest.mark.parametrize("core", CORES)
def test_queries_without_a_key_give_exact_zeros_and_exact_zero_gradients(core: str) -> None:
    q, k, v, do = qkv((6, 2))
    o, dq, dk, dv = forward_and_backward(core)(q, k, v, do, Scores(MASKS["dead"][0], K**-0.5))
    assert not np.any(o[0, 0])
    assert not np.any(dq[0, 0])
    assert not any(np.any(x[1]) for x in (o, dq, dk, dv))
    assert np.all(np.any(o[0, 1:], axis=(1, 2)))  # the others are alive


def test_dropped_weights_are_scaled_and_depend_on_nothing_but_their_row() -> None:
    """With the identity for values the output is the matrix of weights, dropout included."""
    rows, heads, rate, places = 3, (6, 2), 0.3, 7
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((rows, T, heads[0], places)), rng.standard_normal((rows, places, heads[1], places))
    v = np.broadcast_to(np.eye(places)[None, :, None], k.shape)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in (q, k, v))
    keys = jax.random.split(jax.random.key(1), rows)
    run = jax.jit(CORES["dense"])
    plain, dropped = run(q, k, v, Scores(full(), 0.5)), run(q, k, v, Scores(full(), 0.5, rate, keys))
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(dropped, np.where(kept, plain / (1 - rate), 0), rtol=1e-5)
    deviation = (rate * (1 - rate) / kept.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    alone = run(q[1:2], k[1:2], v[1:2], Scores(full(), 0.5, rate, keys[1:2]))
    np.testing.assert_allclose(alone[0], dropped[1], rtol=1e-6)
    assert len({kept[b, :, h].tobytes() for b in range(rows) for h in range(heads[0])}) == rows * heads[0]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_without_rate_or_keys_nothing_is_dropped(rate: float) -> None:
    q, k, v, _ = qkv((3, 3))
    keys = None if rate else jax.random.split(jax.random.key(0), B)
    got = CORES["dense"](q, k, v, Scores(full(), 0.5, rate, keys))
    np.testing.assert_array_equal(got, CORES["dense"](q, k, v, Scores(full(), 0.5)))


class Layer:
    """A module with random parameters, biases included, and what the reference reads of its config."""

    def __init__(self, position: str = "none", scale: float = 0.0, H: int = 6, G: int = 2, **choices: Any):
        self.position, self.scale, rng = position, scale, np.random.default_rng(3)
        self.module = nnx.eval_shape(
            lambda: MultiHeadAttention(13, H, 4, num_kv_heads=G, scale=scale, rngs=nnx.Rngs(0), **choices)
        )
        self.params = reference.random_params(nnx.to_pure_dict(nnx.state(self.module, nnx.Param)), rng)
        nnx.update(self.module, self.params)
        self.x_BTD, self.y_BSD = (rng.standard_normal((B, n, 13)).astype(np.float32) for n in (T, S))
        self.positions_BT, self.positions_BS = rng.integers(0, 17, (B, T)), rng.integers(0, 17, (B, S))

    def rotation(self, positions: np.ndarray) -> Rotation | None:
        return POSITIONS[self.position](13, 4, 17, nnx.Rngs(0)).rotation(positions)


@pytest.mark.parametrize(("scale", "position"), [(0.0, "rope"), (1.7, "none")])
def test_cross_attention_is_the_reference(scale: float, position: str) -> None:
    layer = Layer(position, scale, bias=True, qk_norm=True)
    gate_H = np.array([1, 0.5, -1, 0, 2, 1], np.float32)
    value, allowed_BTS = MASKS["either"]

    @jax.jit
    def cross(x_BTD: jax.Array, y_BSD: jax.Array, positions_BT: jax.Array, positions_BS: jax.Array) -> jax.Array:
        turns = {"rotation": layer.rotation(positions_BT), "context_rotation": layer.rotation(positions_BS)}
        return layer.module(x_BTD, value, context_BSD=y_BSD, head_gate_H=jnp.array(gate_H), **turns)

    got = cross(layer.x_BTD, layer.y_BSD, layer.positions_BT, layer.positions_BS)
    for b in range(B):
        x_TD, y_SD, places = layer.x_BTD[b], layer.y_BSD[b], (layer.positions_BT[b], layer.positions_BS[b])
        expected = reference.attention_layer(layer.params, layer, x_TD, y_SD, allowed_BTS[b], places, gate_H)
        np.testing.assert_allclose(got[b], expected.o_TD, rtol=1e-5, atol=1e-5)


def test_a_gate_of_zero_is_a_head_that_is_not_there() -> None:
    """Multi-head attention with head 1 cut out of every kernel gives what the gate gives."""
    whole, pruned = Layer(H=3, G=3, bias=True), Layer(H=2, G=2, bias=True)
    for name, axis in (("query", 1), ("key", 1), ("value", 1), ("output", 0)):
        pruned.params[name]["kernel"] = np.delete(whole.params[name]["kernel"], 1, axis)
        bias = whole.params[name]["bias"]
        pruned.params[name]["bias"] = bias if name == "output" else np.delete(bias, 1, 0)
    nnx.update(pruned.module, pruned.params)
    call = jax.jit(lambda x_BTD, gate_H: whole.module(x_BTD, causal(), head_gate_H=gate_H))
    gated, plain = call(whole.x_BTD, np.array([1.0, 0.0, 1.0])), call(whole.x_BTD, np.ones(3))
    expected = jax.jit(lambda x_BTD: pruned.module(x_BTD, causal()))(whole.x_BTD)
    np.testing.assert_allclose(gated, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(gated - plain).max() > 1e-2


def test_weights_are_the_matrix_of_the_reference_over_several_slabs() -> None:
    """T = 5 places are read off in slabs of K = 4 columns; a query without a key has zeros."""
    layer = Layer("rope")
    value, allowed_BTS = causal() & padding(jnp.array(DEAD_BS[:, :T])), (Q >= J[..., :T]) & DEAD_BS[:, None, :T]
    weights = jax.jit(lambda x_BTD, positions_BT: layer.module.weights(x_BTD, value, layer.rotation(positions_BT)))
    got = weights(layer.x_BTD, layer.positions_BT)
    assert got.shape == (B, 6, T, T)
    for b in range(B):
        x_TD, places = layer.x_BTD[b], (layer.positions_BT[b],) * 2
        expected = reference.attention_layer(layer.params, layer, x_TD, x_TD, allowed_BTS[b], places, np.ones(6))
        np.testing.assert_allclose(got[b], expected.weights_HTS, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[b].sum(-1)[:, allowed_BTS[b].any(-1)], 1, rtol=1e-5)


def test_the_cache_is_written_at_each_rows_own_positions() -> None:
    layer = Layer()
    positions_BT = np.array([[3, 4, 5, 1, 0], [6, 2, 3, 4, 5]])
    cache = KVCache(*np.full((2, B, S, 2, 4), 9, np.float32))
    decode = jax.jit(lambda x_BTD, cache, positions_BT: layer.module.decode(x_BTD, causal(), cache, positions_BT))
    _, written = decode(layer.x_BTD, cache, positions_BT)
    for name, array in (("key", written.k_BSGK), ("value", written.v_BSGK)):
        for b in range(B):
            expected = np.full((S, 2, 4), 9.0)
            for t in range(T):
                expected[positions_BT[b, t]] = np.einsum("d,dgk->gk", layer.x_BTD[b, t], layer.params[name]["kernel"])
            np.testing.assert_allclose(array[b], expected, rtol=1e-5, atol=1e-5)


def test_auto_chooses_a_core_of_the_table() -> None:
    name, core = select_core("auto")
    assert core is CORES[name]


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"num_kv_heads": 5}, "--config.model.num_kv_heads=5 does not divide --config.model.num_heads=6."),
        ({"num_kv_heads": -2}, "--config.model.num_kv_heads=-2 "),
        ({"scale": -0.5}, "--config.model.scale=-0.5 is negative; give a factor > 0, or 0 for 1/sqrt(head width)."),
        ({"core": "sparse"}, f"--config.model.core='sparse' is not one of: {', '.join(['auto', *CORES])}."),
    ],
)
def test_bad_choices_are_refused_in_one_sentence(choices: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        MultiHeadAttention(13, 6, 4, rngs=nnx.Rngs(0), **choices)
    assert str(error.value).startswith(sentence)
