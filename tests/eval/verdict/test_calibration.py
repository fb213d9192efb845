"""The judge, judged: false alarms, coverage and power through the real rule; bands are the 99 % binomial ones."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from eval.verdict import detectable
from eval.verdict.declared import Declared
from eval.verdict.detectable import (
    declared_alike,
    detectable_effect,
    planted,
    seeds_needed,
    skewed_coverage,
    t_detectable,
    t_power,
)
from eval.verdict.intervals import t_interval
from eval.verdict.rule import Findings, judge

DRAWS = [2_000, pytest.param(20_000, marks=pytest.mark.rest)]
ALPHA = 0.05


def band(share: float, draws: int) -> tuple[float, float]:
    """The shares between which 99 % of all experiments with so many draws fall."""
    low, high = (stats.binom.ppf(tail, draws, share) / draws for tail in (0.005, 0.995))
    return float(low), float(high)


def noise(kind: str, arms: int, draws: int, seeds: int) -> np.ndarray:
    """Cells without an effect, baseline first: exchangeable, and a normal pair's difference has spread 1."""
    random = np.random.default_rng(0)
    size = (arms + 1, draws, seeds)
    return random.normal(scale=0.5**0.5, size=size) if kind == "normal" else random.lognormal(sigma=0.8, size=size)


def failing(cells: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.random.default_rng(1).uniform(size=cells.shape) < share, np.nan, cells)


def false_alarms(found: Findings) -> float:
    """The share of draws in which any arm is named."""
    return float(found.different.any(axis=-1).mean())


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("looks", [(8,), (16,), (8, 16)], ids=str)
@pytest.mark.parametrize("arms", [1, 3])
@pytest.mark.parametrize("kind", ["normal", "lognormal"])
def test_false_alarms(kind: str, arms: int, looks: tuple[int, ...], draws: int) -> None:
    cells = planted(noise(kind, arms, draws, looks[-1]))
    assert false_alarms(judge(declared_alike(looks, arms, ALPHA), cells)) <= band(ALPHA, draws)[1]


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("seeds", [8, 16])
@pytest.mark.parametrize("arms", [1, 3])
def test_false_alarms_where_a_fifth_of_the_seeds_fails(arms: int, seeds: int, draws: int) -> None:
    cells = planted(failing(noise("normal", arms, draws, seeds), 0.2))
    assert 0.01 <= false_alarms(judge(declared_alike((seeds,), arms, ALPHA), cells)) <= band(ALPHA, draws)[1]


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("looks", [(8,), (8, 16)], ids=str)
def test_four_nulls_beside_an_effect_are_named_no_more_often(looks: tuple[int, ...], draws: int) -> None:
    found = judge(declared_alike(looks, 5, ALPHA), planted(noise("normal", 5, draws, looks[-1]), 3.0))
    assert found.different[:, 0].mean() > 0.8
    assert found.different[:, 1:].any(axis=-1).mean() <= band(ALPHA, draws)[1]


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize("seeds", [8, 16])
def test_coverage_of_the_interval(seeds: int, draws: int) -> None:
    covered = {}
    for kind in ("normal", "lognormal"):
        found = judge(declared_alike((seeds,), 1, ALPHA), planted(noise(kind, 1, draws, seeds)))
        low, high = t_interval(found.mean, found.spread, seeds, 0.05)
        covered[kind] = float(np.mean((low <= 0) & (high >= 0)))
    least, most = band(0.95, draws)
    assert least <= covered["normal"] <= most
    assert covered["lognormal"] >= least


def test_coverage_of_skewed_differences_is_known_to_be_less() -> None:
    """At 8 and 16 seeds, for a lognormal of .8."""
    assert [round(skewed_coverage(n), 2) for n in (8, 16)] == [0.87, 0.89]


def power(looks: tuple[int, ...], arms: int, draws: int, **changed: float) -> float:
    effect = detectable_effect(looks, arms, ALPHA)
    cells = planted(noise("normal", arms, draws, looks[-1]), effect)
    found = judge(declared_alike(looks, arms, ALPHA, **changed), cells)
    return float((found.different & (found.sign > 0))[:, 0].mean())


@pytest.mark.parametrize(("seeds", "arms"), [(8, 1), (7, 3)])
def test_power_at_the_printed_effect_every_day(seeds: int, arms: int) -> None:
    least, most = band(0.8, 2_000)
    assert least <= power((seeds,), arms, 2_000) <= most


@pytest.mark.rest
@pytest.mark.parametrize(
    ("looks", "arms"),
    [((6,), 1), ((8,), 1), ((16,), 1), ((7,), 3), ((8,), 3), ((16,), 3), ((8, 16), 1), ((24,), 1), ((9,), 10)],
    ids=str,
)
def test_power_at_the_printed_effect(looks: tuple[int, ...], arms: int) -> None:
    assert power(looks, arms, 20_000) == pytest.approx(0.8, abs=0.01)
    assert power(looks, arms, 2_000, smallest=0.01) == power(looks, arms, 2_000, smallest=9.0)


def test_the_printed_effect_is_that_of_the_whole_rule() -> None:
    """And not of the t test, 1.16 at eight seeds; too few seeds see nothing."""
    assert detectable_effect((8,), 1, ALPHA) == pytest.approx(1.20, abs=0.01)
    assert t_detectable(8, ALPHA) == pytest.approx(1.16, abs=0.005)
    assert detectable_effect((5,), 1, ALPHA) == np.inf


def test_the_printed_effect_is_found_on_all_draws_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict waits for it: the search is on a few of the draws, and all 100,000 correct what it finds."""
    judged, known = [], detectable_effect((6,), 1, ALPHA)  # which may be kept from before, or not

    def counting(declared: Declared, cells: Mapping[str, np.ndarray]) -> Findings:
        judged.append(len(cells["0"]))
        return judge(declared, cells)

    monkeypatch.setattr(detectable, "judge", counting)
    assert detectable_effect.__wrapped__((6,), 1, ALPHA) == known
    assert 100_000 <= sum(judged) <= 130_000


def test_the_seeds_needed_agree_with_the_printed_effect() -> None:
    effect = detectable_effect((8,), 1, ALPHA)
    assert [seeds_needed(one, (8,), 1, ALPHA) for one in (effect * 1.001, effect * 0.999, 9.0)] == [8, 9, 6]
    assert seeds_needed(0.1, (4,), 1, ALPHA) == pytest.approx(
        TTestPower().solve_power(0.1, power=0.8, alpha=ALPHA), rel=0.1
    )


@pytest.mark.parametrize(
    ("effect", "n", "alpha"), [(1.2, 8, 0.05), (0.3, 4, 0.01), (1.5, 16, 0.05 / 3), (0.01, 9999, 0.05)]
)
def test_the_power_of_t_is_statsmodels(effect: float, n: int, alpha: float) -> None:
    assert t_power(effect, n, alpha) == pytest.approx(TTestPower().power(effect, n, alpha), rel=1e-9)


@pytest.mark.parametrize("draws", DRAWS)
def test_a_shift_is_seen_where_one_seed_in_twenty_fails(draws: int) -> None:
    cells = planted(failing(noise("normal", 1, draws, 8), 0.05), 2 * detectable_effect((8,), 1, ALPHA))
    found = judge(declared_alike((8,), 1, ALPHA), cells)
    assert 0.4 < found.failed.mean() < 0.7
    assert (found.different & (found.sign > 0)).mean() >= 0.6


@pytest.mark.parametrize("draws", DRAWS)
@pytest.mark.parametrize(("looks", "arms"), [((8,), 1), ((16,), 1), ((8, 16), 1), ((8,), 3)], ids=str)
def test_a_difference_of_d_is_rarely_called_smaller(looks: tuple[int, ...], arms: int, draws: int) -> None:
    """Whatever the spread is in units of D, either sign, by the words EQUIVALENT and BELOW D."""
    for smallest in (0.5, 1.0, 2.0, 4.0):
        for effect in (smallest, -smallest):
            cells = planted(noise("normal", arms, draws, looks[-1]), effect)
            found = judge(declared_alike(looks, arms, ALPHA, smallest=smallest), cells)
            assert found.within[:, 0].mean() <= band(ALPHA, draws)[1], effect


def test_skipping_needless_sign_flips_changes_no_word() -> None:
    cells = planted(failing(noise("normal", 3, 2_000, 16), 0.01), 0.7)
    declared = declared_alike((8, 16), 3, ALPHA)
    few, every = judge(declared, cells), judge(declared, cells, every_p=True)
    assert np.isnan(few.p_flip).mean() > 0.1
    assert not np.isnan(every.p_flip).any()
    assert (few.words("higher") == every.words("higher")).all()
    np.testing.assert_array_equal(few.held, every.held)
