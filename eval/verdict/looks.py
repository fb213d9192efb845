"""The levels of one look or two, so that both together have the declared size."""

import math
from functools import lru_cache

import numpy as np
from scipy import optimize, special

FIRST = 10  # the first of two looks spends alpha / 10
POINTS = 48  # of each of three integrals


@lru_cache(maxsize=256)
def levels(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """What Holm's p is compared with at each look.

    The second level is solved for one contrast, the t test alone and normal differences, so that both looks together
    have size alpha: about .047 for 8 and 16 seeds at .05. Never above alpha.
    """
    if len(looks) == 1:
        return (alpha,)
    first = alpha / FIRST
    low, high = 0.5 * alpha, alpha
    if two_look_size(looks, first, high) <= alpha:
        return first, high
    return first, float(optimize.brentq(lambda level: two_look_size(looks, first, level) - alpha, low, high, xtol=1e-9))


def two_look_size(looks: tuple[int, ...], first: float, second: float) -> float:
    """How often normal differences without an effect have a t test's p at most `first`, or then at most `second`.

    z and w are the scaled means of the first and of the later seeds, v and u their sums of squares. Whatever z, v and u
    are, the second look finds w beyond the roots of a quadratic (or between them), which the normal distribution gives.
    The other three are integrated.
    """
    n, total = looks
    cut, last_cut = (float(special.stdtrit(k - 1, 1 - p / 2)) for k, p in zip(looks, (first, second), strict=True))
    v, v_weights = _chi_square(n - 1)
    u, u_weights = _chi_square(total - n - 1)
    k, a, b = last_cut**2 / (total - 1), n / total, 1 - n / total
    lead = b - k * a
    nodes, z_weights = _uniform(POINTS if lead > 0 else 8 * POINTS)  # below 0 there is a kink
    edge = cut * np.sqrt(v[:, None, None] / (n - 1))  # the first look goes on while |z| is below it
    z = edge * nodes[:, None]
    half = math.sqrt(a * b) * (1 + k) * z
    root = np.sqrt(np.maximum(k * (z**2 + lead * (v[:, None, None] + u)), 0))
    near, far = special.ndtr((-half - root) / lead), special.ndtr((-half + root) / lead)
    found = near + 1 - far if lead > 0 else near - far
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * edge
    return first + float(np.einsum("i,j,k,ijk->", v_weights, z_weights, u_weights, density * found))


@lru_cache
def _uniform(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the integral of a function from -1 to 1."""
    return np.polynomial.legendre.leggauss(points)


@lru_cache
def _chi_square(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the mean of a function of a chi-square number; without freedom it is 0."""
    if freedom == 0:
        return np.zeros(1), np.ones(1)
    points, weights = special.roots_genlaguerre(POINTS, freedom / 2 - 1)
    return 2 * points, weights / weights.sum()
