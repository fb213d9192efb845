"""Targets by hand, and gradients beside finite differences, for every family with every head."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.explain.methods.attention_gradient import read_places
from eval.explain.methods.gradients import gradient, gradient_x_input, smooth_gradient, value_and_gradient
from eval.explain.targets import Target, answering, checked, embedded, given, predicted
from model import UserError
from tests.eval.explain.bag import Bag, BagConfig
from tests.eval.explain.cases import KIND, B, T, V, case


@pytest.mark.parametrize("kind", KIND)
def test_the_gradient_is_the_slope(kind: str) -> None:
    """In one direction at all tokens at once; nothing at padding; the same for a row by itself."""
    model, inputs, target = case(kind)
    x = embedded(model, inputs)
    value = jax.jit(lambda x: target.value(model, inputs, given(x)))
    np.testing.assert_allclose(value(x), target.value(model, inputs), rtol=1e-5, atol=1e-5)
    value_B, slope = jax.jit(lambda x: value_and_gradient(model, inputs, target, x))(x)
    np.testing.assert_allclose(value_B, value(x), rtol=1e-5, atol=1e-5)
    rng = np.random.default_rng(1)
    along = {site: jnp.asarray(rng.standard_normal(one.shape), jnp.float32) for site, one in x.items()}
    step, shares = 3e-3, {2: -1, 1: 8, -1: -8, -2: 1}  # of the fourth order
    ends = [share * value({site: x[site] + at * step * along[site] for site in x}) for at, share in shares.items()]
    found_B = sum(jnp.sum(slope[site] * along[site], axis=(1, 2)) for site in x)
    np.testing.assert_allclose(found_B, sum(ends) / (12 * step), rtol=1e-3, atol=1e-3)
    maps = gradient_x_input(model, inputs, target), gradient(model, inputs, target)
    for site in x:
        np.testing.assert_allclose(maps[0][site], jnp.sum(slope[site] * x[site], axis=-1), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(maps[1][site], jnp.linalg.norm(slope[site], axis=-1), rtol=1e-4, atol=1e-6)
        assert not np.any(maps[1][site][1, T - 2 :])
        assert np.any(maps[1][site][1, : T - 2])


def test_targets_say_what_they_say() -> None:
    model, inputs, _ = case("gpt-language_model")
    logits_BTV = np.asarray(model(**inputs), np.float64)
    logs_BTV = logits_BTV - np.log(np.exp(logits_BTV).sum(-1, keepdims=True))
    places_BP, answers_BP = np.array([[1, 5], [0, 4], [2, 3]]), np.array([[3, 4], [5, 6], [0, V - 1]])
    rows = np.arange(B)[:, None]
    one = Target(jnp.asarray(places_BP), jnp.asarray(answers_BP))
    others = dataclasses.replace(one, against_BP=jnp.zeros((B, 2), jnp.int32))
    logs = dataclasses.replace(one, of_all=True)
    logits_BP, logs_BP = (x[rows, places_BP, answers_BP] for x in (logits_BTV, logs_BTV))
    against_B = (logits_BP - logits_BTV[rows, places_BP, 0]).sum(1)
    for target, value, probability in (
        (one, logits_BP.sum(1), np.exp(logs_BP.sum(1))),
        (others, against_B, 1 / (1 + np.exp(-against_B))),
        (logs, logs_BP.sum(1), np.exp(logs_BP.sum(1))),
    ):
        np.testing.assert_allclose(target.value(model, inputs), value, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(target.probability(model, inputs), probability, rtol=1e-4)
    np.testing.assert_array_equal(answering(inputs).sum(1), [T, T - 2, T])
    likeliest = predicted(model, inputs)
    np.testing.assert_array_equal(likeliest.places_BP[:, 0], [T - 1, T - 3, T - 1])
    np.testing.assert_array_equal(likeliest.answers_BP[:, 0], logits_BTV[rows[:, 0], [T - 1, T - 3, T - 1]].argmax(-1))
    np.testing.assert_array_equal(predicted(model, inputs, [1, 0, 2]).places_BP[:, 0], [1, 0, 2])
    labels = case("bert-classification")
    np.testing.assert_array_equal(predicted(*labels[:2]).answers_BP[:, 0], labels[0](**labels[1]).argmax(-1))
    told = predicted(*labels[:2], alone=True).probability(*labels[:2])
    np.testing.assert_allclose(told, 1 / (1 + np.exp(-np.asarray(labels[0](**labels[1])).max(-1))), rtol=1e-5)


def test_a_span_has_the_probability_of_its_places() -> None:
    """Among those that are allowed, and its row is read at both."""
    model, inputs, _ = case("bert-span_qa")
    allowed_BT, places_BP = np.asarray(inputs["valid_BT"]) & (np.arange(T) > 1), np.array([[2, 4], [3, 3], [4, 6]])
    span = Target(jnp.asarray(places_BP), jnp.tile(jnp.arange(2), (B, 1)), allowed_BT=jnp.asarray(allowed_BT))
    odds_BT2 = np.exp(np.asarray(model(**inputs), np.float64)) * allowed_BT[..., None]
    shares_BT2 = odds_BT2 / odds_BT2.sum(1, keepdims=True)
    want_B = shares_BT2[np.arange(B)[:, None], places_BP, np.arange(2)].prod(1)
    np.testing.assert_allclose(span.probability(model, inputs), want_B, rtol=1e-5)
    read_BT = np.zeros((B, T))
    np.add.at(read_BT, (np.arange(B)[:, None], places_BP), 0.5)
    np.testing.assert_array_equal(read_places(model, inputs, span), read_BT)


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        (
            "gpt-language_model",
            {"answers_BP": [[0], [V], [1]]},
            f"row 1 names answer {V}, and the model has {V}, from 0",
        ),
        ("gpt-language_model", {"against_BP": [[-1], [1], [1]]}, "row 0 names answer -1, and the model has"),
        ("gpt-language_model", {"places_BP": [[0], [T - 2], [1]]}, "row 1 names place 5, and its row has no token the"),
        ("gpt-language_model", {"places_BP": [[0], [1], [T]]}, "row 2 names place 7, and its row has no token there;"),
        (
            "bert-classification",
            {"answers_BP": [[0], [1], [5]]},
            "row 2 names answer 5, and the model has 5, from 0 on",
        ),
    ],
)
def test_a_target_that_there_is_not_is_refused(kind: str, changes: dict[str, Any], sentence: str) -> None:
    model, inputs, target = case(kind)
    assert checked(target, model, inputs) is target
    wrong = dataclasses.replace(target, **{name: jnp.asarray(value, jnp.int32) for name, value in changes.items()})
    with pytest.raises(UserError) as refused:
        checked(wrong, model, inputs)
    assert str(refused.value).startswith(f"the target of {sentence}")


@pytest.mark.rest
def test_noise_is_drawn_again_the_same() -> None:
    """Without noise it is the gradient; with little, near it; of another seed, another."""
    given_ = case("gpt-language_model")

    def smooth(**choices: Any) -> Any:
        return smooth_gradient(*given_, **choices)["embedding"]

    plain = gradient_x_input(*given_)["embedding"]
    np.testing.assert_allclose(smooth(draws=2, spread=0.0), plain, rtol=1e-4, atol=1e-6)
    one, again, other = (smooth(draws=2, spread=0.1, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3
    many = smooth(draws=400, spread=0.02)
    np.testing.assert_allclose(many, plain, atol=0.1 * np.abs(plain).max())
    for choices in ({"draws": 0}, {"spread": -1.0}):
        with pytest.raises(UserError, match="must be at least"):
            smooth(**choices)


class Squares(Bag):
    """The sum over tokens of (w . x)^2, whose gradient moves as the vectors do."""

    def __call__(self, tokens_BT: jax.Array, valid_BT: jax.Array | None = None, taps: Any = None) -> jax.Array:
        return jnp.sum((self.vectors(tokens_BT, valid_BT, taps) @ self.kernel[...]) ** 2, axis=1)


def test_noise_is_as_wide_as_the_numbers_of_an_example_are() -> None:
    """A map misses 2 (w . x) (w . noise) where the noise is `spread` times its own range of all rows' same draws: of
    tokens alone, whatever padding stands for.
    """
    model, rng, spread, n = Squares(BagConfig(), nnx.Rngs(0)), np.random.default_rng(0), 0.3, 211
    model.table[...] = model.table[...] * 1.3 ** jnp.arange(19)[:, None] + 20  # so that zeros are out of the range
    sizes_B, some_B = np.array([n, n - 50, n]), np.array([3, 7, 18])  # tokens of a row, and of the vocabulary in it
    valid_BT = np.arange(n) < sizes_B[:, None]
    tokens_BT = np.where(valid_BT, rng.integers(0, some_B[:, None], (3, n)), 18)
    target = Target(jnp.zeros((3, 1), jnp.int32), jnp.zeros((3, 1), jnp.int32))
    given_ = model, {"tokens_BT": jnp.asarray(tokens_BT), "valid_BT": jnp.asarray(valid_BT)}, target
    found_BT = np.asarray(smooth_gradient(*given_, draws=1, spread=spread)["embedding"], np.float64)
    w_D, x_BTD = np.asarray(model.kernel[...], np.float64)[:, 0], np.asarray(model.table[...], np.float64)[tokens_BT]
    said_BT = x_BTD @ w_D
    missed_BT = np.where(valid_BT, found_BT - 2 * said_BT**2, 0) / (2 * said_BT)
    ranges_B = [np.ptp(x_TD[real_T]) for x_TD, real_T in zip(x_BTD, valid_BT, strict=True)]
    noise_BT = missed_BT / np.array(ranges_B)[:, None]
    np.testing.assert_allclose(noise_BT[:2, : n - 50], noise_BT[[2, 2], : n - 50], rtol=1e-2, atol=1e-3)
    assert noise_BT[0].std() == pytest.approx(spread * np.linalg.norm(w_D), rel=0.1)


@pytest.mark.rest
def test_what_stands_at_padding_reaches_no_map() -> None:
    """Be it no token at all; and a row's map is that which it has by itself, in half precision as in single."""
    model, inputs, target = case("bert-classification")
    strange = inputs | {"tokens_BT": inputs["tokens_BT"].at[1, T - 2 :].set(-1)}
    half = case("bert-classification", **{"model.dtype": "bfloat16"})[0]
    for method in (gradient_x_input, gradient, lambda *given: smooth_gradient(*given, draws=3, spread=0.1)):
        one, other = (np.asarray(method(model, x, target)["embedding"]) for x in (inputs, strange))
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
        alone = method(model, *jax.tree.map(lambda x: x[1:2], (inputs, target)))["embedding"]
        np.testing.assert_allclose(alone[0], one[1], rtol=1e-4, atol=1e-5)
        found = method(half, inputs, target)["embedding"]
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, one, atol=0.1 * np.abs(one).max())
