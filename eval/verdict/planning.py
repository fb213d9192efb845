"""Power first: what pilot seeds say about the seeds and the metric, and whether equal arms are told to be equal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from eval.verdict.detectable import detectable_effect, seeds_needed
from eval.verdict.pvalues import rank_sum
from model.errors import UserError

Array = np.ndarray


@dataclass(frozen=True)
class Spread:
    """How one metric's pairs differ over the pilot's seeds, in its units.

    `upper` is the 80 % upper limit of `spread`, which is the standard deviation of the differences; a plan that counts
    with it is rarely too small. `effect` is the mean difference in spreads, without its sign. `correlation` is of the
    two sides over the seeds, None where one does not vary.
    """

    metric: str
    seeds: int
    base_mean: float
    mean: float
    spread: float
    upper: float
    effect: float
    correlation: float | None


def spread_upper(spread: float, n: int, share: float = 0.8) -> float:
    """The upper limit that a true standard deviation keeps in that share of cases; normal differences."""
    return spread * math.sqrt((n - 1) / (2 * special.gammaincinv((n - 1) / 2, 1 - share)))


def spread_of(metric: str, plus: Array, minus: Array) -> Spread:
    """The spread of plus minus minus, by seed.

    Raises:
        UserError: a value is not finite, or there are fewer than two.
    """
    plus, minus = np.asarray(plus, float), np.asarray(minus, float)
    d = plus - minus
    if len(d) < 2 or not np.isfinite(d).all():
        raise UserError(f"the pilot's {metric} must have at least two seeds and none that failed: it is {d.tolist()}.")
    mean, spread = float(d.mean()), float(d.std(ddof=1))
    varies = np.ptp(plus) > 0 and np.ptp(minus) > 0
    return Spread(
        metric=metric,
        seeds=len(d),
        base_mean=float(minus.mean()),
        mean=mean,
        spread=spread,
        upper=spread_upper(spread, len(d)),
        effect=abs(mean) / spread if spread else math.inf if mean else 0.0,
        correlation=float(np.corrcoef(plus, minus)[0, 1]) if varies else None,
    )


def by_decisiveness(spreads: Sequence[Spread]) -> list[Spread]:
    """The metric that decides best first: the one whose difference in the pilot is the most of its own spreads."""
    return sorted(spreads, key=lambda one: -one.effect)


def effects_by_seeds(seeds: Sequence[int], arms: int, alpha: float) -> dict[int, float]:
    """The minimum detectable effect, in spreads, of one look at each number of seeds; inf where no effect is found."""
    return {n: detectable_effect((n,), arms, alpha) for n in seeds}


def seeds_by_effect(
    effects: Sequence[float], spread: float, looks: tuple[int, ...], arms: int, alpha: float
) -> dict[float, int]:
    """About how many seeds each effect, in the endpoint's units, needs at this spread."""
    return {one: seeds_needed(one / spread if spread else math.inf, looks, arms, alpha) for one in effects}


def all_equal(results: Mapping[int, float], again: Mapping[int, float]) -> bool:
    """Whether two trainings of the same seeds gave the same bits, a failure in the same seeds included."""
    return results.keys() == again.keys() and all(
        np.float64(value).tobytes() == np.float64(again[seed]).tobytes() for seed, value in results.items()
    )


def paths_agree(population: Sequence[float], single: Sequence[float]) -> float:
    """The exact two-sided p of the Mann-Whitney test of runs of other seeds by two paths.

    Failed runs are the largest values, whichever direction is better: they are equal to each other and to no other run.

    Raises:
        UserError: a path has no run.
    """
    if not (len(population) and len(single)):
        raise UserError("both paths must have runs: population and single.")
    one, other = (np.where(np.isfinite(values), values, np.inf) for values in (population, single))
    return rank_sum(np.asarray(one), np.asarray(other))
