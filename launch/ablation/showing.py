"""What a grid hands to its page: numbers by arm and seed, curves, the ledger's counts, and commands."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.verdict.page import Curve, Shown
from launch.ablation.gates.examine import examined_at
from launch.ablation.ledger import Ledger
from launch.ablation.plan import Plan
from launch.ablation.programs import Record
from train.run.command import command

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

    That is the mean over the grid, in which no loss counts for more than the uniform guess's, ln V, less the best of
    it (Wortsman et al. 2023, section 2.2, whose cap is the loss of the first parameters). A seed that fails at every
    rate has failed.
    """
    if plan.contrast != "sensitivity":
        return values_of(records, plan.endpoint)
    found: Values = {}
    for arm, own in by_arm(records).items():
        cap = math.log(max(2, *(record.vocabulary for record in own)))
        losses: dict[int, list[float]] = {}
        for record in own:
            for seed, value in record.of(plan.endpoint).items():
                losses.setdefault(seed, []).append(value)
        found[arm] = {seed: _sensitivity(one, cap) for seed, one in losses.items()}
    return found


def _sensitivity(losses: Sequence[float], cap: float) -> float:
    if not any(map(math.isfinite, losses)):
        return math.inf
    capped = [min(loss, cap) for loss in losses]
    return sum(capped) / len(capped) - min(capped)


def shown(plan: Plan, rates: Mapping[str, float | None], records: Records, ledger: Ledger, place: Path) -> Shown:
    """What stands on the page beside the verdict."""
    examined = examined_at(place)
    budgets = examined.budgets if examined else {}
    one_rate = plan.contrast != "sensitivity"
    metrics = sorted({metric for own in records.values() for record in own for metric in record.values})
    declared = {name: value for name, value in plan.resolved.items() if name not in ("configs", "name", "question")}
    declared |= {f"learning rate of {arm}": rate for arm, rate in rates.items() if rate is not None}
    return Shown(
        plan={name: _text(value) for name, value in declared.items() if value not in ({}, (), "", None)}
        | {"hash": plan.hash},
        budgets={arm: budget.shown for arm, budget in budgets.items()},
        matched=plan.budget,
        curves={arm: curve for (arm, _), own in records.items() if one_rate and (curve := _curve(own, plan.endpoint))},
        looked=ledger.counts(plan.question),
        commands={arm: command("verify", str(place), arm) for arm in plan.arms},
        waived=plan.waived,
        notes=[*ledger.remarks(plan), *_notes(plan, records)],
        exploratory={metric: values_of(records, metric) for metric in metrics if one_rate and metric != plan.endpoint},
    )


def _notes(plan: Plan, records: Records) -> list[str]:
    """What a reader must know of these runs."""
    found = []
    if "shared" in {plan.resolved["configs"][arm]["data.order"] for arm in plan.arms}:
        found.append("All seeds read the batches in one order: the intervals speak of initial values and dropout only.")
    for (arm, _), own in records.items():
        for record in own:
            if record.alone:
                found.append(
                    f"The population of {arm} with the seeds {record.seeds[0]} to {record.seeds[-1]} diverged: each of"
                    " its seeds was run alone, which differs from the population in the last bits."
                )
            found += [f"{arm}, seed {seed}, failed: {sentence}" for seed, sentence in record.failed.items()]
    return found


def _text(value: object) -> object:
    """Nested tables as one line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_text(one) if one != {} else 'as the base'}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value


def _curve(records: Sequence[Record], metric: str) -> Curve | None:
    """One metric of all seeds of an arm, at every step at which all programs have it; a failed seed's is not finite."""
    having = [record.curves[metric] for record in records if metric in record.curves]
    if not having:
        return None
    steps = sorted({int(step) for curve in having for step in curve})
    values = [
        [_number(record.curves.get(metric, {}).get(str(step)), place) for step in steps]
        for record in records
        for place in range(len(record.seeds))
    ]
    return Curve(steps, values)


def _number(values: Sequence[float | None] | None, place: int) -> float:
    one = values[place] if values else None
    return math.inf if one is None else one
