"""The tests of differences against SciPy's and statsmodels', and against counting by hand."""

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from eval.verdict.pvalues import holm, paired_t, rank_sum, ranked, sign_flip, tost


def summary(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    return d.mean(axis=-1), d.std(axis=-1, ddof=1), d.shape[-1]


@pytest.mark.parametrize("n", [2, 3, 5, 8, 11, 12])
@pytest.mark.parametrize("decimals", [17, 1, 0])  # ties, and zeros
def test_the_sign_flip_is_scipys_exact_one(n: int, decimals: int) -> None:
    d = np.round(np.random.default_rng(n).normal(0.5, 1, (3, n)), decimals)
    scipys = [
        stats.permutation_test((one,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue for one in d
    ]
    np.testing.assert_allclose(sign_flip(d), scipys, rtol=1e-12)


def test_the_sign_flip_stays_exact_where_scipys_turns_random() -> None:
    d = np.random.default_rng(0).normal(0.4, 1, 16)
    signs = 1 - 2 * (np.arange(2**16)[:, None] >> np.arange(16) & 1)
    assert sign_flip(d) == np.mean(np.abs(signs @ d) >= abs(d.sum()) * (1 - 1e-9))
    assert sign_flip(np.ones((2, 3, 40))).tolist() == [[2**-39] * 3] * 2


def test_sums_that_differ_by_rounding_are_ties() -> None:
    """0.1 + 0.2 is not 0.3: without a tolerance half of the patterns that tie are lost."""
    assert sign_flip(np.array([0.1, 0.2, 0.3])) == 0.25
    assert sign_flip(np.array([0.3, -0.1, -0.2])) == 1.0


def test_the_signed_ranks_are_wilcoxons() -> None:
    d = np.random.default_rng(1).normal(0.5, 1, (20, 9))
    exact = stats.wilcoxon(d, axis=-1, method="exact").pvalue
    np.testing.assert_allclose(sign_flip(ranked(d)), exact, rtol=1e-12)


def test_signed_ranks_share_ties_and_the_top_and_drop_zeros() -> None:
    d = np.array([0.3 - 0.2, -(0.2 - 0.1), np.inf, 0.0, -np.inf, 5.0, 0.0])
    assert ranked(d).tolist() == [1.5, -1.5, 4.5, 0.0, -4.5, 3.0, 0.0]
    assert ranked(np.array([np.inf, np.inf, 0.0])).tolist() == [1.5, 1.5, 0.0]
    assert sign_flip(ranked(np.zeros(8))) == 1.0


def test_t_and_equivalence_are_scipys_and_statsmodels() -> None:
    random = np.random.default_rng(2)
    for n in (3, 8, 16):
        plus, minus = random.normal(0.3, 1, (2, n))
        d = plus - minus
        assert paired_t(*summary(d)) == pytest.approx(stats.ttest_rel(plus, minus).pvalue, rel=1e-9)
        assert tost(*summary(d), 0.7) == pytest.approx(ttost_paired(plus, minus, -0.7, 0.7)[0], rel=1e-9)


@pytest.mark.parametrize(
    ("constant", "p_t", "p_tost"), [(0.0, 1.0, 0.0), (0.4, 0.0, 0.0), (-0.5, 0.0, 1.0), (0.6, 0.0, 1.0)]
)
def test_differences_without_spread(constant: float, p_t: float, p_tost: float) -> None:
    mean, spread = np.array(constant), np.array(0.0)
    assert (paired_t(mean, spread, 8), tost(mean, spread, 8, 0.5)) == (p_t, p_tost)


def test_holm_is_statsmodels() -> None:
    p = np.random.default_rng(3).uniform(0, 0.3, (4, 5))
    p[:2] = np.round(p[:2], 1)
    np.testing.assert_allclose(holm(p), [multipletests(one, method="holm")[1] for one in p], rtol=1e-9)


def test_the_rank_sum_is_scipys_exact_one_and_counts_ties() -> None:
    random = np.random.default_rng(4)
    for sizes in ((3, 4), (8, 7), (32, 32)):
        one, other = random.normal(0, 1, sizes[0]), random.normal(0.5, 1, sizes[1])
        assert rank_sum(one, other) == pytest.approx(stats.mannwhitneyu(one, other, method="exact").pvalue, rel=1e-9)
    tied = np.array([1, 2, 2, 3, 3, 3, 4.0])
    ranks = stats.rankdata(tied)
    sums = np.array([sum(chosen) for chosen in itertools.combinations(ranks, 3)])
    expected = np.mean(np.abs(sums - 12) >= abs(ranks[:3].sum() - 12))
    assert rank_sum(tied[:3], tied[3:]) == pytest.approx(expected, rel=1e-12)
