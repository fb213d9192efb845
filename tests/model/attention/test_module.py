"""The attention module against NumPy float64: cross-attention, weights, cache, gates, dropout, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.attention import (
    CORES,
    AttentionConfig,
    ExplicitBias,
    KVCache,
    Mask,
    MultiHeadAttention,
    Request,
    Scores,
    attend,
    causal,
    explicit,
    full,
    padding,
    parse_bias,
    select_core,
)
from model.errors import UserError
from model.positions import Rotation, parse_position
from model.taps import Hook, Taps, head_gates
from tests.model import reference

B, T, S = 2, 5, 7
RNG = np.random.default_rng(0)
VALID_BS = RNG.random((B, S)) < 0.6
# Hides everything from query 0 of row 0, and from all queries of row 1.
DEAD_BS = np.array([[False, True, True, False, True, True, True], [False] * S])
Q, J = np.arange(T)[None, :, None], np.arange(S)[None, None, :]


class Layer:
    """A module with random parameters, biases included, and what the reference reads of its config."""

    def __init__(self, position: str = "none", H: int = 6, G: int = 2, **choices: Any):
        self.position, rng = position, np.random.default_rng(3)
        self.scale, self.soft_cap = choices.get("scale", 0.0), choices.get("soft_cap", 0.0)
        self.edits = choices.get("edits", "none")
        config = AttentionConfig(width=13, num_heads=H, head_width=4, num_kv_heads=G, **choices)
        self.module = nnx.eval_shape(lambda: MultiHeadAttention(config, rngs=nnx.Rngs(0)))
        self.params = reference.random_params(nnx.to_pure_dict(nnx.state(self.module, nnx.Param)), rng)
        nnx.update(self.module, self.params)
        self.x_BTD, self.y_BSD = (rng.standard_normal((B, n, 13)).astype(np.float32) for n in (T, S))
        self.positions_BT, self.positions_BS = rng.integers(0, 17, (B, T)), rng.integers(0, 17, (B, S))

    def rotation(self, positions: np.ndarray) -> Rotation | None:
        return parse_position(self.position)(13, 4, 17, nnx.Rngs(0)).rotation(positions)


@pytest.mark.parametrize(
    ("choices", "position", "bias"),
    [
        ({"edits": "qk_norm"}, "rope", "none"),
        ({"scale": 1.7, "sinks": True}, "none", "t5(buckets=8, max_distance=7)"),
        ({"soft_cap": 0.8, "sinks": True}, "rope(fraction=0.5)", "fire(3, length=2.0)"),
    ],
)
def test_cross_attention_is_the_reference(choices: dict[str, Any], position: str, bias: str) -> None:
    """Mask and bias speak of T queries and S keys, each side has its own positions."""
    layer = Layer(position, use_bias=True, **choices)
    gate_H = np.array([1, 0.5, -1, 0, 2, 1], np.float32)
    mask, allowed_BTS = causal() | padding(jnp.array(VALID_BS)), (Q >= J) | VALID_BS[:, None]
    holder = parse_bias(bias)(6, nnx.Rngs(0))
    numbers = reference.random_params(nnx.to_pure_dict(nnx.state(holder, nnx.Param)), np.random.default_rng(7))
    nnx.update(holder, numbers)

    @jax.jit
    def cross(x_BTD: jax.Array, y_BSD: jax.Array, positions_BT: jax.Array, positions_BS: jax.Array) -> jax.Array:
        turns = {"rotation": layer.rotation(positions_BT), "context_rotation": layer.rotation(positions_BS)}
        gate = jnp.array(gate_H)
        return layer.module(x_BTD, mask, bias=holder(), context_BSD=y_BSD, tap=gated(gate), **turns)[0]

    got = cross(layer.x_BTD, layer.y_BSD, layer.positions_BT, layer.positions_BS)
    bias_HTS = reference.bias_array(bias, numbers, 6, np.arange(T), np.arange(S))
    for b in range(B):
        x_TD, y_SD, places = layer.x_BTD[b], layer.y_BSD[b], (layer.positions_BT[b], layer.positions_BS[b])
        expected = reference.attention_layer(layer.params, layer, x_TD, y_SD, allowed_BTS[b], places, gate_H, bias_HTS)
        np.testing.assert_allclose(got[b], expected.o_TD, rtol=1e-5, atol=1e-5)


def gated(gate_H: jax.Array) -> Taps:
    return Taps({"heads": head_gates(gate_H[None])})


def test_a_gate_of_zero_is_a_head_that_is_not_there() -> None:
    """Multi-head attention with head 1 cut out of every kernel gives what the gate gives."""
    whole, pruned = Layer(H=3, G=3, use_bias=True), Layer(H=2, G=2, use_bias=True)
    for name, axis in (("query", 1), ("key", 1), ("value", 1), ("output", 0)):
        pruned.params[name]["kernel"] = np.delete(whole.params[name]["kernel"], 1, axis)
        bias = whole.params[name]["bias"]
        pruned.params[name]["bias"] = bias if name == "output" else np.delete(bias, 1, 0)
    nnx.update(pruned.module, pruned.params)
    call = jax.jit(lambda x_BTD, gate_H: whole.module(x_BTD, causal(), tap=gated(gate_H))[0])
    pruned_BTD, plain = call(whole.x_BTD, np.array([1.0, 0.0, 1.0])), call(whole.x_BTD, np.ones(3))
    expected = jax.jit(lambda x_BTD: pruned.module(x_BTD, causal())[0])(whole.x_BTD)
    np.testing.assert_allclose(pruned_BTD, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(pruned_BTD - plain).max() > 1e-2


@pytest.mark.parametrize("core", ["dense", "auto"])
@pytest.mark.parametrize("sinks", [False, True])
def test_weights_are_the_matrix_of_the_reference_over_several_slabs(sinks: bool, core: str) -> None:
    """T = 5 places are read off in slabs of K = 4 columns; a query without a key has zeros; each head its own mask."""
    layer = Layer("rope", sinks=sinks, soft_cap=2.0, core=core)
    heads_HTT = np.random.default_rng(1).random((6, T, T)) < 0.8
    mask = causal() & padding(jnp.array(DEAD_BS[:, :T])) & explicit(jnp.array(heads_HTT)[None])
    allowed_BHTT = ((Q >= J[..., :T]) & DEAD_BS[:, None, :T])[:, None] & heads_HTT
    bias_HTT = np.random.default_rng(2).standard_normal((6, T, T)).astype(np.float32)

    @jax.jit
    def weights(x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        rotation = layer.rotation(positions_BT)
        taps = Taps({"weights": Hook(lambda state, number, looked: (state, looked, looked.weights()))})
        layer.module(x_BTD, mask, bias=ExplicitBias(jnp.array(bias_HTT)[None]), rotation=rotation, tap=taps)
        return taps.found["weights"]

    got = np.asarray(weights(layer.x_BTD, layer.positions_BT))
    assert got.shape == (B, 6, T, T)
    alive = allowed_BHTT.any(-1)
    assert not got[~alive].any()
    assert not alive.all()
    for b in range(B):
        x_TD, places = layer.x_BTD[b], (layer.positions_BT[b],) * 2
        for h in range(6):
            rest = layer.params, layer, x_TD, x_TD, allowed_BHTT[b, h], places, np.ones(6), bias_HTT
            expected_TT = reference.attention_layer(*rest).weights_HTS[h]
            np.testing.assert_allclose(got[b, h], expected_TT, rtol=1e-5, atol=1e-6)
    assert np.all(got.sum(-1)[alive] < 1 - 1e-3) if sinks else np.allclose(got.sum(-1)[alive], 1)


def test_the_cache_is_written_at_each_rows_own_positions() -> None:
    layer = Layer()
    positions_BT = np.array([[3, 4, 5, 1, 0], [6, 2, 3, 4, 5]])
    cache = KVCache(*np.full((2, B, S, 2, 4), 9, np.float32))
    decode = jax.jit(lambda x_BTD, cache, positions_BT: layer.module.decode(x_BTD, causal(), cache, positions_BT))
    _, (_, written) = decode(layer.x_BTD, cache, positions_BT)
    for name, array in (("key", written.k_BSGK), ("value", written.v_BSGK)):
        for b in range(B):
            expected = np.full((S, 2, 4), 9.0)
            for t in range(T):
                expected[positions_BT[b, t]] = np.einsum("d,dgk->gk", layer.x_BTD[b, t], layer.params[name]["kernel"])
            np.testing.assert_allclose(array[b], expected, rtol=1e-5, atol=1e-5)


def test_dropout_falls_on_the_weights_and_only_with_keys() -> None:
    """The module's draw depends on the key of a row alone, and keeps the mean."""
    layer, rate = Layer(dropout=0.4), 0.4
    call = jax.jit(lambda x_BTD, keys_B: layer.module(x_BTD, full(), dropout_keys_B=keys_B)[0])
    plain = call(layer.x_BTD, None)
    np.testing.assert_array_equal(plain, jax.jit(lambda x_BTD: Layer().module(x_BTD, full())[0])(layer.x_BTD))
    keys_B = jax.random.split(jax.random.key(0), B)
    dropped = call(layer.x_BTD, keys_B)
    assert np.abs(dropped - plain).max() > 1e-2
    np.testing.assert_allclose(call(layer.x_BTD[::-1], keys_B[::-1])[::-1], dropped, rtol=1e-5, atol=1e-6)
    many = jax.random.split(jax.random.key(1), (2000, B))
    outputs = jax.jit(jax.vmap(lambda keys_B: call(layer.x_BTD, keys_B)))(many)
    error = outputs.std(0) / len(many) ** 0.5
    assert np.abs((outputs.mean(0) - plain) / error).max() < 5
    assert Layer(dropout=rate).module.scores(full(), None, keys_B).dropout.rate == rate
    assert Layer(dropout=rate).module.scores(full()).dropout is None


def test_auto_chooses_a_core_of_the_table_and_attend_calls_it() -> None:
    q, k, v = (jnp.asarray(RNG.standard_normal((B, T, H, 3)), jnp.float32) for H in (4, 2, 2))
    scores = Scores(causal(), 0.5)
    choice = select_core("auto", Request.of(q, k, v, scores))
    assert choice.call is CORES[choice.name].call
    np.testing.assert_array_equal(attend("auto", q, k, v, scores), choice.call(q, k, v, scores))
    np.testing.assert_allclose(attend("dense", q, k, v, scores), choice.call(q, k, v, scores), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "bias", "sentence"),
    [
        (padding(jnp.ones((B, S), bool)), None, "a mask made for 2 x 7 (keys) cannot serve 2 x 5; make it for"),
        (causal() & explicit(jnp.ones((1, 4, T, T), bool)), None, "a mask made for 1 x 4 x 5 x 5"),
        (full(), ExplicitBias(jnp.ones((1, 1, T, S))), "a bias made for 1 x 1 x 5 x 7"),
        (full(), ExplicitBias(jnp.ones((1, 4, T, T))), "a bias made for 1 x 4 x 5 x 5"),
        (full(), ExplicitBias(jnp.ones((T, T))), "a bias made for 5 x 5"),
    ],
)
def test_masks_and_biases_of_other_sizes_are_refused(mask: Mask, bias: Any, sentence: str) -> None:
    layer = Layer()
    with pytest.raises(UserError) as error:
        layer.module(layer.x_BTD, mask, bias=bias)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"num_kv_heads": 5}, "--config.model.num_kv_heads=5 does not divide --config.model.num_heads=6."),
        ({"num_kv_heads": -2}, "--config.model.num_kv_heads=-2 "),
        (
            {"scale": -0.5},
            "--config.model.scale=-0.5 must be at least 1e-06 and at most 1e+06, or 0 for 1/sqrt(head width).",
        ),
        ({"soft_cap": -0.5}, "--config.model.soft_cap=-0.5 must be at least 1e-06 and at most 1e+06, or 0 for none."),
        ({"core": "sparse"}, f"--config.model.core='sparse' is not one of: {', '.join(['auto', *CORES])}."),
    ],
)
def test_bad_choices_are_refused_in_one_sentence(choices: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        AttentionConfig(width=13, num_heads=6, head_width=4, **choices)
    assert str(error.value).startswith(sentence)
