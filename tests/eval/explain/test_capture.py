"""What is seen and set at sites, for every family that has them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.explain.capture import capture, capture_parts, intervene, mean, noise, put, sizes, whole, zero
from eval.explain.sites import MEANINGS, layers_of, listed
from launch.configs import load
from model import UserError
from model.families.encoder_decoder import Pairs
from model.families.table import FAMILIES
from model.inspection import attention_weights
from model.taps import Hook, Taps, head_gates
from tests.tiers import tiered
from train.experiment import make_model_config

B, T, V, L = 2, 7, 19, 3
TASK = {"next_token": "language_model", "token": "masked_lm", "target": "translation"}
FAMILY = tiered([(name,) for name in FAMILIES], lambda name: name == "gpt")


@functools.cache
def made(family: str, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A model, and two inputs of it."""
    keys = {"family": family, "task": TASK[FAMILIES[family].HEADS[0]], "model.num_layers": L, "model.width": 24}
    config = make_model_config(load("base", **keys, **{"data.length": T}, **changes), V)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, V, (B, T), np.int32) for _ in range(4)]
    if "target" in config.HEADS:
        one, two = ({"pairs": Pairs(*map(jnp.asarray, pair))} for pair in (texts[:2], texts[2:]))
    else:
        one, two = ({"tokens_BT": jnp.asarray(text)} for text in texts[:2])
    return config.build(nnx.Rngs(0)), one, two


@pytest.mark.parametrize("family", FAMILY)
def test_what_is_captured_is_what_the_model_has(family: str) -> None:
    """All sites by both names, and the same vectors, bit for bit, as when nobody looks."""
    model, one, _ = made(family)
    known = layers_of(model, **one)
    names = [name for name, _ in listed(model, **one)]
    assert {site.rpartition(".")[2] for site in known} <= {*MEANINGS}
    found, of_all = capture(model, names, **one), capture(model, list(known), **one)
    for site, count in known.items():
        each = [found[name] for name in names if "".join(c for c in name if not c.isdigit()).replace("..", ".") == site]
        assert len(each) == max(count, 1)
        np.testing.assert_array_equal(np.stack(each) if count else each[0], of_all[site], err_msg=site)
    behind = getattr(model, "transform", None) or (lambda x_BTD: x_BTD)
    np.testing.assert_allclose(behind(of_all["vectors"]), jax.jit(lambda: model.vectors(**one))(), rtol=1e-5, atol=1e-6)
    embedding = "encoder.embedding" if "encoder.embedding" in known else "embedding"
    if embedding in known:
        text = one["pairs"].sources_BS if "pairs" in one else one["tokens_BT"]
        np.testing.assert_array_equal(of_all[embedding], model.embed(text))
    for name, weights in attention_weights(model, **one).items():
        np.testing.assert_allclose(of_all[f"{name}.weights"], weights, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


CYCLE = {"model.mask": "(causal & window(3)) + causal", "model.unroll": 1}


@pytest.mark.parametrize(
    "changes", tiered([({},), (CYCLE,), ({"model.unroll": L},)], lambda one: one == CYCLE), ids=str
)
def test_layers_are_told_apart_however_they_run(changes: dict[str, Any]) -> None:
    model, one, _ = made("gpt", **changes)
    found = capture(model, ["stack.residual", "stack.attention_norm.input", "stack.2.residual"], layers=[2, 0], **one)
    inputs = capture(model, ["stack.attention_norm.input", "embedding", "norm.input"], **one)
    np.testing.assert_array_equal(found["stack.residual"][1], inputs["stack.attention_norm.input"][1])
    np.testing.assert_array_equal(found["stack.residual"][0], inputs["norm.input"])
    np.testing.assert_array_equal(found["stack.2.residual"], inputs["norm.input"])
    chosen = inputs["stack.attention_norm.input"][np.array([2, 0])]
    np.testing.assert_array_equal(found["stack.attention_norm.input"], chosen)
    halves = capture(model, ["stack.attention.weights"], layers=[1], reduce=lambda looked: looked.mean(), **one)
    whole_LBHTS = capture(model, ["stack.attention.weights"], **one)["stack.attention.weights"]
    np.testing.assert_allclose(halves["stack.attention.weights"], whole_LBHTS[1:2].mean(2), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILY)
def test_what_is_set_arrives_and_is_counted(family: str) -> None:
    """With all that another input has behind the last layer, the model says what it says of that."""
    model, one, two = made(family)
    known = layers_of(model, **one)
    last = f"{'decoder' if 'pairs' in one else 'stack'}.residual"
    site = last.replace(".", f".{L - 1}.") if last in known else "vectors"
    other = capture(model, [site], **two)[site]
    said, changed = intervene(model, {site: put(other)}, **one)
    np.testing.assert_allclose(said, model(**two), rtol=1e-5, atol=1e-5)
    assert changed == {site: B * T * 24}
    same, changed = intervene(model, {site: put(capture(model, [site], **one)[site])}, **one)
    np.testing.assert_allclose(same, model(**one), rtol=1e-6, atol=1e-6)
    assert changed == {site: 0}


def test_weights_and_heads_are_set_in_their_layer() -> None:
    model, one, _ = made("gpt")
    gates_LH = jnp.ones((L, 4)).at[1].set(0)
    said, changed = intervene(model, {"stack.1.attention.heads": zero}, **one)
    gated = model(**one, taps=Taps({"stack.attention.heads": head_gates(gates_LH)}))
    np.testing.assert_allclose(said, gated, atol=1e-6)
    assert changed == {"stack.1.attention.heads": B * T * 24}
    # Weights of nothing take nothing; those of one key take its value.
    np.testing.assert_allclose(intervene(model, {"stack.1.attention.weights": zero}, **one)[0], said, atol=1e-5)
    first = jnp.zeros((B, 4, T, T)).at[..., 0].set(1)
    value_BSGK = capture(model, ["stack.0.attention.value"], **one)["stack.0.attention.value"]
    taken = jnp.repeat(value_BSGK[:, :1], T, axis=1)
    by_weights, _ = intervene(model, {"stack.0.attention.weights": put(first)}, **one)
    by_heads, _ = intervene(model, {"stack.0.attention.heads": put(taken)}, **one)
    np.testing.assert_allclose(by_weights, by_heads, rtol=1e-4, atol=1e-5)


@pytest.mark.rest
def test_means_and_noise_change_what_is_said() -> None:
    model, one, _ = made("gpt")
    plain = model(**one)
    for change in (mean(), noise(jax.random.key(0), 0.1)):
        for site in ("stack.0.residual", "stack.0.attention.weights", "embedding"):
            said, changed = intervene(model, {site: change}, **one)
            assert np.abs(said - plain).max() > 1e-4
            assert changed[site] > 0
    both = {"stack.residual": noise(jax.random.key(0), 0.1), "stack.1.residual": zero}
    changed = intervene(model, both, **one)[1]
    assert changed["stack.1.residual"] == B * T * 24  # its own, whatever came before
    assert changed["stack.residual"] > 0.9 * L * B * T * 24
    assert intervene(model, {"stack.residual": noise(jax.random.key(0), 0.0)}, **one)[1] == {"stack.residual": 0}
    x = jnp.ones((50, 20, 3))
    drawn = [np.asarray(noise(jax.random.key(0), 0.2)(x, number)) - 1 for number in (0, 1)]
    assert [one.std() for one in drawn] == pytest.approx([0.2, 0.2], rel=0.05)
    assert abs(np.corrcoef(drawn[0].ravel(), drawn[1].ravel())[0, 1]) < 0.1  # each layer has its own


def test_the_mean_is_of_tokens_alone() -> None:
    """Another token at padding changes nothing."""
    model, one, _ = made("bert")
    valid_BT = jnp.arange(T)[None] < jnp.array([[T], [T - 2]])
    said = []
    for token in (0, 5):
        given = {"tokens_BT": one["tokens_BT"].at[1, T - 2 :].set(token), "valid_BT": valid_BT}
        found, _ = intervene(model, {"embedding": mean(valid_BT)}, **given)
        said.append(np.where(valid_BT[..., None], found, 0))
    np.testing.assert_allclose(said[0], said[1], atol=1e-5)


@pytest.mark.rest
def test_gradients_pass_through_what_is_set() -> None:
    """That by weights is the value's share: d o / d w = v."""
    model, one, _ = made("gpt")
    weights = capture(model, ["stack.1.attention.weights"], **one)["stack.1.attention.weights"]

    def said(more: jax.Array) -> jax.Array:
        return intervene_sum(model, one, weights + more)

    along = jax.random.normal(jax.random.key(1), weights.shape) * jnp.tril(jnp.ones((1, 1, T, T)))
    slope = jnp.vdot(jax.grad(said)(jnp.zeros_like(weights)), along)
    step = 1e-2
    np.testing.assert_allclose((said(step * along) - said(-step * along)) / (2 * step), slope, rtol=1e-2)


def intervene_sum(model: Any, one: Any, weights: jax.Array) -> jax.Array:
    def call(state: Any, number: Any, looked: Any) -> tuple[Any, Any, None]:
        there = looked.with_weights(jnp.where(number == 1, weights, whole(looked)))
        return state, there, None

    return jnp.sum(jnp.sin(model(**one, taps=Taps({"stack.attention.weights": Hook(call)}))))


@pytest.mark.rest
def test_half_precision_and_a_budget() -> None:
    model, one, _ = made("gpt", **{"model.dtype": "bfloat16"})
    names = ["stack.attention.weights", "vectors"]
    found = capture(model, names, **one)
    np.testing.assert_array_equal(found["vectors"], jax.jit(lambda: model.vectors(**one))())
    means = capture(model, names[:1], reduce=lambda looked: looked.mean(), **one)[names[0]]
    assert means.dtype == jnp.float32  # so that what comes of it is of the model, and not of this mean
    np.testing.assert_allclose(means, found[names[0]].astype(jnp.float32).mean(2), rtol=1e-5)
    size = L * B * 4 * T * T * 2
    with pytest.raises(UserError, match=rf"^stack.attention.weights takes {size:,} bytes of the {size:,} that"):
        capture(model, names[:1], budget=size - 1, **one)
    assert capture(model, names[:1], layers=[1], budget=size // 3, **one)[names[0]].shape == (1, B, 4, T, T)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "stack.0.atention.weights",
            "there is no site stack.0.atention.weights; the nearest is stack.0.attention.w",
        ),
        ("embeding", "there is no site embeding; the nearest is embedding, and eval.explain.sites.listed has all."),
        ("stack.3.residual", "stack.3.residual has layers 0 to 2, and 3 is none of them; take one that is."),
        ("embedding.0", "there is no site embedding.0; the nearest is embedding"),
        ("stack.residual.1", "there is no site stack.residual.1; the nearest is stack.residual"),
    ],
)
def test_what_there_is_not_is_refused(name: str, sentence: str) -> None:
    model, one, _ = made("gpt")
    with pytest.raises(UserError, match=r"^layers=\[\] names none; leave it out for all"):
        capture(model, ["stack.residual"], layers=[], **one)
    for call in (lambda: capture(model, [name], **one), lambda: intervene(model, {name: zero}, **one)):
        with pytest.raises(UserError) as refused:
            call()
        assert str(refused.value).startswith(sentence)


def test_a_site_that_is_shown_is_of_layer_0() -> None:
    taps = Taps({"x": Hook(lambda state, number, value: (state + number + 1, value, value), 10)})
    taps.shown("x", jnp.ones(3))
    assert taps.states == {"x": 11}
    assert taps.found["x"].tolist() == [[1, 1, 1]]


def test_what_can_only_be_read_is_not_set() -> None:
    """Of a loop over time, the weights of all times are known when it is done: to change them would change nothing."""
    model, one, _ = made("recurrent_encoder_decoder")
    with pytest.raises(UserError, match=r"^decoder\.cross\.weights of this model can only be read"):
        intervene(model, {"decoder.0.cross.weights": zero}, **one)


@pytest.mark.rest
def test_more_than_the_budget_comes_in_parts() -> None:
    """First site by site, then layer by layer; what comes is the same, and nothing is left out."""
    model, one, _ = made("gpt")
    names = ["stack.attention.weights", "stack.residual", "stack.1.mlp.output", "embedding"]
    want, bytes_of = capture(model, names, **one), sizes(model, names, **one)
    assert bytes_of == {name: x.nbytes for name, x in want.items()}
    for budget in (sum(bytes_of.values()) - 1, max(bytes_of.values()) - 1):
        found = dict(capture_parts(model, names, budget=budget, **one))
        for name, x in want.items():
            layers = [f"stack.{layer}.{name.partition('.')[2]}" for layer in range(L)]
            parts = [name] if bytes_of[name] <= budget else layers
            got = found.pop(parts[0]) if parts == [name] else np.stack([found.pop(part) for part in parts])
            np.testing.assert_array_equal(got, x, err_msg=name)
        assert not found
    with pytest.raises(UserError, match=r"^stack.residual takes .* and the budget is 7"):
        list(capture_parts(model, names[1:2], budget=7, **one))


def test_what_is_not_come_by_was_not_set() -> None:
    model, one, _ = made("encoder_decoder")
    with pytest.raises(UserError, match=r"^decoder.0.residual was not come by, so nothing was set there"):
        intervene(model, {"decoder.0.residual": zero}, call=model.encode, **one)
