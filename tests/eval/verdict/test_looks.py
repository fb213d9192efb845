"""The levels of two looks against simulation."""

import numpy as np
import pytest

from eval.verdict.looks import levels, two_look_size
from eval.verdict.pvalues import paired_t


def test_one_look_has_all_of_alpha() -> None:
    assert levels((8,), 0.05) == (0.05,)


def test_the_second_level_of_8_and_16() -> None:
    first, second = levels((8, 16), 0.05)
    assert (first, second) == (pytest.approx(0.005), pytest.approx(0.0470566, abs=1e-6))


RARE = [pytest.param(looks, marks=pytest.mark.rest) for looks in ((5, 13), (6, 7), (20, 40))]


@pytest.mark.parametrize("looks", [(8, 16), (4, 5), *RARE])
def test_both_looks_together_have_size_alpha(looks: tuple[int, int]) -> None:
    first, second = levels(looks, 0.05)
    assert second <= 0.05
    draws = np.random.default_rng(0).normal(size=(400_000, looks[1]))
    p = [paired_t(d.mean(axis=-1), d.std(axis=-1, ddof=1), d.shape[-1]) for d in (draws[:, : looks[0]], draws)]
    size = np.mean((p[0] <= first) | (p[1] <= second))
    assert size == pytest.approx(two_look_size(looks, first, second), abs=4 * np.sqrt(0.05 * 0.95 / len(draws)))
    assert size <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(draws))
