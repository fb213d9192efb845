"""Masks against brute force: blocks, states, positions, and the language of expressions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.attention import (
    MASKS,
    BlockState,
    Mask,
    causal,
    causal_at_end,
    explicit,
    full,
    padding,
    parse_mask,
    segments,
    window,
)
from model.attention.masks import patterns
from model.attention.masks.band import Band
from model.attention.masks.base import Or, conjuncts, exact_state
from model.errors import UserError
from tests.model import reference

B, H, T, S = 2, 3, 11, 13


class Example(NamedTuple):
    """A mask and what it should be, (B, H, T, S)."""

    mask: Mask
    expected_BHTS: np.ndarray


def static(mask: Mask, allowed: Callable[[int, int], bool]) -> Example:
    """What a mask should be, asked pair by pair."""
    return Example(mask, np.array([[[[allowed(i, j) for j in range(S)] for i in range(T)]] * H] * B))


def bands() -> st.SearchStrategy[Example]:
    windows = st.tuples(st.integers(0, 7), st.integers(0, 7)).filter(any)
    return st.one_of(
        st.just(static(full(), lambda i, j: True)),
        st.just(static(causal(), lambda i, j: j <= i)),
        windows.map(lambda sides: static(window(*sides), lambda i, j: i - sides[0] <= j <= i + sides[1])),
        st.integers(1, 7).map(lambda side: static(window(side), lambda i, j: abs(i - j) <= side)),
    )


def laid_out(layout: np.ndarray, size: int) -> Example:
    """Of queries and keys that the layout does not reach, the former see nothing and the latter are not seen."""

    def allowed(i: int, j: int) -> bool:
        return i // size < len(layout) and j // size < layout.shape[1] and bool(layout[i // size, j // size])

    return static(patterns.blocks(layout, size), allowed)


@st.composite
def layouts(draw: st.DrawFn) -> Example:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    return laid_out(rng.random(shape) < rng.random(), draw(st.integers(1, 5)))


def single_patterns() -> st.SearchStrategy[Example]:
    """Those whose state is exact by itself."""
    size = st.integers(1, 7)
    summaries = size.flatmap(lambda stride: st.tuples(st.just(stride), st.integers(1, stride)))
    return st.one_of(
        bands(),
        layouts(),
        size.map(lambda n: static(patterns.chunked(n), lambda i, j: set(range(i - i % n, i - i % n + n)) >= {j})),
        size.map(lambda n: static(patterns.prefix(n), lambda i, j: j < n)),
        size.map(lambda n: static(patterns.sink_columns(n), lambda i, j: j in range(n))),
        size.map(lambda n: static(patterns.FirstQueries(n), lambda i, j: i in range(n))),
        size.map(lambda n: static(patterns.dilated(n), lambda i, j: j in range(i % n, S, n))),
        summaries.map(
            lambda x: static(
                patterns.SummaryColumns(*x), lambda i, j: j in [m for m in range(S) if m % x[0] + x[1] >= x[0]]
            )
        ),
    )


def joint_patterns() -> st.SearchStrategy[Example]:
    size = st.integers(1, 7)
    summaries = size.flatmap(lambda stride: st.tuples(st.just(stride), st.integers(1, stride)))
    return st.one_of(
        size.map(lambda n: static(patterns.global_tokens(n), lambda i, j: min(i, j) < n)),
        size.map(
            lambda n: static(
                patterns.strided(n), lambda i, j: j in range(max(0, i - n), i + 1) or j in range(i, -1, -n)
            )
        ),
        summaries.map(
            lambda x: static(
                patterns.fixed(*x), lambda i, j: j <= i and (j >= i - i % x[0] or j % x[0] in range(x[0] - x[1], x[0]))
            )
        ),
    )


@st.composite
def data_masks(draw: st.DrawFn) -> Example:
    """Segments, padding and explicit arrays, which depend on the batch, and the last also on the head."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    kind = draw(st.sampled_from(["segments", "padding", "explicit"]))
    if kind == "segments":
        queries, keys = rng.integers(0, 3, (B, T)), rng.integers(0, 3, (B, S))
        expected = np.repeat((queries[:, :, None] == keys[:, None])[:, None], H, axis=1)
        return Example(segments(jnp.array(queries), jnp.array(keys)), expected)
    if kind == "padding":
        valid = rng.random((B, S)) < 0.7
        return Example(padding(jnp.array(valid)), np.broadcast_to(valid[:, None, None], (B, H, T, S)))
    shape = draw(st.sampled_from([(B, H, T, S), (1, H, T, S), (B, 1, 1, S), (1, 1, T, 1), (1, H, 1, 1)]))
    allowed = rng.random(shape) < 0.6
    return Example(explicit(jnp.array(allowed)), np.broadcast_to(allowed, (B, H, T, S)))


def combined(parts: st.SearchStrategy[Example]) -> st.SearchStrategy[Example]:
    both = st.tuples(parts, parts)
    return st.one_of(
        both.map(lambda x: Example(x[0].mask & x[1].mask, x[0].expected_BHTS & x[1].expected_BHTS)),
        both.map(lambda x: Example(x[0].mask | x[1].mask, x[0].expected_BHTS | x[1].expected_BHTS)),
        parts.map(lambda x: Example(~x.mask, ~x.expected_BHTS)),
    )


def statics() -> st.SearchStrategy[Example]:
    return st.recursive(single_patterns() | joint_patterns(), combined, max_leaves=4)


def examples() -> st.SearchStrategy[Example]:
    return st.recursive(single_patterns() | joint_patterns() | data_masks(), combined, max_leaves=5)


def spans(length: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, length - 1), st.integers(1, length)).map(lambda x: (x[0], min(length, x[0] + x[1])))


def truth(part: np.ndarray) -> BlockState:
    return BlockState.FULL if part.all() else BlockState.MIXED if part.any() else BlockState.EMPTY


@given(examples(), spans(T), spans(S))
@settings(max_examples=150)
def test_block_is_the_part_of_the_whole_and_state_never_lies(example: Example, queries: tuple, keys: tuple) -> None:
    (i0, i1), (j0, j1) = queries, keys
    block = example.mask.block(i0, j0, i1 - i0, j1 - j0)
    expected = example.expected_BHTS[:, :, i0:i1, j0:j1]
    np.testing.assert_array_equal(np.broadcast_to(block, expected.shape), expected)
    assert example.mask.state(i0, i1, j0, j1) in (BlockState.MIXED, truth(expected))
    assert exact_state(example.mask, i0, i1, j0, j1) in (BlockState.MIXED, truth(expected))
    assert example.mask.misfit(B, H, T, S) is None or "Blocks" in repr(example.mask)


@given(single_patterns(), bands(), bands(), st.booleans(), spans(T), spans(S))
@settings(max_examples=300)
def test_the_state_of_one_pattern_is_exact(
    one: Example, two: Example, three: Example, turned: bool, queries: tuple, keys: tuple
) -> None:
    """Turned round as well, and where two bands meet."""
    for mask, expected in (
        (one.mask, one.expected_BHTS),
        (two.mask & three.mask, two.expected_BHTS & three.expected_BHTS),
    ):
        part = expected[:, :, slice(*queries), slice(*keys)]
        if turned:
            assert (~mask).state(*queries, *keys) is truth(~part)
        assert mask.state(*queries, *keys) is truth(part)


@given(statics(), spans(T), spans(S))
@settings(max_examples=150)
def test_the_exact_state_of_any_static_mask_is_exact(example: Example, queries: tuple, keys: tuple) -> None:
    assert example.mask.is_static
    part = example.expected_BHTS[:, :, slice(*queries), slice(*keys)]
    assert exact_state(example.mask, *queries, *keys) is truth(part)


def test_states_that_no_part_can_tell_are_counted() -> None:
    half = patterns.dilated(2)
    for mask, state in ((half | ~half, BlockState.FULL), (half & ~half, BlockState.EMPTY), (half, BlockState.MIXED)):
        assert mask.state(1, 5, 2, 7) is BlockState.MIXED
        assert exact_state(mask, 1, 5, 2, 7) is state
    some = patterns.dilated(2) & padding(jnp.ones((B, S), bool))
    assert exact_state(some | ~some, 1, 5, 2, 7) is BlockState.MIXED  # nothing is known of what depends on arrays


@pytest.mark.parametrize(("operator", "decided"), [("and", BlockState.EMPTY), ("or", BlockState.FULL)])
def test_one_side_decides_the_state_of_a_combination(operator: str, decided: BlockState) -> None:
    """A block that a band rules out (or lets through) is skipped, whatever the batch holds."""
    unknown = padding(jnp.ones((B, S), bool))
    band = causal() if operator == "and" else window(S)
    for mask in (band & unknown, unknown & band) if operator == "and" else (band | unknown, unknown | band):
        assert not mask.is_static
        assert mask.state(0, 3, 5, 7) is decided
        assert (full() & mask).state(0, 3, 5, 7) is decided
        assert exact_state(mask, 0, 3, 5, 7) is decided
        assert exact_state(mask, 0, 3, 2, 7) is BlockState.MIXED or decided is BlockState.FULL


@given(examples(), st.integers(0, 99))
@settings(max_examples=40)
def test_queries_may_be_anywhere_and_out_of_order(example: Example, seed: int) -> None:
    positions_BT = np.random.default_rng(seed).integers(0, T, (B, 5))
    block = example.mask.at(positions_BT[:, None, :, None], np.arange(2, S)[None, None, None])
    expected = np.take_along_axis(example.expected_BHTS, positions_BT[:, None, :, None], axis=2)[..., 2:]
    np.testing.assert_array_equal(np.broadcast_to(block, expected.shape), expected)


@pytest.mark.parametrize("text", reference.MASKS)
def test_expressions_mean_what_they_say(text: str) -> None:
    mask = parse_mask(text)
    block = np.broadcast_to(mask.block(0, 0, T, S), (1, 1, T, S))
    np.testing.assert_array_equal(block[0, 0], reference.mask_matrix(text, T, S))
    assert isinstance(mask.block(0, 0, T, S), np.ndarray)  # known before anything is traced


def test_a_mask_is_a_value_of_a_jitted_function() -> None:
    """Arrays in it are traced, so may be the starts, and the state of its bands is still known."""
    ids = jnp.array(np.random.default_rng(0).integers(0, 2, (B, T)))

    @jax.jit
    def block(mask: Mask, i0: jax.Array, j0: jax.Array) -> jax.Array:
        assert mask.state(0, 3, 5, 7) is BlockState.EMPTY
        return mask.block(i0, j0, 5, 4)

    allowed = jnp.array(np.random.default_rng(1).random((1, H, T, T)) < 0.5)
    kinds = [parse_mask(text) for text in ("causal & chunked(4)", "fixed(4, 2)", "causal & random_blocks(3, 2, 17)")]
    for mask in (causal() & segments(ids), causal() & explicit(allowed), *kinds):
        for i0, j0 in ((2, 1), (6, 7), (0, 0)):
            np.testing.assert_array_equal(block(mask, i0, j0), mask.block(i0, j0, 5, 4))


def test_masks_of_different_kinds_have_different_structures() -> None:
    """Or jit, whose cache compares structures, runs the program of `|` for `&` once in a while."""
    flags, ids = jnp.ones((B, S), bool), jnp.ones((B, S), int)
    masks = [causal(), full(), window(3), padding(flags), segments(ids), explicit(jnp.ones((1, 1, T, S), bool))]
    masks += [causal() & padding(flags), causal() | padding(flags), padding(flags) & padding(flags), ~padding(flags)]
    masks += [
        patterns.chunked(3),
        patterns.prefix(3),
        patterns.FirstQueries(3),
        patterns.dilated(3),
        patterns.chunked(4),
    ]
    masks += [
        patterns.SummaryColumns(3, 1),
        patterns.blocks(np.eye(3), 3),
        patterns.blocks(np.ones((3, 3)), 3),
        ~causal(),
    ]
    for i, one in enumerate(masks):
        for two in masks[:i]:
            assert jax.tree.structure(one) != jax.tree.structure(two), (one, two)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x, one), one)


def test_every_name_of_the_language_has_a_reference() -> None:
    missing = [name for name in MASKS if not any(name in text for text in reference.MASKS)]
    assert missing == [], f"give tests/model/reference.py an expression with each of {missing}"


@pytest.mark.parametrize(("T", "S"), [(5, 9), (9, 5), (7, 7)])
def test_causal_is_aligned_at_the_first_or_at_the_last_key(T: int, S: int) -> None:
    """And its blocks know it."""
    for mask, expected in ((causal(), np.tri(T, S, dtype=bool)), (causal_at_end(T, S), np.tri(T, S, S - T, bool))):
        np.testing.assert_array_equal(mask.block(0, 0, T, S)[0, 0], expected)
        for i0, j0 in np.ndindex(T - 1, S - 1):
            assert mask.state(i0, i0 + 2, j0, j0 + 2) is truth(expected[i0 : i0 + 2, j0 : j0 + 2])


def test_both_sides_of_a_window_are_kept_and_bands_meet_in_a_band() -> None:
    assert window(3, 1) == Band(3, 1)
    assert window(5) == Band(5, 5)
    assert causal() & window(4, 7) == Band(4, 0)
    assert list(conjuncts(causal() & window(3) & patterns.dilated(2))) == [Band(3, 0), patterns.dilated(2)]
    either = patterns.dilated(2) | causal()
    assert isinstance(either, Or)
    assert list(conjuncts(either)) == [either]


OTHERS = {
    " is empty: write an expression of full, causal, window(left, right=No": ("", " "),
    " is not an expression of full, causal, window(left, right=No": (
        *("causal &", "causal + full", "-causal", "3", "segments(3)", "__import__('os')", "causal; full"),
        *("causal\nfull", "causal, full", "window(**full)", "causal & 3", "causal ^ full", "causal.real"),
    ),
    ": there is no caussal; the nearest is causal.": ("caussal", "causal | ~caussal", "caussal(3)"),
    ": there is no windo; the nearest is window(left, right=None).": ("causal & windo(4)",),
    ": write & for and.": ("causal and full",),
    ": write & for &&.": ("causal && full",),
    ": write | for or.": ("causal or full",),
    ": write | for ||.": ("causal || full",),
    ": write ~ for not.": ("not causal",),
    ": write ~ for !.": ("!causal",),
    " has 1 '(' and 0 ')', which do not pair.": ("(causal", "causal & window(3"),
    " has 0 '(' and 1 ')', which do not pair.": ("causal)",),
    " has 1 '(' and 1 ')', which do not pair.": (")causal(",),
    ": without numbers, causal is written without parentheses.": ("causal()", "full | causal()"),
    ": window: missing a required argument: 'left'; write window(left, right=None).": ("window", "window()"),
    ": chunked: missing a required argument: 'size'; write chunked(size).": ("chunked",),
    ": window: too many positional arguments; write window(left, right=None).": ("window(1, 2, 3)",),
    ": causal: too many positional arguments; write causal.": ("causal(1)",),
    ": window has no west; write window(left, right=None).": ("window(west=3)", "window(1, west=3)"),
    ": window: multiple values for argument 'left'; write window(left, right=None).": ("window(3, left=3)",),
    ": True is no number, of which window(left, right=None) is made.": ("window(True)",),
    ": causal is no number, of which window(left, right=None) is made.": ("window(causal)",),
    ": *full is no number, of which window(left, right=None) is made.": ("window(*full)",),
    ": '3' is no number, of which prefix(count) is made.": ("prefix('3')",),
}


@pytest.mark.parametrize(("text", "what"), [(text, what) for what, texts in OTHERS.items() for text in texts])
def test_other_expressions_are_refused_by_what_is_wrong(text: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        parse_mask(text)
    sentence = str(error.value)
    assert sentence.startswith(f"--config.model.mask={text!r}{what}")
    assert sentence.endswith(".")
    assert "expression of" not in what or all(name in sentence for name in MASKS)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: window(0), "window(0) sees no neighbour; give --config.model.mask"),
        (lambda: parse_mask("window(-1)"), "window(-1) sees no neighbour"),
        (lambda: parse_mask("window(1.5)"), "--config.model.mask='window(1.5)': left=1.5 must be a whole number."),
        (lambda: parse_mask(f"window({10**30})"), f"--config.model.mask='window({10**30})': a whole number of at most"),
        (lambda: parse_mask("random_blocks(4, 2, 11, -1)"), "random_blocks(seed=-1): give --config.model.mask"),
        (lambda: parse_mask("~" * 51 + "causal"), f"--config.model.mask='{'~' * 51}causal' has 51 operators"),
        (lambda: window(-1, 3), "window(-1, 3) sees no neighbour"),
        (lambda: window(2, -1), "window(2, -1) sees no neighbour"),
        (lambda: parse_mask("causal & window(0)"), "window(0) sees no neighbour"),
        (lambda: parse_mask("chunked(0)"), "chunked(0): give --config.model.mask a number of at least 1."),
        (lambda: parse_mask("prefix(0)"), "prefix(0): give --config.model.mask"),
        (lambda: parse_mask("sink_columns(0)"), "sink_columns(0): give --config.model.mask"),
        (lambda: parse_mask("global_tokens(0)"), "global_tokens(0): give --config.model.mask"),
        (lambda: parse_mask("dilated(0)"), "dilated(0): give --config.model.mask"),
        (lambda: parse_mask("strided(0)"), "strided(0): give --config.model.mask"),
        (lambda: parse_mask("fixed(3, 4)"), "fixed(3, 4): give --config.model.mask a count from 1 to the stride."),
        (lambda: parse_mask("fixed(3, 0)"), "fixed(3, 0): give --config.model.mask"),
        (lambda: parse_mask("random_blocks(4, 4, 11)"), "random_blocks(4, 4, 11): there are 3 blocks; give --config"),
        (lambda: parse_mask("random_blocks(0, 4, 11)"), "random_blocks(0): give --config.model.mask"),
        (lambda: patterns.blocks(np.ones(3), 2), "blocks(array of shape (3,), 2) needs a layout of queries x keys."),
        (lambda: explicit(jnp.ones((T, S), bool)), "explicit(array of shape (11, 13)) needs four axes"),
    ],
)
def test_patterns_without_a_meaning_are_refused(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(named)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (padding(jnp.ones((B, 5), bool)), "2 x 5 (keys) cannot serve 2 x 13"),
        (padding(jnp.ones((3, S), bool)), "3 x 13 (keys) cannot serve 2 x 13"),
        (segments(jnp.zeros((B, 5), int), jnp.zeros((B, S), int)), "2 x 5 (queries) cannot serve 2 x 11"),
        (segments(jnp.zeros((B, T), int), jnp.zeros((B, 3), int)), "2 x 3 (keys) cannot serve 2 x 13"),
        (segments(jnp.zeros((B, T), int)), "2 x 11 (keys) cannot serve 2 x 13"),
        (
            explicit(jnp.ones((B, 2, T, S), bool)),
            "2 x 2 x 11 x 13 (rows, heads, queries and keys) cannot serve 2 x 3 x 11 x 13",
        ),
        (explicit(jnp.ones((1, 1, T, S - 1), bool)), "cannot serve 2 x 3 x 11 x 13"),
        (patterns.blocks(np.ones((2, 3)), 5), "10 x 15 (queries and keys) cannot serve 11 x 13"),
        (parse_mask("random_blocks(3, 2, 12)"), "12 x 12 (queries and keys) cannot serve 11 x 13"),
    ],
)
def test_a_mask_of_other_sizes_says_so_wherever_it_stands(mask: Mask, said: str) -> None:
    for whole in (mask, causal() & mask, mask | causal(), ~mask, full() & ~(causal() | mask)):
        misfit = whole.misfit(B, H, T, S)
        assert misfit is not None
        assert misfit.startswith("a mask made for ")
        assert misfit.endswith(said)


def test_a_mask_of_these_sizes_fits() -> None:
    for shape in ((B, H), (1, H), (B, 1), (1, 1)):
        assert explicit(jnp.ones((*shape, T, S), bool)).misfit(B, H, T, S) is None
    assert parse_mask("random_blocks(3, 2, 13)").misfit(B, H, T, S) is None
    assert padding(jnp.ones((1, S), bool)).misfit(B, H, T, S) is None
