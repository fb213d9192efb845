"""What the rule can see: its minimum detectable effect, found by simulation, and the seeds that an effect needs."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import optimize, special

from eval.verdict.declared import SIMULATED, Contrast, Declared, least_seeds
from eval.verdict.pvalues import paired_t
from eval.verdict.rule import judge

POWER = 0.8
DRAWS = 100_000
SEED = 20_260_101  # not that of the tests, which measure the power at what is found here
AT_ONCE = 20_000
MOST_ARMS = 4  # that are simulated
MOST_EFFECT = 10.0  # in spreads; the fewest seeds that the test can do with see it
MANY = 1_000_000  # seeds; an effect that needs more is told to need as many


def t_power(effect: float, n: int, alpha: float) -> float:
    """How often the two-sided paired t test finds an effect, in spreads, at alpha; a noncentral t distribution."""
    shift, cut = effect * math.sqrt(n), special.stdtrit(n - 1, 1 - alpha / 2)
    below, not_above = np.nan_to_num(special.nctdtr(n - 1, shift, [-cut, cut]))  # nan where it cannot be told from 0
    return float(below + 1 - not_above)


@lru_cache
def t_detectable(n: int, alpha: float) -> float:
    """The effect, in spreads, that the t test alone finds in 80 % of cases."""
    most = 3 * float(special.stdtrit(n - 1, 1 - alpha / 2) + special.stdtrit(n - 1, POWER)) / math.sqrt(n)
    return float(optimize.brentq(lambda effect: t_power(effect, n, alpha) - POWER, 1e-9, most, xtol=1e-9))


@lru_cache
def detectable_effect(looks: tuple[int, ...], arms: int, alpha: float) -> float:
    """The effect of one arm, in spreads of its differences, that the whole rule names in 80 % of cases; inf: none is.

    The arms and the baseline are normal and vary alike, and the other arms are as the baseline. Simulated once, on
    100,000 draws; of more than four arms, one at alpha / arms, since Holm's steps lessen the effect by less than half a
    percent. Above 16 seeds the sign flip costs next to nothing: there the t test's effect at alpha / arms is scaled by
    what the rule costs at 16.
    """
    n = looks[-1]
    if n < least_seeds(arms, alpha):
        return math.inf
    if arms > MOST_ARMS:
        return detectable_effect(looks, 1, alpha / arms)
    if n > SIMULATED:
        smaller = tuple(max(2, round(look * SIMULATED / n)) for look in looks)
        return t_detectable(n, alpha / arms) * _cost(smaller, arms, alpha)
    noise = np.random.default_rng(SEED).normal(scale=math.sqrt(0.5), size=(arms + 1, DRAWS, n))
    start = t_detectable(n, alpha / arms)
    few = noise[:, : DRAWS // 40]
    near = optimize.brentq(lambda one: _power(few, one, looks, alpha) - POWER, 0.5 * start, 3 * start, xtol=0.01)
    # From so near by that the t test's slope there is the rule's: all draws are needed once.
    slope = (t_power(1.01 * near, n, alpha / arms) - t_power(0.99 * near, n, alpha / arms)) / (0.02 * near)
    return near + (POWER - _power(noise, near, looks, alpha)) / slope


def _power(noise_CZN: np.ndarray, effect: float, looks: tuple[int, ...], alpha: float) -> float:
    """How often the rule names the arm with the effect, on the right side.

    Counted as what it gains and loses against the t test at alpha / arms on the same draws, whose power is known.
    """
    arms, n, gained = len(noise_CZN) - 1, noise_CZN.shape[-1], 0
    declared = declared_alike(looks, arms, alpha)
    for start in range(0, noise_CZN.shape[1], AT_ONCE):
        cells = planted(noise_CZN[:, start : start + AT_ONCE], effect)
        d, found = cells["1"] - cells["0"], judge(declared, cells)
        by_t = paired_t(d.mean(axis=-1), d.std(axis=-1, ddof=1), n) <= alpha / arms
        gained += int(np.sum((found.different & (found.sign > 0))[:, 0])) - int(np.sum(by_t))
    return t_power(effect, n, alpha / arms) + gained / noise_CZN.shape[1]


def declared_alike(looks: tuple[int, ...], arms: int, alpha: float = 0.05, **changed: Any) -> Declared:
    """A declaration for simulated cells: the arms 1, 2, ... against the baseline 0."""
    contrasts = tuple(Contrast(str(arm), (str(arm),), ("0",)) for arm in range(1, arms + 1))
    return replace(Declared("simulated", contrasts, "value", "higher", 1.0, alpha, looks), **changed)


def planted(noise_CZN: np.ndarray, effect: float = 0.0) -> dict[str, np.ndarray]:
    """Simulated cells by name, with an effect in the arm 1."""
    return {str(arm): values + effect * (arm == 1) for arm, values in enumerate(noise_CZN)}


@lru_cache
def skewed_coverage(n: int) -> float:
    """How often a 95 % t interval of n skewed differences (lognormal, sigma .8) holds their mean."""
    d = np.random.default_rng(SEED).lognormal(sigma=0.8, size=(AT_ONCE, n))
    distance = np.abs(d.mean(axis=-1) - math.exp(0.8**2 / 2)) * math.sqrt(n) / d.std(axis=-1, ddof=1)
    return float(np.mean(distance <= special.stdtrit(n - 1, 0.975)))


def seeds_needed(effect: float, looks: tuple[int, ...], arms: int, alpha: float) -> int:
    """About how many seeds, by the last look, the rule needs for an effect in spreads; at most a million.

    By the t test at alpha / arms, scaled by what the rule costs more at the declared seeds.
    """
    least = least_seeds(arms, alpha)
    wanted = min(effect, MOST_EFFECT) / _cost(looks if looks[-1] >= least else (max(least, 8),), arms, alpha)
    return _first(lambda n: t_power(wanted, n, alpha / arms) >= POWER, max(2, least))


def _cost(looks: tuple[int, ...], arms: int, alpha: float) -> float:
    return detectable_effect(looks, arms, alpha) / t_detectable(looks[-1], alpha / arms)


def detectable_rate(n: int, arms: int, alpha: float) -> float:
    """The difference of rates that McNemar's test names in 80 % of cases where no seed speaks against it; inf: none."""
    least = least_seeds(arms, alpha)
    return math.inf if n < least else float(special.betaincinv(least, n - least + 1, POWER))


def seeds_for_rate(difference: float, arms: int, alpha: float) -> int:
    """The seeds with which `detectable_rate` is at most this difference; at most a million."""
    return _first(lambda n: detectable_rate(n, arms, alpha) <= difference, least_seeds(arms, alpha))


def _first(holds: Callable[[int], bool], least: int) -> int:
    """The first number from `least` to `MANY` for which something holds that holds for all later ones."""
    low, high = least - 1, least
    while high < MANY and not holds(high):
        low, high = high, min(2 * high, MANY)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
