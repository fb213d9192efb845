"""What records say, by arm and seed: the endpoint that is judged, its pairs, and the metrics beside it."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eval.verdict.declared import Contrast
from launch.ablation.plan import Plan
from launch.ablation.programs import Record

Records = Mapping[tuple[str, float | None], Sequence[Record]]  # by arm and learning rate
Values = dict[str, dict[int, float]]  # arm to seed to value


def values_of(records: Records, metric: str) -> Values:
    """The values at the last step; infinite for a seed that failed."""
    return {
        arm: {seed: value for record in own for seed, value in record.of(metric).items()}
        for (arm, _), own in records.items()
    }


def by_arm(records: Records) -> dict[str, list[Record]]:
    """What all programs of an arm have left, at whatever learning rate."""
    found: dict[str, list[Record]] = {}
    for (arm, _), own in records.items():
        found.setdefault(arm, []).extend(own)
    return found


def results_of(plan: Plan, records: Records) -> Values:
    """What is judged: the endpoint, or its sensitivity to the learning rate.

    That is the mean over the grid of min(loss, loss of the first parameters), less the least loss (Wortsman et al.
    2023, section 2.2). The first loss is that of step 1, on the first batch, which a seed has at every rate alike. A
    seed that fails at every rate has failed.
    """
    if plan.contrast != "sensitivity":
        return values_of(records, plan.endpoint)
    found: Values = {}
    for arm, own in by_arm(records).items():
        first = {seed: loss for record in own for seed, loss in record.first.items()}
        losses: dict[int, list[float]] = {}
        for record in own:
            for seed, loss in record.of(plan.endpoint).items():
                losses.setdefault(seed, []).append(loss)
        found[arm] = {seed: _sensitivity(one, first.get(seed, math.inf)) for seed, one in losses.items()}
    return found


def _sensitivity(losses: Sequence[float], first: float) -> float:
    if not any(map(math.isfinite, losses)):
        return math.inf
    return sum(min(loss, first) for loss in losses) / len(losses) - min(losses)


def others_of(plan: Plan, records: Records) -> dict[str, Values]:
    """Every other metric; of a sensitivity, the endpoint at each learning rate, and at the best of each seed."""
    if plan.contrast != "sensitivity":
        metrics = sorted({metric for own in records.values() for record in own for metric in record.values})
        return {metric: values_of(records, metric) for metric in metrics if metric != plan.endpoint}
    found = {}
    for rate in sorted({rate for _, rate in records if rate is not None}):
        there = {cell: own for cell, own in records.items() if cell[1] == rate}
        found[f"{plan.endpoint} at the learning rate {rate:g}"] = values_of(there, plan.endpoint)
    best: Values = {arm: {} for arm in plan.arms}
    for values in found.values():
        for arm, own in values.items():
            best[arm] |= {seed: min(value, best[arm].get(seed, math.inf)) for seed, value in own.items()}
    return {f"least {plan.endpoint} of all learning rates": best, **found}


def sides(contrast: Contrast, values: Values, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) each: the sums of what a contrast adds, and of what it takes away, seed by seed."""
    plus, minus = (
        np.sum([[values[arm][seed] for seed in seeds] for arm in arms], axis=0)
        for arms in (contrast.plus, contrast.minus)
    )
    return plus, minus
