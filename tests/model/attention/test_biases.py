"""Attention biases against NumPy: values, blocks on demand, gradients of what they learn, and their makers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import BIASES, Bias, ExplicitBias, Relative, parse_bias
from model.attention.biases.distance import Alibi, bucket
from model.attention.biases.modules import NoBias, alibi_slopes
from model.errors import UserError
from tests.model import reference

B, H, T, S = 2, 3, 11, 13
NAMED = [text for text in reference.BIASES if text != "none"]
PLACES_BT = np.array([[0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1], list(range(T))])  # of queries in packed documents


def holder(text: str) -> tuple[NoBias, Any]:
    """A module and its random parameters."""
    module = parse_bias(text)(H, nnx.Rngs(0))
    numbers = reference.random_params(nnx.to_pure_dict(nnx.state(module, nnx.Param)), np.random.default_rng(3))
    nnx.update(module, numbers)
    return module, numbers


def value(text: str, places_BT: np.ndarray | None = None) -> Bias:
    bias = holder(text)[0](None if places_BT is None else jnp.asarray(places_BT))
    assert bias is not None
    return bias


def expected(text: str, numbers: Any, places_BT: np.ndarray | None = None) -> np.ndarray:
    """(B or 1, H, T, S)."""
    rows = [None] if places_BT is None else places_BT
    return np.array([reference.bias_array(text, numbers, H, np.arange(T), np.arange(S), row) for row in rows])


@pytest.mark.parametrize("places_BT", [None, PLACES_BT], ids=["", "packed"])
@pytest.mark.parametrize("text", NAMED)
def test_every_bias_is_the_reference_in_every_block(text: str, places_BT: np.ndarray | None) -> None:
    """With known starts and traced ones; only FIRE asks where a query stands in its document."""
    bias, whole = value(text, places_BT), expected(text, holder(text)[1], places_BT)
    for i0, j0, rows, columns in ((0, 0, T, S), (3, 5, 5, 3), (7, 0, 2, 7), (10, 12, 1, 1)):
        part = whole[:, :, i0 : i0 + rows, j0 : j0 + columns]
        traced = jax.jit(lambda bias, i0, j0, size=(rows, columns): bias.block(i0, j0, *size))(bias, i0, j0)
        for block in (bias.block(i0, j0, rows, columns), traced):
            assert block.dtype == np.float32
            np.testing.assert_allclose(np.broadcast_to(block, part.shape), part, rtol=1e-5, atol=1e-6)
    assert (bias.block(0, 0, T, S).shape[0] == B) == (places_BT is not None and "fire" in text)


def kinds() -> dict[str, Bias]:
    found = {text: value(text) for text in NAMED} | {"fire, packed": value("fire(3, length=2.0)", PLACES_BT)}
    array_BHTS = np.random.default_rng(1).standard_normal((B, H, T, S)).astype(np.float32)
    shapes = {"rows": (B, 1), "heads": (1, H), "both": (B, H), "one": (1, 1)}
    return found | {name: ExplicitBias(jnp.array(array_BHTS[:b, :h])) for name, (b, h) in shapes.items()}


KINDS = kinds()
AT = jax.jit(lambda bias, i, j: bias.at(i, j))
BLOCK = jax.jit(lambda bias, i0, j0: bias.block(i0, j0, 5, 3))


@given(st.sampled_from(list(KINDS)), st.integers(0, T - 5), st.integers(0, S - 3))
@settings(max_examples=100)
def test_a_block_is_what_its_places_are(name: str, i0: int, j0: int) -> None:
    """In particular the Toeplitz blocks of relative biases, for any traced start."""
    i, j = i0 + np.arange(5)[None, None, :, None], j0 + np.arange(3)[None, None, None]
    block = BLOCK(KINDS[name], i0, j0)
    np.testing.assert_allclose(block, AT(KINDS[name], i, j), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_queries_may_be_anywhere_and_out_of_order(name: str) -> None:
    """As in cached decoding: each row has its own."""
    positions_BT = np.random.default_rng(0).integers(0, T, (B, 5))
    whole = np.broadcast_to(KINDS[name].block(0, 0, T, S), (B, H, T, S))
    got = AT(KINDS[name], positions_BT[:, None, :, None], np.arange(S)[None, None, None])
    rows = np.take_along_axis(whole, positions_BT[:, None, :, None], axis=2)
    np.testing.assert_allclose(np.broadcast_to(got, rows.shape), rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [text for text in NAMED if text != "alibi"])
def test_what_is_learned_gets_the_gradient_of_the_reference(text: str) -> None:
    """Through a block on demand, as cores ask for it: central differences in float64, number by number."""
    module, numbers = holder(text)
    graphdef = nnx.graphdef(module)
    weight_BHTS = np.random.default_rng(5).standard_normal((B, H, 5, 3)).astype(np.float32)

    def weighed(numbers: Any) -> float:
        whole = expected(text, numbers, PLACES_BT)
        return float((np.broadcast_to(whole, (B, H, T, S))[:, :, 3:8, 4:7] * weight_BHTS).sum())

    @jax.jit
    def gradient(numbers: Any, i0: jax.Array) -> Any:
        bias, back = jax.vjp(lambda numbers: nnx.merge(graphdef, numbers)(jnp.asarray(PLACES_BT)), numbers)
        block, pull = jax.vjp(lambda bias: bias.block(i0, 4, 5, 3), bias)
        return back(pull(weight_BHTS.sum(0, keepdims=True) if block.shape[0] == 1 else weight_BHTS)[0])[0]

    got = gradient(numbers, jnp.int32(3))
    assert got.keys() == numbers.keys()
    for name, leaf in numbers.items():
        for place in np.ndindex(leaf.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = np.array(leaf, np.float64)
                moved[place] += step
                ends.append(weighed({**{k: np.float64(v) for k, v in numbers.items()}, name: moved}))
            slope = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(got[name][place], slope, rtol=1e-3, atol=1e-3, err_msg=f"{name}{place}")
        assert np.any(np.asarray(got[name]) != 0), name


def test_distances_too_far_and_keys_ahead_have_the_buckets_of_t5() -> None:
    """The first and last distance of each of the 16 buckets that look back, for 32 buckets and 128 places."""
    firsts = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
    for number, (first, last) in enumerate(zip(firsts, [*(n - 1 for n in firsts[1:]), 10**6], strict=True)):
        for distance in (first, last):
            assert bucket(-distance, 32, 128, False) == number
            assert bucket(distance, 32, 128, False) == number + 16 * (distance > 0)
    assert [bucket(-n, 32, 128, True) for n in (0, 15, 16, 127, 128, 10**6)] == [0, 15, 16, 31, 31, 31]
    assert [bucket(n, 32, 128, True) for n in (0, 1, 7, 10**6)] == [0, 0, 0, 0]


@given(st.integers(-300, 300), st.integers(2, 20), st.integers(1, 200), st.booleans())
@settings(max_examples=300)
def test_buckets_are_the_references(distance: int, half: int, more: int, causal: bool) -> None:
    buckets, most = 2 * half, half + more
    assert bucket(distance, buckets, most, causal) == reference.t5_bucket(distance, buckets, most, not causal)


def test_borders_of_buckets_are_exact() -> None:
    """Where a quotient of logarithms is a whole number, which rounding may miss."""
    for distance, buckets, most in ((8, 9, 128), (16, 9, 128), (64, 9, 128), (12, 19, 16), (30, 51, 36), (36, 54, 64)):
        assert bucket(-distance, buckets, most, True) == reference.t5_bucket(-distance, buckets, most, False)


def test_t5_looks_up_far_distances() -> None:
    for text, buckets in (("t5(8, 7)", 4), ("t5_causal(8, 7)", 8)):
        module = parse_bias(text)(H, nnx.Rngs(0))
        table = np.asarray(module.table[...])
        np.testing.assert_array_equal(module().block(1000, 0, 1, 1)[0, :, 0, 0], table[buckets - 1])
        ahead = table[7] if text.startswith("t5(") else table[0]
        np.testing.assert_array_equal(module().block(0, 1000, 1, 1)[0, :, 0, 0], ahead)


def test_alibi_has_the_slopes_of_its_paper() -> None:
    """For 8 heads 1/2, 1/4, ... (Press et al. 2022, section 3); for 12 those and every other one of 16."""
    np.testing.assert_allclose(alibi_slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_allclose(
        alibi_slopes(12), [*0.5 ** np.arange(1, 9), *(2**0.5) ** -np.arange(1.0, 8, 2)], rtol=1e-6
    )
    assert [len(alibi_slopes(H)) for H in range(1, 18)] == list(range(1, 18))


def test_what_starts_is_what_is_documented() -> None:
    many = 1009
    power, log = parse_bias("kerple_power")(many, nnx.Rngs(0))(), parse_bias("kerple")(many, nnx.Rngs(0))()
    for r1_H, r2_H, most in ((power.r1_H, power.r2_H, 2), (np.exp(log.log_r1_H), np.exp(log.log_r2_H), 1)):
        assert 0.01 <= r1_H.min() < r1_H.max() <= 2
        assert abs(r1_H.mean() - 1) < 0.06
        assert 0 < r2_H.min() <= r2_H.max() <= most
    np.testing.assert_allclose(power.r2_H, 1)
    fire = parse_bias("fire")(many, nnx.Rngs(0))()
    np.testing.assert_allclose([fire.c, fire.length], [0.1, 512], rtol=1e-5)
    assert fire.mix_FH.shape == (32, many)
    assert abs(float(fire.mix_FH.std()) * 32**0.5 - 1) < 0.02
    assert abs(float(parse_bias("t5")(many, nnx.Rngs(0))().table_NH.std()) / 0.02 - 1) < 0.02
    assert parse_bias("none")(many, nnx.Rngs(0))() is None
    for text in ("none", "alibi"):
        assert jax.tree.leaves(nnx.state(parse_bias(text)(many, nnx.Rngs(0)))) == []


def test_every_array_is_a_float_and_heads_are_named() -> None:
    """Cores ask for gradients of all of them, and shard_map splits them by name."""
    for name, bias in KINDS.items():
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(bias)), name
        fields = {
            key: field.metadata["axes"] for key, field in bias.__dataclass_fields__.items() if "axes" in field.metadata
        }
        for key, axes in fields.items():
            content = getattr(bias, key)
            assert content is None or np.ndim(content) == len(axes), (name, key)
        assert any("heads" in axes for axes in fields.values()), name


def test_biases_of_different_kinds_have_different_structures() -> None:
    found = [value(text) for text in ("kerple", "kerple_power", "alibi", "t5", "t5_causal", "t5(32, 127)", "fire")]
    for i, one in enumerate(found):
        assert all(jax.tree.structure(one) != jax.tree.structure(two) for two in found[:i])
    assert isinstance(found[2], Relative)
    assert isinstance(found[2], Alibi)


@pytest.mark.parametrize(
    ("bias", "said"),
    [
        (ExplicitBias(jnp.ones((B, 2, T, S))), "a bias made for 2 x 2 x 11 x 13 (rows, heads, queries, keys) cannot"),
        (ExplicitBias(jnp.ones((1, 1, T, T))), "a bias made for 1 x 1 x 11 x 11"),
        (ExplicitBias(jnp.ones((1, 1, 1, T))), "a bias made for 1 x 1 x 1 x 11"),
        (ExplicitBias(jnp.ones((T, S))), "a bias made for 11 x 13"),
        (value("fire", PLACES_BT[:, :5]), "a bias made for 2 x 5 (rows and queries) cannot serve 2 x 11"),
        (value("fire", np.zeros((3, T))), "a bias made for 3 x 11 (rows and queries) cannot serve 2 x 11"),
    ],
)
def test_a_bias_of_other_sizes_says_so(bias: Bias, said: str) -> None:
    misfit = bias.misfit(B, H, T, S)
    assert misfit is not None
    assert misfit.startswith(said)


@pytest.mark.parametrize("name", KINDS)
def test_a_bias_of_these_sizes_fits(name: str) -> None:
    assert KINDS[name].misfit(B, H, T, S) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "t5(3)",
            "--config.model.bias: t5(3, 128) needs an even number of buckets, at least 4, and a max_distance above",
        ),
        ("t5(2)", "--config.model.bias: t5(2, 128) needs an even number"),
        ("t5(32, 8)", "--config.model.bias: t5(32, 8) needs"),
        (
            "t5_causal(1)",
            "--config.model.bias: t5_causal(1, 128) needs at least 2 buckets, and a max_distance above half",
        ),
        ("t5_causal(32, 16)", "--config.model.bias: t5_causal(32, 16) needs"),
        ("fire(0)", "--config.model.bias: fire(0, 512.0) needs 1 to 1024 hidden units and a length of at least 1."),
        ("fire(3, 0)", "--config.model.bias: fire(3, 0) needs"),
        ("t5(32.0)", "--config.model.bias='t5(32.0)': buckets=32.0 must be a whole number."),
        ("alibi & t5", "--config.model.bias='alibi & t5' is not an expression of none, alibi"),
        ("relative", "--config.model.bias='relative' is not an expression of none, alibi"),
    ],
)
def test_bad_biases_are_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        parse_bias(text)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_the_smallest_buckets_work() -> None:
    for text in ("t5(4, 2)", "t5_causal(2, 2)", "t5_causal(3, 2)"):
        assert math.isfinite(float(value(text).block(0, 0, T, S).sum()))
    assert set(BIASES) <= {text.partition("(")[0] for text in reference.BIASES}
