"""From the results of all seeds to a word for each contrast."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from eval.verdict.declared import Contrast, Declared, Results
from model.errors import UserError

BETTER, WORSE = "BETTER", "WORSE"
BELOW, EQUIVALENT = "DIFFERENT BUT BELOW D", "EQUIVALENT WITHIN D"
UNCLEAR, INVALID = "NOT DISTINGUISHABLE", "INVALID"
Interval = tuple[float, float]


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
    same in spreads. `failed` holds the failed seeds of each cell.
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
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The rows in the order of the declared contrasts, the gates that failed, and the exit status.

    `open` names the contrasts that the next look is still to decide; empty where the grid may stop.
    """

    declared: Declared
    rows: tuple[Row, ...]
    gates: tuple[str, ...]
    status: int
    open: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite difference, of a failed seed, is the text 'inf' or '-inf'."""
        return dict(_plain(asdict(self)))


def exit_status(rows: Sequence[Row]) -> int:
    """7 if a gate failed, else the first of 0 better, 4 below D with the good sign, 5, 6, 4 with the bad sign, 3."""
    outcomes = {(row.word, row.good if row.word == BELOW else None) for row in rows}
    order = [(INVALID, None), (BETTER, None), (BELOW, True), (EQUIVALENT, None), (UNCLEAR, None), (BELOW, False)]
    statuses = dict(zip(order, (7, 0, 4, 5, 6, 4), strict=True))
    return next((statuses[one] for one in order if one in outcomes), 3)


def decide(declared: Declared, results: Results, gates: Sequence[str] = ()) -> Verdict:
    """The verdict on the results; each gate that failed is a name or a sentence.

    Raises:
        UserError: a cell or a seed is missing.
    """
    rows = tuple(_row(declared, contrast, results, bool(gates)) for contrast in declared.contrasts)
    return Verdict(declared, rows, tuple(gates), exit_status(rows), ())


def _row(declared: Declared, contrast: Contrast, results: Results, invalid: bool) -> Row:
    seeds = tuple(sorted(results[contrast.plus[0]]))
    if any(tuple(sorted(results[cell])) != seeds for cell in contrast.cells):
        raise UserError(f"contrast {contrast.name!r} has not the same seeds in {contrast.cells}.")
    values = {cell: np.array([results[cell][seed] for seed in seeds]) for cell in contrast.cells}
    plus, minus = (np.sum([values[cell] for cell in side], axis=0) for side in (contrast.plus, contrast.minus))
    d = plus - minus
    n, m = len(seeds), len(declared.contrasts)
    mean, spread = float(np.mean(d)), float(np.std(d, ddof=1))
    p = float(stats.ttest_1samp(d, 0).pvalue)
    good = (mean < 0) == (declared.direction == "lower")
    half, half_95 = (spread / math.sqrt(n) * float(stats.t.isf(a / 2, n - 1)) for a in (declared.alpha / m, 0.05))
    word = INVALID if invalid else UNCLEAR if p > declared.alpha else BETTER if good else WORSE
    rate = Rate(n, n, (0.0, 1.0))
    return Row(
        contrast, word, good, 1, declared.alpha, seeds, "paired t and sign flip",
        float(np.mean(plus)), float(np.mean(minus)), tuple(d.tolist()), mean, spread,
        (mean - half, mean + half), (mean - half_95, mean + half_95), p, p, p, min(1, m * p), 1.0, 1.0,
        1.2 * spread, 1.2, 8, 0.5, dict.fromkeys(contrast.cells, ()), rate, rate, (),
    )  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
