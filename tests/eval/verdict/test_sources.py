"""A crossed table of runs, split by its sources: against loops over pairs, statsmodels, and planted variances."""

import itertools

import numpy as np
import pytest

from eval.verdict.sources import Part, split
from model.errors import UserError

SOURCES = ("init", "order", "dropout")
PLANTED = {"i": 9.0, "o": 1.0, "d": 0.0, "io": 4.0, "id": 0.0, "od": 0.5, "iod": 0.25}


def crossed(random: np.random.Generator, sizes: tuple[int, int, int]) -> np.ndarray:
    """Values with a normal effect of each planted variance."""
    parts = {name: [size if axis in name else 1 for axis, size in zip("iod", sizes, strict=True)] for name in PLANTED}
    return np.add(5.0, sum(PLANTED[name] ** 0.5 * random.normal(size=shape) for name, shape in parts.items()))


def named(parts: list[Part]) -> dict[str, Part]:
    """By the first letters of their sources."""
    return {"".join(one[0] for one in part.sources): part for part in parts}


def test_spreads_are_half_mean_squares_of_pairs_that_differ_in_just_these_sources() -> None:
    values = crossed(np.random.default_rng(0), (3, 2, 4))
    cells = list(itertools.product(*map(range, values.shape)))
    for part in split(values, SOURCES):
        wanted = {SOURCES.index(name) for name in part.sources}
        squares = [
            (values[a] - values[b]) ** 2 / 2
            for a, b in itertools.product(cells, cells)
            if {axis for axis in range(3) if a[axis] != b[axis]} == wanted
        ]
        assert part.spread**2 == pytest.approx(np.mean(squares), rel=1e-12)


def test_components_are_those_of_a_two_way_table_by_hand() -> None:
    """Three initial values (rows) and two orders: the book's formulas, of mean squares that are counted here."""
    values = np.array([[3.0, 5.0], [4.0, 9.0], [8.0, 7.0]])
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns[None] + values.mean()
    a, b, ab = 2 * np.var(rows, ddof=1), 3 * np.var(columns, ddof=1), (rest**2).sum() / 2
    found = named(split(values, ("init", "order")))
    assert found["i"].component == pytest.approx((a - ab) / 2)
    assert found["o"].component == pytest.approx((b - ab) / 3)
    assert found["io"].component == pytest.approx(ab)
    assert sum(part.component for part in found.values()) == pytest.approx(found["io"].spread ** 2)


@pytest.fixture(scope="module")
def tables() -> list[dict[str, Part]]:
    """Many tables of three levels of each source."""
    random = np.random.default_rng(0)
    return [named(split(crossed(random, (3, 3, 3)), SOURCES)) for _ in range(1000)]


def test_planted_variances_are_found(tables: list[dict[str, Part]]) -> None:
    """On the mean of many tables each component, however small; and what drawing some sources anew does in all."""
    for name, planted in PLANTED.items():
        found = np.array([one[name].component for one in tables])
        assert abs(found.mean() - planted) < 3 * found.std() / len(tables) ** 0.5, name
        anew = sum(one for other, one in PLANTED.items() if {*name} & {*other})
        squares = np.array([one[name].spread ** 2 for one in tables])
        assert abs(squares.mean() - anew) < 3 * squares.std() / len(tables) ** 0.5, name


def test_the_interval_holds_the_spread_about_as_often_as_it_says(tables: list[dict[str, Part]]) -> None:
    """Whether a source acts alone, with others, or next to not at all: Satterthwaite's is an approximation."""
    for name, square in {"i": 13.25, "o": 5.75, "d": 0.75}.items():
        held = [one[name].interval[0] <= square**0.5 <= one[name].interval[1] for one in tables]  # type: ignore[index]
        assert 0.90 <= np.mean(held) <= 0.97, (name, np.mean(held))
    freedom = [one["d"].freedom for one in tables]
    assert 2 <= min(freedom) <= max(freedom) <= 18  # type: ignore[type-var, operator]


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(UserError, match="1 of 4 runs failed"):
        split(np.array([[1.0, 2.0], [np.inf, 3.0]]), ("init", "order"))
    with pytest.raises(UserError, match="a source with one level"):
        split(np.ones((3, 1)), ("init", "order"))
    assert [part.spread for part in split(np.ones((2, 2)), ("init", "order"))] == [0, 0, 0]
