"""Dropout of weights: its rate, its independence, and that a draw depends on nothing but its place."""

import itertools

import jax
import numpy as np
import pytest

from model.attention import Dropout, dropout
from model.attention.masks.base import indices

B, H, T, S = 3, 5, 128, 96


def draw(rate: float = 0.3, seed: int = 0) -> Dropout:
    made = dropout(rate, jax.random.split(jax.random.key(seed), B), H)
    assert made is not None
    return made


def keep(one: Dropout, i0: int = 0, j0: int = 0, rows: int = T, columns: int = S) -> np.ndarray:
    return np.asarray(one.keep(*indices(i0, j0, rows, columns)))


def test_without_rate_or_keys_there_is_no_dropout() -> None:
    assert dropout(0.3, None, H) is None
    assert dropout(0.0, jax.random.split(jax.random.key(0), B), H) is None


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_share_of_dropped_weights_is_the_rate(rate: float) -> None:
    kept = np.stack([keep(draw(rate, seed)) for seed in range(3)])
    sigma = (rate * (1 - rate) / kept.size) ** 0.5
    assert abs(kept.mean() - (1 - rate)) < 4 * sigma
    for axes in itertools.combinations(range(1, 5), 3):  # of each row, head, query and key as well
        means = kept.mean((0, *axes))
        spread = (rate * (1 - rate) * means.size / kept.size) ** 0.5
        assert np.abs(means - (1 - rate)).max() < 5 * spread


def test_neighbours_rows_heads_and_seeds_are_drawn_independently() -> None:
    """Correlations of all near and some far pairs of places, of which the largest of n would be about sqrt(2 ln n)."""
    kept = keep(draw(0.5)).astype(float) - 0.5
    other = keep(draw(0.5, 1)).astype(float) - 0.5
    pairs = [(kept, other), (kept[:-1], kept[1:]), (kept[:, :-1], kept[:, 1:])]
    pairs += [(kept[:, :, :-d], kept[:, :, d:]) for d in (1, 2, 3, 16, 64)]
    pairs += [(kept[..., :-d], kept[..., d:]) for d in (1, 2, 3, 16, 64)]
    pairs += [(kept[:, :, :-d, :-d], kept[:, :, d:, d:]) for d in (1, 2, 32)]
    pairs += [(kept[:, :, d:, :-d], kept[:, :, :-d, d:]) for d in (1, 2, 32)]
    for one, two in pairs:
        z = (one * two).sum() * 4 / one.size**0.5
        assert abs(z) < 4
    # Four corners of rectangles: what a hash of sums gets wrong.
    corners = kept[:, :, :-1, :-1] * kept[:, :, 1:, 1:] * kept[:, :, :-1, 1:] * kept[:, :, 1:, :-1]
    assert abs(corners.sum() * 16 / corners.size**0.5) < 4


def test_a_block_is_part_of_the_whole_and_a_row_is_its_own() -> None:
    one = draw()
    whole = keep(one)
    np.testing.assert_array_equal(keep(one, 17, 31, 40, 23), whole[:, :, 17:57, 31:54])
    moved = jax.jit(lambda i0, j0: one.keep(*indices(i0, j0, 40, 23)))(17, 31)
    np.testing.assert_array_equal(moved, whole[:, :, 17:57, 31:54])
    np.testing.assert_array_equal(keep(Dropout(0.3, one.keys_BH2[1:2, 2:4])), whole[1:2, 2:4])
    assert len({head.tobytes() for row in whole for head in row}) == B * H
    assert not np.array_equal(whole, keep(draw(seed=1)))
