"""Edits around the core: against NumPy's plain loop over layers, and what they promise beside numbers."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPT, GPTConfig, UserError
from model.attention import AttentionConfig, Edit, MultiHeadAttention, causal, edit, parse_edits
from model.attention.edits.base import nothing_handed
from model.attention.edits.exclusive import Exclusive
from model.attention.edits.output_gate import OutputGate
from model.attention.edits.qk_norm import QKNorm, qk_norm
from model.attention.edits.value_residual import ValueResidual
from model.cycles import cycle
from tests.model import reference
from tests.model.test_cycles import assert_is_the_plain_loop
from tests.model.test_gpt import EDITED, SIZES, B, G, K, T, compiled, leaves, model
from tests.tiers import tiered

SHARED = "(value_residual & qk_norm & give_kv) + 2 * (qk_norm & take_kv)"
# How each of EDITED is run, in turn: every edit, and no edit with every core and loop.
RUNS: list[dict[str, Any]] = [
    {"core": "dense", "remat": "full"},
    {"core": "blockwise", "num_kv_heads": 1},
    {"core": "blockwise", "unroll": 5, "remat": "dots", "norm_place": "post"},
    {"core": "dense", "unroll": 2, "num_kv_heads": 0},
]
CASES = [(text, RUNS[n % len(RUNS)]) for n, text in enumerate(EDITED)] + [
    (SHARED, {"core": "blockwise", "remat": "dots"}),
    # Windows of other lengths on the same keys, which are turned; and a layer between that has its own.
    ("give_kv + none + take_kv", {"mask": "(causal & window(4)) + strided(3) + causal"}),
    ("none + (output_gate & exclusive & value_residual)", {"mask": "(causal & window(4)) + causal", "unroll": 2}),
    # Equal neighbours of which one keeps what its window sees, and the other all.
    ("2 * give_kv + 3 * take_kv", {"remat": "full", "sinks": True, "mask": "causal & window(4)"}),
]


@pytest.mark.parametrize(("text", "run"), tiered(CASES, lambda text, run: text == SHARED), ids=str)
def test_edits_are_the_plain_loop(text: str, run: dict[str, Any]) -> None:
    assert_is_the_plain_loop(model(**{"num_layers": 5 if "+" in text else 3, "edits": text, **run}))


@pytest.mark.rest
@pytest.mark.parametrize("text", EDITED[1:])
def test_half_precision_stays_close(text: str) -> None:
    m = model(dtype="bfloat16", edits=text)
    run = jax.value_and_grad(lambda p: jnp.mean(m.merge(p)(m.tokens_BT) ** 2))
    logits_BTV = compiled(lambda p: m.merge(p)(m.tokens_BT))(m.params)
    expected = reference.gpt(m.params, m.config, m.tokens_BT).logits_BTV
    assert 1e-5 < np.abs(logits_BTV - expected).max() / np.abs(expected).max() < 0.06
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(compiled(run)(m.params)))


@pytest.mark.rest
def test_a_value_residual_of_zero_begins_as_if_it_were_not_there() -> None:
    """Bit for bit, and it learns; one of a half does not."""
    tokens_BT = model().tokens_BT

    def first(text: str) -> tuple[np.ndarray, Any]:
        gpt = GPT(GPTConfig(**SIZES, edits=text), rngs=nnx.Rngs(0))
        run = compiled(nnx.value_and_grad(lambda gpt: jnp.sum(jnp.sin(gpt(tokens_BT))), has_aux=False))
        return run(gpt)

    (plain, _), (zero, gradient), (half, _) = map(first, ("none", "value_residual(0.0)", "value_residual"))
    assert plain == zero != half
    mixes_L = np.asarray(gradient["stack"]["blocks"]["attention"]["value_residual"]["mix"][...])
    assert mixes_L[0] == 0
    assert np.all(mixes_L[1:] != 0)


@pytest.mark.parametrize("per", ["channel", "head"])
def test_a_gate_is_a_sigmoid_of_x_for_each_channel_or_head(per: str) -> None:
    layer, rng = OutputGate(attention(), nnx.Rngs(0), per=per), np.random.default_rng(0)
    o_BTHK, x_BTD = (jnp.asarray(rng.standard_normal(size), jnp.float32) for size in ((B, T, 6, K), (B, T, 24)))
    logits = np.tensordot(np.float64(x_BTD), np.float64(layer.gate.kernel[...]), 1)
    gates = 1 / (1 + np.exp(-logits)).reshape(B, T, 6, -1)
    assert gates.shape[-1] == (K if per == "channel" else 1)
    np.testing.assert_allclose(layer.after(o_BTHK, o_BTHK, x_BTD), o_BTHK * gates, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("over", ["head", "all"])
def test_queries_and_keys_are_normalised_with_scales_and_the_epsilon_of_their_own(over: str) -> None:
    layer, rng = QKNorm(attention(), nnx.Rngs(0), norm="rms", over=over, epsilon=0.5), np.random.default_rng(0)
    for norm in (layer.query, layer.key):
        norm.scale[...] = jnp.asarray(rng.standard_normal(norm.scale.shape), jnp.float32)
    given = [jnp.asarray(rng.standard_normal((B, T, heads, K)), jnp.float32) for heads in (6, G)]
    found = layer.before(given[0], given[1], given[1], jnp.zeros((B, T, 24)), {})[:2]
    for x, y, norm in zip(given, found, (layer.query, layer.key), strict=True):
        rows = np.float64(x).reshape(B, T, *((-1, K) if over == "head" else (1, -1)))
        wanted = rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 0.5) * np.float64(norm.scale[...])
        np.testing.assert_allclose(y, wanted.reshape(x.shape), rtol=1e-5, atol=1e-6)


class Plus(Edit):
    """Adds one, where it may."""

    def before(self, q_BTHK: Any, k_BSGK: Any, v_BSGK: Any, x_BTD: Any, handed: Any) -> Any:
        return q_BTHK + 1, k_BSGK + 1, v_BSGK + 1, handed

    def after(self, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array) -> jax.Array:
        return o_BTHK + 1


class Twice(Edit):
    """Doubles, where it may."""

    def before(self, q_BTHK: Any, k_BSGK: Any, v_BSGK: Any, x_BTD: Any, handed: Any) -> Any:
        return 2 * q_BTHK, 2 * k_BSGK, 2 * v_BSGK, handed

    def after(self, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array) -> jax.Array:
        return 2 * o_BTHK


def test_edits_act_in_their_order_before_and_after_the_core() -> None:
    layer = SimpleNamespace(plus=Plus(attention(), nnx.Rngs(0)), twice=Twice(attention(), nnx.Rngs(0)))
    one, (plus, twice) = jnp.ones((1, 1, 1, 1)), (edit("plus", Plus), edit("twice", Twice))
    for edits, wanted in ((plus & twice, 4), (twice & plus, 3)):
        *found, _ = edits.before(layer, one, one, one, one, {})
        assert [float(x.item()) for x in (*found, edits.after(layer, one, one, one))] == 4 * [wanted]


def test_every_later_layer_mixes_with_the_values_of_the_first_as_it_made_them() -> None:
    """By hand, for layers in a row: what one has mixed is not what the next one gets."""
    config = attention(edits="value_residual(0.25)")
    layer, rng = ValueResidual(config, nnx.Rngs(0), mix=0.25), np.random.default_rng(0)
    q_BTHK, x_BTD = jnp.zeros((B, T, 6, K)), jnp.zeros((B, T, 24))
    values = [jnp.asarray(rng.standard_normal((B, T, G, K)), jnp.float32) for _ in range(4)]
    handed = nothing_handed([config.edited], config, x_BTD)
    for v_BTGK in values:
        _, _, mixed_BTGK, handed = layer.before(q_BTHK, v_BTGK, v_BTGK, x_BTD, handed)
        np.testing.assert_allclose(mixed_BTGK, 0.75 * v_BTGK + 0.25 * values[0], rtol=1e-5, atol=1e-6)


def test_what_is_exclusive_is_orthogonal_to_the_tokens_own_value() -> None:
    """And a value of zero takes nothing, and has a gradient."""
    layer = Exclusive(attention(), nnx.Rngs(0))
    rng = np.random.default_rng(0)
    o_BTHK, v_BTGK = (jnp.asarray(rng.standard_normal((B, T, heads, K)), jnp.float32) for heads in (6, G))
    v_BTGK = v_BTGK.at[1].set(0)
    x_BTD = jnp.zeros((B, T, 24))
    left_BTHK = layer.after(o_BTHK, v_BTGK, x_BTD)
    assert np.abs(jnp.einsum("bthk,bthk->bth", left_BTHK, jnp.repeat(v_BTGK, 3, axis=2))).max() < 1e-5
    np.testing.assert_array_equal(left_BTHK[1], o_BTHK[1])
    gradient = jax.grad(lambda v_BTGK: jnp.sum(jnp.sin(layer.after(o_BTHK, v_BTGK, x_BTD))))(v_BTGK)
    assert np.isfinite(gradient).all()


def attention(**choices: Any) -> AttentionConfig:
    return AttentionConfig(**{"width": 24, "num_heads": 6, "num_kv_heads": G, "head_width": K} | choices)


def test_what_is_shared_is_there_once() -> None:
    """Projections, norms of keys and caches, which keep all positions: of the producers, whoever looks back how far."""
    m = model(edits="2 * (qk_norm & give_kv) + 2 * (qk_norm & take_kv)", num_layers=7, mask="causal & window(2)")
    found = m.params["stack"]["blocks"]["attention"]
    shapes = {name: x.shape[0] for name, x in leaves(found)}
    assert {name: n for name, n in shapes.items() if n != 7} == {
        "['key']['kernel']": 4, "['value']['kernel']": 4, "['qk_norm']['key']['scale']": 4
    }  # fmt: skip
    cache = jax.eval_shape(lambda p: m.merge(p).init_cache(B, 17), m.params)
    assert [(type(one).__name__, one[0].shape) for one in cache.stacks] == [
        ("RollingCache", (2, B, 3, G, K)),  # of each first producer, whose keys nobody takes
        ("KVCache", (2, B, 17, G, K)),
    ]


def test_nothing_is_carried_where_nothing_is_handed_on() -> None:
    def carried(text: str) -> int:
        m = model(edits=text, num_layers=4)
        program = jax.make_jaxpr(lambda p: m.merge(p)(m.tokens_BT))(m.params).jaxpr
        scans = [equation for equation in program.eqns if equation.primitive.name == "scan"]
        # What a step leaves is what it carries, where the scan does not stack it.
        bodies = [zip(scan.outvars, scan.params["jaxpr"].jaxpr.outvars, strict=True) for scan in scans]
        return max(sum(out.aval.shape == left.aval.shape for out, left in body) for body in bodies)

    plain = carried("none")
    assert carried("exclusive") == plain
    assert carried("value_residual") > plain + 2  # and its number
    assert carried("give_kv + take_kv") == carried("none + exclusive") + 2


class Double(Edit):
    """Twice what the core has made."""

    def after(self, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array) -> jax.Array:
        return 2 * o_BTHK


def test_a_value_is_as_good_as_a_text_and_an_edit_may_stand_in_any_file() -> None:
    value, text = (model(edits=one, num_layers=4) for one in (qk_norm() & edit("double", Double), "qk_norm"))
    doubled = jax.tree.map(np.copy, text.params)
    doubled["stack"]["blocks"]["attention"]["output"]["kernel"] *= 2
    one, two = (
        compiled(lambda p, m=m: m.merge(p)(m.tokens_BT))(p) for m, p in ((value, value.params), (text, doubled))
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
    mixed = model(edits=3 * cycle(qk_norm()) + cycle(parse_edits("none")), num_layers=7)
    assert mixed.config.cycles["edits"] == mixed.config.cycles["edits"].shortest()
    assert str(mixed.config.cycles["edits"]) == "3 * qk_norm(norm=rms, over=head, epsilon=1e-06) + none"


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"edits": "qk_norm & qk_norm(layer)"}, "--config.model.edits has qk_norm twice in one layer; write it once."),
        ({"edits": "qknorm"}, "--config.model.edits='qknorm': there is no qknorm; the nearest is qk_norm(norm=rms, "),
        ({"edits": "qk_norm | exclusive"}, "--config.model.edits='qk_norm | exclusive' is not an expression of none, "),
        ({"edits": "qk_norm and exclusive"}, "--config.model.edits='qk_norm and exclusive': write & for and."),
        (
            {"edits": "output_gate(row)"},
            "--config.model.edits='output_gate(row)': per=row is not one of: channel, head",
        ),
        (
            {"edits": "value_residual(2.0)"},
            "--config.model.edits: value_residual's mix=2.0 must be at least 0 and at mo",
        ),
        (
            {"edits": "qk_norm(epsilon=0.0)"},
            "--config.model.edits: qk_norm's epsilon=0.0 must be at least 1e-12 and at",
        ),
        ({"edits": "take_kv"}, "--config.model.edits='take_kv': layer 1 of it takes keys and values that none before"),
        (
            {"edits": "take_kv + give_kv"},
            "--config.model.edits='take_kv + give_kv': layer 1 of it takes keys and values",
        ),
        (
            {"edits": "none + take_kv"},
            "--config.model.edits='none + take_kv': layer 2 of it takes keys and values that",
        ),
        (
            {"edits": "give_kv + (take_kv & value_residual)"},
            "--config.model.edits='take_kv & value_residual': value_residual changes values, and a layer with take_kv",
        ),
        (
            {"edits": "(give_kv & qk_norm) + take_kv"},
            "--config.model.edits='give_kv & qk_norm': give_kv gives what the others have made, and stands last; wr",
        ),
        (
            {"edits": "give_kv + take_kv", "position": "rope + none"},
            "--config.model.position='rope + none': layer 2 takes the keys of layer 1, which are turned by rope and n",
        ),
        (
            {"edits": "qk_norm + exclusive & give_kv"},
            "--config.model.edits='qk_norm + exclusive & give_kv': `+` and `n *",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_sentence(choices: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        model(num_layers=4, **choices)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("text", ["value_residual", "exclusive", "give_kv"])
def test_cross_attention_has_no_values_of_the_tokens_themselves(text: str) -> None:
    layer = MultiHeadAttention(attention(edits=f"qk_norm & {text}"), rngs=nnx.Rngs(0))
    x_BTD, y_BSD = jnp.ones((B, T, 24)), jnp.ones((B, T, 24))
    with pytest.raises(UserError, match=f": {text} needs keys and values of the tokens themselves, which cross-att"):
        layer(x_BTD, causal(), context_BSD=y_BSD)
    allowed = MultiHeadAttention(dataclasses.replace(layer.config, edits="qk_norm & output_gate"), rngs=nnx.Rngs(0))
    assert allowed(x_BTD, causal(), context_BSD=y_BSD)[1] == {}


def test_a_layer_alone_has_nobody_to_take_keys_from() -> None:
    layer = MultiHeadAttention(attention(edits="take_kv"), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="none are handed on to it"):
        layer(jnp.ones((B, T, 24)), causal())
