"""Masks against brute force: blocks, states, positions, and the language of expressions."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import MASKS, BlockState, Mask, causal, full, padding, parse_mask, segments, window
from model.attention.masks import AtPositions, Band
from model.errors import UserError
from tests import reference

B, T, S = 2, 11, 13


class Example(NamedTuple):
    """A mask and what it should be, (B, T, S)."""

    mask: Mask
    expected_BTS: np.ndarray


def bands() -> st.SearchStrategy[Example]:
    def band(left: float, right: float) -> np.ndarray:
        return np.array([[[-right <= i - j <= left for j in range(S)] for i in range(T)]] * B)

    windows = st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(any)
    return st.one_of(
        st.just(Example(full(), band(math.inf, math.inf))),
        st.just(Example(causal(), band(math.inf, 0))),
        windows.map(lambda sides: Example(window(*sides), band(*sides))),
        st.integers(1, 7).map(lambda side: Example(window(side), band(side, side))),
    )


@st.composite
def data_masks(draw: st.DrawFn) -> Example:
    """Segments and padding, which depend on the batch."""
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        queries, keys = rng.integers(0, 3, (B, T)), rng.integers(0, 3, (B, S))
        return Example(segments(jnp.array(queries), jnp.array(keys)), queries[:, :, None] == keys[:, None])
    valid = rng.random((B, S)) < 0.7
    return Example(padding(jnp.array(valid)), np.repeat(valid[:, None], T, axis=1))


def combined(parts: st.SearchStrategy[Example]) -> st.SearchStrategy[Example]:
    return st.tuples(parts, parts, st.booleans()).map(
        lambda x: (
            Example(x[0].mask & x[1].mask, x[0].expected_BTS & x[1].expected_BTS)
            if x[2]
            else Example(x[0].mask | x[1].mask, x[0].expected_BTS | x[1].expected_BTS)
        )
    )


def examples() -> st.SearchStrategy[Example]:
    return st.recursive(bands() | data_masks(), combined, max_leaves=5)


def spans(length: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, length - 1), st.integers(1, length)).map(lambda x: (x[0], min(length, x[0] + x[1])))


@given(examples(), spans(T), spans(S))
@settings(max_examples=60)
def test_block_is_the_part_of_the_whole_and_state_never_lies(example: Example, queries: tuple, keys: tuple) -> None:
    block = example.mask.block(*queries, *keys)
    expected = example.expected_BTS[:, None, slice(*queries), slice(*keys)]
    np.testing.assert_array_equal(np.broadcast_to(block, expected.shape), expected)
    state = example.mask.state(*queries, *keys)
    assert state is not BlockState.FULL or expected.all()
    assert state is not BlockState.EMPTY or not expected.any()


@given(bands(), bands(), spans(T), spans(S))
def test_state_is_exact_for_bands_and_their_intersections(
    one: Example, two: Example, queries: tuple, keys: tuple
) -> None:
    for mask, expected in ((one.mask, one.expected_BTS), (one.mask & two.mask, one.expected_BTS & two.expected_BTS)):
        part = expected[:, slice(*queries), slice(*keys)]
        truth = BlockState.FULL if part.all() else BlockState.MIXED if part.any() else BlockState.EMPTY
        assert mask.state(*queries, *keys) is truth


@pytest.mark.parametrize(("operator", "decided"), [("and", BlockState.EMPTY), ("or", BlockState.FULL)])
def test_one_side_decides_the_state_of_a_combination(operator: str, decided: BlockState) -> None:
    """A block that a band rules out (or lets through) is skipped, whatever the batch holds."""
    unknown = padding(jnp.ones((B, S), bool))
    band = causal() if operator == "and" else window(S)
    for mask in (band & unknown, unknown & band) if operator == "and" else (band | unknown, unknown | band):
        assert mask.state(0, 3, 5, 7) is decided
        assert (full() & mask).state(0, 3, 5, 7) is decided


@given(examples(), st.integers(0, 99))
@settings(max_examples=30)
def test_at_positions_is_the_mask_at_those_rows(example: Example, seed: int) -> None:
    positions = np.random.default_rng(seed).integers(0, T, (B, 5))
    block = AtPositions(example.mask, jnp.array(positions)).block(1, 5, 2, S)
    expected = np.take_along_axis(example.expected_BTS, positions[:, 1:, None], axis=1)[:, None, :, 2:]
    np.testing.assert_array_equal(np.broadcast_to(block, expected.shape), expected)


def test_a_mask_is_a_value_of_a_jitted_function() -> None:
    """Arrays in it are traced, and the state of its bands is still known."""
    ids = jnp.array(np.random.default_rng(0).integers(0, 2, (B, T)))

    @jax.jit
    def block(mask: Mask) -> jax.Array:
        assert mask.state(0, 3, 5, 7) is BlockState.EMPTY
        return mask.block(2, 7, 1, 5)

    mask = causal() & segments(ids)
    np.testing.assert_array_equal(block(mask), mask.block(2, 7, 1, 5))


def test_masks_of_different_kinds_have_different_structures() -> None:
    """Or jit, whose cache compares structures, runs the program of `|` for `&` once in a while."""
    flags, ids = jnp.ones((B, S), bool), jnp.ones((B, S), int)
    masks = [causal(), full(), window(3), padding(flags), segments(ids), AtPositions(causal(), ids)]
    masks += [causal() & padding(flags), causal() | padding(flags), padding(flags) & padding(flags)]
    for i, one in enumerate(masks):
        for two in masks[:i]:
            assert jax.tree.structure(one) != jax.tree.structure(two), (one, two)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x, one), one)


@pytest.mark.parametrize("text", reference.MASKS)
def test_expressions_mean_what_they_say(text: str) -> None:
    block = np.broadcast_to(parse_mask(text).block(0, T, 0, S), (1, 1, T, S))
    np.testing.assert_array_equal(block[0, 0], reference.mask_matrix(text, T, S))


def test_every_name_of_the_language_has_a_reference() -> None:
    missing = [name for name in MASKS if not any(name in text for text in reference.MASKS)]
    assert missing == [], f"give tests/reference.py an expression with each of {missing}"


def test_both_sides_of_a_window_are_kept() -> None:
    assert window(3, 1) == Band(3, 1)
    assert window(5) == Band(5, 5)


@pytest.mark.parametrize(
    "text",
    ["", "caussal", "causal &", "causal and full", "causal()", "causal + full", "~causal", "window", "window()"]
    + ["window(1, 2, 3)", "window(left=3)", "window(1.5)", "window(True)", "window(-1)", "window(causal)", "3"]
    + ["segments(3)", "__import__('os')", "causal; full", "causal\nfull", "(causal", "causal, full"],
)
def test_other_expressions_are_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        parse_mask(text)
    assert str(error.value).startswith(f"--config.model.mask={text!r} is not an expression of full, causal, window")


@pytest.mark.parametrize(
    ("sides", "named"), [((0,), "window(0, 0)"), ((-1, 3), "window(-1, 3)"), ((2, -1), "window(2, -1)")]
)
def test_windows_without_a_neighbour_are_refused(sides: tuple[int, ...], named: str) -> None:
    with pytest.raises(UserError) as error:
        window(*sides)
    assert str(error.value).startswith(f"{named} sees no neighbour")


@pytest.mark.parametrize(
    ("mask", "asked", "said"),
    [
        (padding(jnp.ones((B, 5), bool)), (0, 3, 0, 7), "5 keys cannot serve 7"),
        (segments(jnp.zeros((B, 5), int)), (0, 7, 0, 5), "5 queries cannot serve 7"),
        (segments(jnp.zeros((B, 5), int), jnp.zeros((B, 3), int)), (0, 5, 0, 7), "3 keys cannot serve 7"),
    ],
)
def test_a_block_outside_of_the_arrays_is_refused(mask: Mask, asked: tuple[int, int, int, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        mask.block(*asked)
