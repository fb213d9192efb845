"""Intervals against SciPy's and statsmodels', and against the likelihood itself."""

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from eval.verdict.intervals import rates_interval, rates_score, rates_tost, t_interval, wilson
from eval.verdict.pvalues import sign_flip


def test_the_t_interval_is_scipys() -> None:
    d = np.random.default_rng(0).normal(1, 2, 8)
    expected = stats.ttest_1samp(d, 0).confidence_interval(1 - 0.05 / 3)
    assert t_interval(d.mean(), d.std(ddof=1), 8, 0.05 / 3) == pytest.approx(tuple(expected), rel=1e-9)


@pytest.mark.parametrize("n", [1, 8, 16])
def test_wilsons_interval_is_statsmodels(n: int) -> None:
    for successes in range(n + 1):
        expected = proportion_confint(successes, n, method="wilson")
        assert wilson(successes, n) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert (wilson(0, n)[0], wilson(n, n)[1]) == (0, 1)  # exactly: a page would show what is left


def pairs(up: int, down: int, same: int) -> np.ndarray:
    return np.array([1.0] * up + [-1.0] * down + [0.0] * same)


@pytest.mark.parametrize(("up", "down", "same"), [(6, 0, 2), (5, 1, 2), (3, 3, 2), (0, 0, 8), (9, 2, 5)])
def test_the_sign_flip_of_successes_is_mcnemars_exact_test(up: int, down: int, same: int) -> None:
    expected = mcnemar([[same, up], [down, 0]], exact=True).pvalue
    assert sign_flip(pairs(up, down, same)) == pytest.approx(expected, rel=1e-9)


def likeliest_score(up: int, down: int, same: int, difference: float) -> float:
    """The score where the rate of -1 is found by maximising the likelihood, and not by a formula."""

    def loss(fall: float) -> float:
        rates = np.array([fall + difference, fall, 1 - 2 * fall - difference])
        return -float(np.sum(np.array([up, down, same]) * np.log(np.maximum(rates, 1e-300))))

    low, high = max(0.0, -difference), (1 - difference) / 2
    fall = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    n = up + down + same
    return float((up - down - n * difference) / np.sqrt(n * (2 * fall + difference - difference**2)))


@pytest.mark.parametrize(("up", "down", "same"), [(6, 1, 2), (1, 3, 4), (3, 0, 5), (0, 0, 8), (8, 0, 0)])
def test_the_score_of_two_rates_is_that_of_the_likeliest_ones(up: int, down: int, same: int) -> None:
    d = pairs(up, down, same)
    for difference in (-0.5, -0.2, 0.1, 0.4):
        expected = likeliest_score(up, down, same, difference)
        assert rates_score(d, difference) == pytest.approx(expected, abs=1e-4)
    low, high = rates_interval(d, 0.05)
    assert low < np.mean(d) <= high or (low, high) == (pytest.approx(low), 1.0)
    for end, z in ((low, 1.959964), (high, -1.959964)):
        assert abs(end) == 1 or rates_score(d, end) == pytest.approx(z, abs=1e-5)
    p = max(stats.norm.cdf(rates_score(d, 0.3)), stats.norm.sf(rates_score(d, -0.3)))
    assert rates_tost(d, 0.3) == pytest.approx(p, rel=1e-9)


def test_any_pairs_and_any_d_have_a_p_and_an_interval() -> None:
    """The score's root is of a number that rounding makes less than 0; the p falls as D grows."""
    for n, up in ((9, 0), (13, 0), (8, 8), (8, 4)):
        d = pairs(up, n - up, 0)
        p = [float(rates_tost(d, smallest)) for smallest in (1e-300, 0.01, 0.5, 0.99, 1 - 1e-12)]
        assert p == sorted(p, reverse=True)
        low, high = rates_interval(d, 1e-6)
        assert -1 <= low <= np.mean(d) <= high <= 1


def test_eight_pairs_that_agree_are_no_certainty() -> None:
    assert rates_tost(pairs(0, 0, 8), 0.2) > 0.05 > rates_tost(pairs(0, 0, 16), 0.2)
