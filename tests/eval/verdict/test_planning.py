"""What pilot seeds say, against SciPy, loops and simulated tables."""

import itertools

import numpy as np
import pytest
from scipy import stats

from eval.verdict.planning import (
    all_equal,
    by_decisiveness,
    effects_by_seeds,
    paths_agree,
    seeds_by_effect,
    sensitivities,
    spread_of,
    spread_upper,
)
from model.errors import UserError


def test_the_spread_of_pairs() -> None:
    plus, minus = np.array([3.0, 5.0, 4.0, 8.0]), np.array([2.0, 1.0, 4.0, 5.0])
    found = spread_of("val/loss", plus, minus)
    assert (found.seeds, found.base_mean, found.mean) == (4, 3.0, 2.0)
    assert found.spread == pytest.approx(np.std([1, 4, 0, 3], ddof=1))
    assert found.effect == pytest.approx(2 / found.spread)
    assert found.correlation == pytest.approx(stats.pearsonr(plus, minus).statistic)
    assert spread_of("flat", plus, np.ones(4)).correlation is None
    with pytest.raises(UserError, match="none that failed"):
        spread_of("val/loss", plus, np.array([1, 2, 3, np.nan]))
    with pytest.raises(UserError, match="at least two"):
        spread_of("val/loss", plus[:1], minus[:1])


def test_the_upper_limit_of_the_spread_is_kept_in_80_of_100_pilots() -> None:
    """The factors of the table: 1.73, 1.35, 1.21 at 4, 8 and 16 seeds."""
    assert [round(spread_upper(1.0, n), 2) for n in (4, 8, 16)] == [1.73, 1.35, 1.21]
    d = np.random.default_rng(0).normal(size=(20_000, 8))
    assert np.mean(d.std(axis=-1, ddof=1) * spread_upper(1.0, 8) >= 1) == pytest.approx(0.8, abs=0.01)


def test_the_metric_that_decides_best_has_the_largest_effect_in_its_own_spreads() -> None:
    base, noise = np.zeros(6), np.random.default_rng(0).normal(size=6)
    metrics = {"blurred": -1 + noise, "sharp": -0.1 + 0.01 * noise, "blind": 0.001 * (noise - noise.mean())}
    order = by_decisiveness([spread_of(name, values, base) for name, values in metrics.items()])
    assert [one.metric for one in order] == ["sharp", "blurred", "blind"]


def test_the_tables_of_effects_and_seeds_agree() -> None:
    effects = effects_by_seeds((5, 6, 8), 1, 0.05)
    assert effects == {5: np.inf, 6: pytest.approx(1.81, abs=0.02), 8: pytest.approx(1.20, abs=0.01)}
    needed = seeds_by_effect([0.1, 0.2, 0.3], 0.2, (8,), 1, 0.05)
    assert list(needed.values()) == sorted(needed.values(), reverse=True)
    assert seeds_by_effect([0.1], 0.0, (8,), 1, 0.05) == {
        0.1: 6
    }  # pairs that do not vary: the fewest of the exact test
    assert seeds_by_effect([1e-9], 1.0, (8,), 1, 0.05) == {1e-9: 1_000_000}
    assert seeds_by_effect([0.2001 * effects[8]], 0.2, (8,), 1, 0.05)[0.2001 * effects[8]] == 8


def crossed(random: np.random.Generator, sizes: tuple[int, int, int], spreads: dict[str, float]) -> np.ndarray:
    """Values with a component for each source, for one pair of sources, and for the cell."""
    i, o, d = sizes
    parts = {"i": (i, 1, 1), "o": (1, o, 1), "d": (1, 1, d), "io": (i, o, 1), "iod": (i, o, d)}
    return np.add(5.0, sum(spread * random.normal(size=parts[name]) for name, spread in spreads.items()))


def test_sensitivities_are_half_mean_squares_of_pairs() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 1))
    cells = list(itertools.product(range(3), range(2)))
    for name, differing in ((("init",), {0}), (("order",), {1}), (("init", "order"), {0, 1})):
        squares = [
            (values[a][0] - values[b][0]) ** 2 / 2
            for a, b in itertools.product(cells, cells)
            if {axis for axis in (0, 1) if a[axis] != b[axis]} == differing
        ]
        assert sensitivities(values, ("init", "order", "dropout"))[name] == pytest.approx(np.mean(squares) ** 0.5)
    assert len(sensitivities(values, ("init", "order", "dropout"))) == 3


def test_sensitivities_find_the_sources() -> None:
    """Drawing one source anew draws all that it takes part in: they do not add up."""
    random = np.random.default_rng(0)
    spreads = {"i": 3.0, "o": 1.0, "d": 0.0, "io": 2.0, "iod": 0.5}
    tables = [crossed(random, (4, 5, 3), spreads) for _ in range(1500)]
    names = ("init", "order", "dropout")
    found = [{name: one**2 for name, one in sensitivities(values, names).items()} for values in tables]
    means = {name: np.mean([one[name] for one in found]) for name in found[0]}
    assert means[("init",)] == pytest.approx(9 + 4 + 0.25, rel=0.05)
    assert means[("order",)] == pytest.approx(1 + 4 + 0.25, rel=0.05)
    assert means[("dropout",)] == pytest.approx(0.25, rel=0.05)
    assert means[names] == pytest.approx(9 + 1 + 4 + 0.25, rel=0.05)


def test_equal_arms_are_equal_to_the_bit() -> None:
    results = {0: 1.0, 1: float("nan")}
    assert all_equal(results, dict(results))
    assert not all_equal(results, results | {0: np.nextafter(1.0, 2)})
    assert not all_equal(results, {0: 1.0})


def test_two_paths_agree_unless_one_is_shifted() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=32), random.normal(size=32)
    assert paths_agree(one, other) == pytest.approx(stats.mannwhitneyu(one, other, method="exact").pvalue, rel=1e-9)
    assert paths_agree(one, other) > 0.01 > paths_agree(one, other + 1)
    assert paths_agree(one, np.where(other > 0, np.nan, other)) < 0.05
    with pytest.raises(UserError, match="both paths"):
        paths_agree([], one)
