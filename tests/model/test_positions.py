"""Positions against the numbers of their papers, and what rotation promises."""

import inspect
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.errors import UserError
from model.positions import POSITIONS, Rotary, parse_position, rotate
from model.positions.embedded import Learned
from tests.model import reference

B, T, H, K, D = 2, 5, 3, 12, 36
ROTARY = [text for text in reference.POSITIONS if text.startswith("rope")]


def rotary(text: str, head_width: int = K) -> Rotary:
    position = parse_position(text)(D, head_width, 17, nnx.Rngs(0))
    assert isinstance(position, Rotary)
    return position


def turned(text: str, x_BTHK: np.ndarray, positions_BT: Any) -> np.ndarray:
    return np.asarray(rotate(jnp.asarray(x_BTHK), rotary(text, x_BTHK.shape[-1]).rotation(jnp.asarray(positions_BT))))


@pytest.mark.parametrize("text", ROTARY)
@pytest.mark.parametrize("K", [4, 12])
def test_every_rotation_is_the_reference(text: str, K: int) -> None:
    """Each row has its own positions; they reach far enough for the slowest pair to turn."""
    rng = np.random.default_rng(0)
    x_BTHK, positions_BT = rng.standard_normal((B, T, H, K)).astype(np.float32), rng.integers(0, 3000, (B, T))
    got = turned(text, x_BTHK, positions_BT)
    assert got.dtype == np.float32
    for b, h in np.ndindex(B, H):
        expected = reference.POSITIONS[text][1](x_BTHK[b, :, h].astype(np.float64), positions_BT[b])
        np.testing.assert_allclose(got[b, :, h], expected, atol=2e-3)
        near = reference.POSITIONS[text][1](x_BTHK[b, :, h].astype(np.float64), np.arange(T))
        np.testing.assert_allclose(turned(text, x_BTHK, np.tile(np.arange(T), (B, 1)))[b, :, h], near, atol=2e-6)


@pytest.mark.parametrize(
    ("text", "head_width", "expected"),
    [
        # 10000^(-2i/8) = 1, 1/10, 1/100, 1/1000.
        ("rope", 8, [1, 0.1, 0.01, 0.001]),
        ("rope(base=16)", 8, [1, 1 / 2, 1 / 4, 1 / 8]),
        ("rope(fraction=0.5, base=16)", 8, [1, 1 / 4]),
        ("rope(0.25)", 8, [1]),
        # Chen et al. 2023: a model for L = 2048 reads position 8192 as 2048.
        ("rope_linear(4)", 8, [1 / 4, 0.1 / 4, 0.01 / 4, 0.001 / 4]),
        ("rope_linear(1)", 8, [1, 0.1, 0.01, 0.001]),
        # The base becomes 10000 x 27^(8/6) = 810000 = 30^4: the last pair is interpolated by 27, the first not at all.
        ("rope_ntk(27)", 8, [1, 1 / 30, 1 / 900, 1 / 27000]),
        ("rope_ntk(16)", 2, [1]),
        # Turns within 2000 pi places: 1000, 100, 10, 1, so pair log10(1000 / t) turns t times: 55 and 32 lie above 1,
        # and 1 at 3. Pair 2 is half of the way.
        ("rope_yarn(4, 6283, beta_fast=55)", 8, [1, 0.1, 0.01 * (1 / 2 + 1 / 2 / 4), 0.001 / 4]),
        ("rope_yarn(2, 6283)", 8, [1, 0.1, 0.01 * (1 / 2 + 1 / 2 / 2), 0.001 / 2]),
        # 10^7 turns of pair 0: the ramp goes from pair 1 to pair 8, which becomes 7.
        ("rope_yarn(4, 62832000, beta_fast=1e6)", 8, [1, 0.1, 0.01 * (5 / 6 + 1 / 6 / 4), 0.001 * (4 / 6 + 2 / 6 / 4)]),
        # No pair turns once: the ramp would begin and end at pair 0.
        ("rope_yarn(4, 6)", 8, [1, 0.1 / 4, 0.01 / 4, 0.001 / 4]),
        # 500000^(-2i/8) = 1, 0.0376, 0.00141 and 0.0000532 turn 1000, 37.6, 1.414 and 0.05 times in 6283 places.
        (
            "rope_llama3(8, length=6283)",
            8,
            [1, 500000**-0.25, 500000**-0.5 * (0.41421 / 3 + 2.58579 / 3 / 8), 500000**-0.75 / 8],
        ),
        ("rope_llama3(2, low=10, high=19, length=6283, base=10000)", 8, [1, 0.1, 0.005, 0.0005]),
    ],
)
def test_frequencies_are_those_of_worked_examples(text: str, head_width: int, expected: list[float]) -> None:
    np.testing.assert_allclose(rotary(text, head_width).frequencies, expected, rtol=1e-4)


def test_llama_3_has_its_published_numbers() -> None:
    """K = 128, factor 8, 8192 places: pairs 0 to 28 turn more than 4 times and are kept, 35 to 63 less than once."""
    frequencies, plain = rotary("rope_llama3(8)", 128).frequencies, rotary("rope(base=500000)", 128).frequencies
    ratio = np.array(plain) / np.array(frequencies)
    assert np.all(ratio[:29] == 1)
    np.testing.assert_allclose(ratio[35:], 8)
    assert np.all(np.diff(ratio[28:36]) > 0)


def test_yarn_is_that_of_the_fields_checkpoints() -> None:
    """Pair by pair, from heads of 4 columns to 256, trained at lengths from 1 (no pair turns once) to 131072."""
    sizes = itertools.product((4, 12, 64, 128, 256), (10000.0, 500000.0), (1, 32, 2048, 4096, 131072))
    for (columns, base, length), (fast, slow) in itertools.product(sizes, ((32, 1), (7, 2))):
        text = f"rope_yarn(16, {length}, {fast}, {slow}, base={base})"
        frequency = reference.yarn(16, length, fast, slow, base)
        expected = [frequency(i, columns) for i in range(columns // 2)]
        np.testing.assert_allclose(rotary(text, columns).frequencies, expected, rtol=1e-6, err_msg=text)


@pytest.mark.parametrize(
    ("text", "gain"),
    [
        ("rope_yarn(16, 64, fraction=0.5)", 0.1 * math.log(16) + 1),
        ("rope_yarn(16, 64, attention_factor=1, fraction=0.5)", 1.0),
        ("rope_yarn(16, 64, attention_factor=0.7, fraction=0.5)", 0.7),
    ],
)
def test_yarn_makes_what_it_turns_larger_and_leaves_the_rest(text: str, gain: float) -> None:
    """Scores of turned columns grow by (0.1 ln s + 1)^2, which is 1/t (Peng et al. 2023, equation 22), or as given."""
    x_BTHK = np.random.default_rng(0).standard_normal((B, T, H, K)).astype(np.float32)
    got = turned(text, x_BTHK, np.tile(np.arange(T), (B, 1)))
    lengths = [np.linalg.norm(x[..., : K // 2], axis=-1) for x in (got, x_BTHK)]
    np.testing.assert_allclose(lengths[0] / lengths[1], gain, rtol=1e-5)
    np.testing.assert_array_equal(got[..., K // 2 :], x_BTHK[..., K // 2 :])


@pytest.mark.parametrize("text", ROTARY)
def test_scores_depend_on_distances_alone(text: str) -> None:
    """q at m and k at n give what q at m + 9 and k at n + 9 give, and not what other distances give."""
    q, k = np.random.default_rng(1).standard_normal((2, 1, T, H, K)).astype(np.float32)

    def scores(shift: int, stretch: int = 1) -> np.ndarray:
        places_BT = shift + stretch * np.arange(T)[None]
        return np.einsum("bthk,bshk->bhts", turned(text, q, places_BT), turned(text, k, places_BT))

    np.testing.assert_allclose(scores(9), scores(0), atol=1e-4)
    assert np.abs(scores(0, 2) - scores(0)).max() > 1e-2


def test_partial_rotation_is_rope_on_a_narrower_head_and_keeps_the_dtype() -> None:
    x_BTHK = np.random.default_rng(0).standard_normal((B, T, H, K)).astype(np.float32)
    positions_BT = np.tile(np.arange(T), (B, 1))
    got = turned("rope(fraction=0.5)", x_BTHK, positions_BT)
    np.testing.assert_allclose(got[..., : K // 2], turned("rope", x_BTHK[..., : K // 2], positions_BT), rtol=1e-6)
    np.testing.assert_array_equal(got[..., K // 2 :], x_BTHK[..., K // 2 :])
    rotation = rotary("rope(fraction=0.5)").rotation(jnp.asarray(positions_BT))
    assert rotation.cos.shape == rotation.sin.shape == (B, T, 1, K // 4)
    assert rotate(jnp.asarray(x_BTHK, jnp.bfloat16), rotation).dtype == jnp.bfloat16
    assert rotate(jnp.asarray(x_BTHK), None).shape == x_BTHK.shape


@pytest.mark.parametrize("text", ["rope", "rope_linear(3)", "rope_ntk(8)", "rope_yarn(4, 64)", "rope_llama3(8)"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_interleaved_pairs_are_halves_of_other_columns(text: str, fraction: float) -> None:
    """For every kind and share of the columns; the result stands where its columns stood."""
    R = round(K * fraction)
    order = [*range(0, R, 2), *range(1, R, 2), *range(R, K)]
    x_BTHK, positions_BT = np.random.default_rng(2).standard_normal((B, T, H, K)), np.arange(B * T).reshape(B, T)
    inner = text.rstrip(")") + ("(" if "(" not in text else ", ") + f"fraction={fraction}"
    halves = turned(f"{inner})", x_BTHK[..., order].astype(np.float32), positions_BT)
    neighbours = turned(f"{inner}, pairs=interleaved)", x_BTHK.astype(np.float32), positions_BT)
    np.testing.assert_array_equal(neighbours[..., order], halves)
    assert np.abs(neighbours[..., :R] - turned(f"{inner})", x_BTHK.astype(np.float32), positions_BT)[..., :R]).max() > 1


def test_every_kind_that_turns_has_both_pairs() -> None:
    """So that the test above leaves none out."""
    turning = {name for name, make in POSITIONS.items() if "pairs" in inspect.signature(make).parameters}
    assert turning == {name for name in POSITIONS if name.startswith("rope")}


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_read_row_p_plus_offset(offset: int) -> None:
    """Rows before the first and after the last are nobody's, though they are there."""
    position = parse_position(f"learned(offset={offset})")(D, K, 17, nnx.Rngs(0))
    assert isinstance(position, Learned)
    table_TD = np.asarray(position.table[...])
    assert table_TD.shape == (17 + offset, D)
    read_BTD = np.asarray(position.add(jnp.ones((1, 5, D)), jnp.array([[0, 16, 3, -1, 17]])))[0]
    np.testing.assert_array_equal(read_BTD[:3], 1 + table_TD[np.array([0, 16, 3]) + offset])
    assert np.isnan(read_BTD[3:]).all()


def test_learned_positions_end_and_the_others_do_not() -> None:
    for name, make in POSITIONS.items():
        needed = {"rope_linear": (2,), "rope_ntk": (2,), "rope_yarn": (2, 64), "rope_llama3": (2,)}.get(name, ())
        position = make(*needed)(D, K, 17, nnx.Rngs(0))
        assert position.limited == (name == "learned")
        assert (jax.tree.leaves(nnx.state(position)) == []) == (name != "learned")


def test_the_same_position_is_the_same_program() -> None:
    """Frequencies are part of the structure, so that jit compares them."""
    one, two, other = (nnx.graphdef(rotary(text)) for text in ("rope", "rope(1.0)", "rope(base=9.0)"))
    assert one == two
    assert hash(one) == hash(two)
    assert one != other


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rope(fraction=0)", "--config.model.position: fraction=0 must be above 0 and at most 1."),
        ("rope(fraction=1.5)", "--config.model.position: fraction=1.5 must be above 0 and at most 1."),
        ("rope(base=1)", "--config.model.position: base=1 must be above 1."),
        ("rope_linear(0.5)", "--config.model.position: factor=0.5 must be at least 1."),
        (
            "rope_linear(1e999)",
            "--config.model.position='rope_linear(1e999)': a whole number of at most 2147483647, or",
        ),
        ("rope_ntk(0)", "--config.model.position: factor=0 must be at least 1."),
        ("rope_yarn(0.5, 2048)", "--config.model.position: factor=0.5 must be at least 1."),
        ("rope_yarn(2, 0)", "--config.model.position: length=0 must be at least 1."),
        (
            "rope_yarn(2, 64, 1.0, 32.0)",
            "--config.model.position: beta_fast=1.0 and beta_slow=32.0 must be above 0, the",
        ),
        (
            "rope_yarn(2, 64, beta_slow=0)",
            "--config.model.position: beta_fast=32.0 and beta_slow=0 must be above 0, the",
        ),
        ("rope_yarn(2, 64, -1.0)", "--config.model.position: beta_fast=-1.0 and beta_slow=1.0 must be above 0, the"),
        ("rope_yarn(2, 64, attention_factor=0)", "--config.model.position: attention_factor=0 must be above 0."),
        ("rope_llama3(0)", "--config.model.position: factor=0 must be at least 1."),
        ("rope_llama3(2, 4, 4)", "--config.model.position: the bounds 4 and 4 must be >= 0, the second one larger."),
        ("rope(fraction=0.25)", "--config.model.position turns 0.25 x 12 columns of each head, which must be an even"),
        ("rope(fraction=0.1)", "--config.model.position turns 0.1 x 12 columns of each head"),
        (
            "rope_linear",
            "--config.model.position='rope_linear': rope_linear: missing a required argument: 'factor'; write",
        ),
        (
            "rope_yarn(4, 2048.5)",
            "--config.model.position='rope_yarn(4, 2048.5)': length=2048.5 must be a whole number.",
        ),
        ("rope & learned", "--config.model.position='rope & learned' is not an expression of rope("),
        (
            "rope(degree=3)",
            "--config.model.position='rope(degree=3)': rope has no degree; write rope(fraction=1.0, base=",
        ),
        (
            "rope(pairs=thirds)",
            "--config.model.position='rope(pairs=thirds)': pairs=thirds is not one of: halves, inter",
        ),
        ("rope(pairs=2)", "--config.model.position='rope(pairs=2)': pairs=2 is not one of: halves, interleaved."),
        ("rope(interleaved)", "--config.model.position='rope(interleaved)': fraction=interleaved must be a number."),
        ("rope(base=5, base=7)", "--config.model.position='rope(base=5, base=7)': rope is given base twice"),
        ("rope(pairs=-halves)", "--config.model.position='rope(pairs=-halves)': halves is no number, of which rope("),
        ("learned(-1)", "--config.model.position: offset=-1 must be at least 0 and at most 65536."),
        ("learned(halves)", "--config.model.position='learned(halves)': halves is no number, of which learned(offset="),
        (
            "Rope",
            "--config.model.position='Rope': there is no Rope; the nearest is rope(fraction=1.0, base=10000.0, p",
        ),
    ],
)
def test_bad_positions_are_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        rotary(text)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "width", "head_width", "sentence"),
    [
        (
            "rope",
            9,
            3,
            "--config.model.position turns 1 x 3 columns of each head, which must be an even number; change",
        ),
        ("rope_yarn(2, 64)", 9, 3, "--config.model.position turns 1 x 3 columns"),
        ("sinusoidal", 9, 3, "sinusoidal positions need an even width, not --config.model.width=9."),
    ],
)
def test_odd_widths_are_refused(text: str, width: int, head_width: int, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        parse_position(text)(width, head_width, 17, nnx.Rngs(0))
    assert str(error.value).startswith(sentence)
