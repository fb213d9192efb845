"""What pilot seeds say, against SciPy and simulated pilots."""

import numpy as np
import pytest
from scipy import stats

from eval.verdict.planning import (
    all_equal,
    by_decisiveness,
    effects_by_seeds,
    paths_agree,
    seeds_by_effect,
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
