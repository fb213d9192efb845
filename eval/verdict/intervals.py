"""Intervals of a difference and of a rate, and the test of equivalence of two paired rates."""

import math

import numpy as np
from scipy import optimize, special, stats

Array = np.ndarray
Interval = tuple[float, float]


def t_interval(mean: float, spread: float, n: int, alpha: float) -> Interval:
    """The 1 - alpha interval of the mean of n differences with this standard deviation."""
    half = float(-special.stdtrit(n - 1, alpha / 2)) * spread / math.sqrt(n)
    return mean - half, mean + half


def wilson(successes: int, n: int, alpha: float = 0.05) -> Interval:
    """Wilson's (1927) interval of a rate of successes among n."""
    z = float(stats.norm.isf(alpha / 2))
    middle = (successes + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(successes * (n - successes) / n + z**2 / 4)
    return middle - half if successes else 0.0, middle + half if successes < n else 1.0


def rates_score(d: Array, difference: float) -> Array:
    """Tango's (1998) score of a difference of two paired rates: standard normal if it is the true one.

    `d` holds -1, 0 or 1 for each seed, on its last axis. Unlike a t statistic it does not take pairs that all agree for
    certainty.
    """
    n, up, down = d.shape[-1], np.sum(d > 0, axis=-1), np.sum(d < 0, axis=-1)
    linear = (2 * n - up + down) * difference - up - down
    constant = -down * difference * (1 - difference)
    fall = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0)) - linear) / (
        4 * n
    )  # the likeliest rate of -1 under that difference
    variance = np.maximum(n * (2 * fall + difference * (1 - difference)), np.finfo(float).tiny)
    return np.asarray((up - down - n * difference) / np.sqrt(variance))


def rates_tost(d: Array, smallest: float) -> Array:
    """p of the two one-sided score tests: small where the rates differ by less than `smallest`."""
    return special.ndtr(np.maximum(rates_score(d, smallest), -rates_score(d, -smallest)))


def rates_interval(d: Array, alpha: float) -> Interval:
    """The differences of rates that the score does not reject at alpha; `d` is one draw of -1, 0 and 1."""
    z, edge = float(stats.norm.isf(alpha / 2)), 1 - 1e-9

    def above(difference: float, level: float) -> float:  # falls as the difference grows
        return float(rates_score(d, difference)) - level

    low = optimize.brentq(above, -edge, edge, args=(z,)) if above(-edge, z) > 0 else -1.0
    high = optimize.brentq(above, -edge, edge, args=(-z,)) if above(edge, -z) < 0 else 1.0
    return low, high
