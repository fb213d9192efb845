"""One contrast of a verdict: what its page shows of it."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from eval.verdict import detectable
from eval.verdict.declared import Contrast, Declared, Results
from eval.verdict.intervals import Interval, rates_interval, t_interval, wilson
from eval.verdict.rule import INVALID, Findings, differences, succeeded

Array = np.ndarray


@dataclass(frozen=True)
class Rate:
    """How many of the seeds succeeded (did not fail, or reached the declared threshold), and Wilson's 95 % interval."""

    successes: int
    seeds: int
    interval: Interval


@dataclass(frozen=True)
class Row:
    """One contrast, and all that a page shows of it; None where a number has no meaning there.

    `look` is 1 or 2, and `level` what Holm's p is compared with at it. `good` says whether the difference has the good
    sign (None: it is 0). Means, differences, `spread` (their standard deviation) and intervals are in the endpoint's
    units; `interval` is at 1 - alpha / contrasts, `interval_95` at 95 %. `p` is what the rule takes, named by `test`,
    and `p_holm` adjusted. `detectable` is the effect that this rule finds in 80 % of cases, `detectable_spreads` the
    same in spreads; `coverage_skewed` is what a 95 % t interval of so many skewed differences really covers. `failed`
    holds the failed seeds of each cell, and `plus_rate` and `minus_rate` how many seeds of each side succeeded: did not
    fail, or reached the declared threshold. `held`: the sign flip alone held a difference back.
    """

    contrast: Contrast
    word: str
    good: bool | None
    look: int
    level: float
    seeds: tuple[int, ...]
    test: str
    plus_mean: float | None
    minus_mean: float | None
    differences: tuple[float, ...]
    difference: float | None
    spread: float | None
    interval: Interval | None
    interval_95: Interval | None
    coverage_skewed: float | None
    p_t: float | None
    p_flip: float | None
    p: float
    p_holm: float
    p_tost: float | None
    p_tost_holm: float | None
    detectable: float | None
    detectable_spreads: float | None
    seeds_needed: int | None
    correlation: float | None
    failed: dict[str, tuple[int, ...]]
    plus_rate: Rate
    minus_rate: Rate
    held: bool
    sentences: tuple[str, ...] = ()


def make_row(
    declared: Declared,
    contrast: Contrast,
    results: Results,
    seeds: tuple[int, ...],
    found: Findings,
    invalid: bool,
) -> Row:
    """The row of one contrast, from what was found for it at its look."""
    seeds = seeds[: declared.looks[int(found.look)]]
    n, arms, success = len(seeds), len(declared.contrasts), declared.success is not None
    cells = {name: np.array([results[name].get(seed, np.nan) for seed in seeds]) for name in contrast.cells}
    alone = replace(declared, contrasts=(contrast,))
    d = differences(alone, {name: values[None] for name, values in cells.items()})[0][0, 0]
    whole = not (found.failed or success)
    sides = [_side(declared, [cells[name] for name in side]) for side in (contrast.plus, contrast.minus)]
    mean, spread = _finite(found.mean), _finite(found.spread)
    interval, interval_95 = (_interval(found, d, success, alpha) for alpha in (declared.alpha / arms, 0.05))
    in_spreads = _finite(detectable.detectable_effect(declared.looks, arms, declared.alpha)) if whole else None
    return Row(
        contrast=contrast,
        word=INVALID if invalid else str(found.words(declared.good_sign)),
        good=bool(found.good(declared.good_sign)) if found.sign else None,
        look=int(found.look) + 1,
        level=float(found.level),
        seeds=seeds,
        test=_test(declared, found),
        plus_mean=None if found.failed else float(np.mean(sides[0][1])),
        minus_mean=None if found.failed else float(np.mean(sides[1][1])),
        differences=tuple(d.tolist()),
        difference=mean,
        spread=spread,
        interval=interval,
        interval_95=interval_95,
        coverage_skewed=detectable.skewed_coverage(n) if whole else None,
        p_t=_finite(found.p_t),
        p_flip=_finite(found.p_flip),
        p=float(found.p),
        p_holm=float(found.p_holm),
        p_tost=None if found.failed else float(found.p_tost),
        p_tost_holm=None if found.failed else float(found.p_tost_holm),
        detectable=_detectable(declared, in_spreads, spread),
        detectable_spreads=in_spreads,
        seeds_needed=_needed(declared, spread),
        correlation=_correlation(sides[0][1], sides[1][1]) if whole else None,
        failed={
            name: tuple(seed for seed, value in zip(seeds, values, strict=True) if not np.isfinite(value))
            for name, values in cells.items()
        },
        plus_rate=sides[0][0],
        minus_rate=sides[1][0],
        held=bool(found.held),
    )


def _side(declared: Declared, cells: list[Array]) -> tuple[Rate, Array]:
    """How many seeds of one side of a contrast succeeded, and its values by seed: sums, or successes."""
    good = np.isfinite(cells).all(axis=0)
    values = np.where(np.isfinite(cells), cells, 0.0).sum(axis=0)
    if declared.success is not None:
        good = values = succeeded(declared.direction, declared.success, cells[0])
    count = int(np.sum(good))
    return Rate(count, len(values), wilson(count, len(values))), values


def _test(declared: Declared, found: Findings) -> str:
    if declared.success is not None:
        return "McNemar"
    if found.look < len(declared.looks) - 1:
        return "paired t"
    return "signed rank" if found.failed else "paired t and sign flip"


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(found: Findings, d: Array, success: bool, alpha: float) -> Interval | None:
    if success:
        return rates_interval(d, alpha)
    return None if found.failed else t_interval(float(found.mean), float(found.spread), len(d), alpha)


def _detectable(declared: Declared, in_spreads: float | None, spread: float | None) -> float | None:
    """In the endpoint's units; a difference of rates where success is the endpoint."""
    if declared.success is not None:
        return _finite(detectable.detectable_rate(declared.looks[-1], len(declared.contrasts), declared.alpha))
    return None if in_spreads is None or spread is None else in_spreads * spread


def _needed(declared: Declared, spread: float | None) -> int | None:
    """The seeds that D needs at this spread."""
    arms = len(declared.contrasts)
    if declared.success is not None:
        return detectable.seeds_for_rate(declared.smallest, arms, declared.alpha)
    if spread is None:
        return None
    effect = declared.smallest / spread if spread else math.inf
    return detectable.seeds_needed(effect, declared.looks, arms, declared.alpha)


def _correlation(plus: Array, minus: Array) -> float | None:
    """Of the two sides over the seeds; None where one of them does not vary."""
    if np.ptp(plus) == 0 or np.ptp(minus) == 0:
        return None
    return float(np.corrcoef(plus, minus)[0, 1])
