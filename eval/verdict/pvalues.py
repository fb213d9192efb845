"""The tests of paired differences, over many draws at once: the last axis is the seeds, all before it are draws."""

import numpy as np
from scipy import special, stats

Array = np.ndarray
TIE = 1e-12  # sums this close, as a share of the largest one, are equal
AT_ONCE = 2**16  # sums that are held at a time, so that they stay in a core's cache


def paired_t(mean: Array, spread: Array, n: int) -> Array:
    """Two-sided p of the paired t test, from the mean and the standard deviation of n differences.

    Without spread: 1 where the mean is 0, else 0.
    """
    apart = 2 * special.stdtr(n - 1, -np.abs(mean) / _error(spread, n))
    return np.where(spread > 0, apart, np.where(mean == 0, 1.0, 0.0))


def tost(mean: Array, spread: Array, n: int, smallest: float) -> Array:
    """p of the two one-sided t tests: small where the true difference lies between -smallest and smallest.

    Without spread: 0 where the mean does, else 1. Schuirmann (1987).
    """
    nearest = (smallest - np.abs(mean)) / _error(spread, n)
    return np.where(spread > 0, special.stdtr(n - 1, -nearest), np.where(np.abs(mean) < smallest, 0.0, 1.0))


def _error(spread: Array, n: int) -> Array:
    return np.where(spread > 0, spread, 1.0) / np.sqrt(n)


def sign_flip(d: Array) -> Array:
    """Two-sided exact p of the sign-flip test: the share of the 2^n patterns of signs with a sum as far from 0.

    Exact where the arm's label does not matter within a seed. Each pattern is a sum of the first half of the seeds and
    one of the second: those of the second are sorted, and what each of the first needs is searched among them. On
    differences of -1, 0 and 1 this is McNemar's exact test.
    """
    n = d.shape[-1]
    rows = d.reshape(-1, n)
    at_once = max(1, AT_ONCE >> (n - n // 2))
    pieces = [_flip(rows[start : start + at_once]) for start in range(0, len(rows), at_once)]
    return np.concatenate([*pieces, np.zeros(0)]).reshape(d.shape[:-1])


def _flip(d_ZN: Array) -> Array:
    n = d_ZN.shape[-1]
    first, second = _sums(d_ZN[:, : n // 2]), np.sort(_sums(d_ZN[:, n // 2 :]), axis=-1)
    target = np.abs(d_ZN.sum(axis=-1)) - TIE * np.abs(d_ZN).sum(axis=-1)
    wanted = target[:, None] - first
    rows, columns = np.nonzero(wanted <= second[:, -1:])  # few where p is small: none of the second reaches the others
    above = np.bincount(rows, second.shape[-1] - _count_below(second, rows, wanted[rows, columns]), len(d_ZN))
    return np.where(target > 0, above / 2.0 ** (n - 1), 1.0)  # the lower tail is as large as the upper one


def _sums(d_ZN: Array) -> Array:
    """The sums of all 2^N patterns of signs, Z x 2^N."""
    sums = np.zeros((len(d_ZN), 1))
    for column in d_ZN.T[:, :, None]:
        sums = np.concatenate([sums + column, sums - column], axis=-1)
    return sums


def _count_below(sorted_ZS: Array, rows_Q: Array, wanted_Q: Array) -> Array:
    """How many of the S = 2^k sorted numbers of its row lie below each wanted one: bisection, of all at once."""
    offset = rows_Q * sorted_ZS.shape[-1]
    flat, found, step = sorted_ZS.ravel(), np.zeros(wanted_Q.shape, np.int64), sorted_ZS.shape[-1] // 2
    while step:
        found += step * (flat[offset + found + step - 1] < wanted_Q)
        step //= 2
    return found + (flat[offset + found] < wanted_Q)


def ranked(d: Array) -> Array:
    """Signed mid-ranks, zeros dropped (they stay 0): `sign_flip` of them is the exact signed-rank test.

    Infinite differences share the highest ranks. Wilcoxon (1945).
    """
    finite = np.where(np.isfinite(d), np.abs(d), 0.0)
    largest = np.max(finite, axis=-1, keepdims=True, initial=0.0)
    sizes = np.where(np.isfinite(d), np.round(finite / np.where(largest > 0, largest, 1.0), 12), np.inf)
    zeros = np.sum(sizes == 0, axis=-1, keepdims=True)
    return np.where(sizes == 0, 0.0, np.sign(d) * (stats.rankdata(sizes, axis=-1) - zeros))


def holm(p: Array) -> Array:
    """Holm's adjusted p over the last axis: all at most a level are rejected at it. Holm (1979)."""
    order = np.argsort(p, axis=-1, kind="stable")
    factors = np.arange(p.shape[-1], 0, -1)
    climbing = np.maximum.accumulate(np.take_along_axis(p, order, axis=-1) * factors, axis=-1)
    adjusted = np.empty_like(climbing)
    np.put_along_axis(adjusted, order, np.minimum(climbing, 1.0), axis=-1)
    return adjusted


def rank_sum(one: Array, other: Array) -> float:
    """Two-sided exact p of the Mann-Whitney test, ties included: the share of labellings with a rank sum as far out.

    The ways are counted by (how many are labelled, sum of doubled mid-ranks), one value after the other, in floats:
    exact to 1e-15 of each count.
    """
    doubled = np.rint(2 * stats.rankdata(np.concatenate([one, other]))).astype(int)
    ways = np.zeros((len(one) + 1, int(doubled.sum()) + 1))
    ways[0, 0] = 1
    for rank in doubled:
        ways[1:, rank:] += ways[:-1, :-rank].copy()
    middle = len(one) * (len(doubled) + 1)
    distance = np.abs(np.arange(ways.shape[1]) - middle)
    return float(ways[-1, distance >= abs(doubled[: len(one)].sum() - middle)].sum() / ways[-1].sum())
