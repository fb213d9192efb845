"""What a grid hands to its page: curves, other metrics, the ledger's counts, notes, and commands."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import by_position
from eval.verdict.page import Curve, Shown
from launch.ablation.gates.examine import examined_at
from launch.ablation.ledger import Ledger
from launch.ablation.measures import Records, others_of, values_of
from launch.ablation.plan import Plan, config_of
from launch.ablation.programs import Record
from train.run.command import command
from train.run.files.json_files import loads
from train.tasks.table import make_task


def shown(plan: Plan, rates: Mapping[str, float | None], records: Records, ledger: Ledger, place: Path) -> Shown:
    """What stands on the page beside the verdict."""
    examined = examined_at(plan, place)
    budgets = examined.budgets if examined else {}
    over_rates = plan.contrast == "sensitivity"
    declared = {name: value for name, value in plan.resolved.items() if name not in ("configs", "name", "question")}
    declared |= {f"learning rate of {arm}": rate for arm, rate in rates.items() if rate is not None}
    return Shown(
        plan={name: _text(value) for name, value in declared.items() if value not in ({}, (), "", None)}
        | {"hash": plan.hash},
        budgets={arm: budget.shown for arm, budget in budgets.items()},
        matched=plan.budget,
        curves=_by_rate(plan, records) if over_rates else _by_step(plan, records),
        curves_of=plan.endpoint if over_rates else "",
        curves_over="the logarithm of the learning rate, to base 10" if over_rates else "step",
        looked=ledger.counts(plan.question),
        commands={arm: command("verify", str(place), arm) for arm in plan.arms},
        waived=plan.waived,
        notes=[*ledger.remarks(plan), *_widened(plan, place), *_notes(plan, records)],
        exploratory=others_of(plan, records),
    )


def _notes(plan: Plan, records: Records) -> list[str]:
    """What a reader must know of these runs."""
    configs = [plan.resolved["configs"][arm] for arm in plan.arms]
    found = [_sources(configs)]
    windows = sorted(
        {record.where["windows"] for own in records.values() for record in own if "windows" in record.where}
    )
    if windows:
        found.append(
            f"All seeds and arms are measured on the same items, {' or '.join(windows)} rows of the validation split:"
            " the intervals speak of the noise of training, and not of another text."
        )
    config = config_of(plan, next(iter(plan.arms)))
    if told := by_position.meaning(plan.endpoint, make_task(config).measured_length(config)):
        found.append(told)
    for (arm, _), own in records.items():
        for record in own:
            if record.alone:
                found.append(
                    f"The population of {arm} with the seeds {record.seeds[0]} to {record.seeds[-1]} diverged: each of"
                    " its seeds was run alone, which differs from the population in the last bits."
                )
            found += [f"{arm}, seed {seed}, failed: {sentence}" for seed, sentence in record.failed.items()]
    return found


def _sources(configs: Sequence[Mapping[str, Any]]) -> str:
    """Of which sources of noise the intervals speak."""
    varies = ["initial values"]
    if all(config["data.order"] == "own" for config in configs):
        varies.append("order of the batches")
    if any(config["model.dropout"] > 0 and config["train.dropout_seed"] < 0 for config in configs):
        varies.append("dropout")
    return f"From seed to seed these vary, and of no other noise do the intervals speak: {', '.join(varies)}."


def _text(value: object) -> object:
    """Nested tables as one line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_text(one) if one != {} else 'as the base'}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value


def _widened(plan: Plan, place: Path) -> list[str]:
    """That the grid of learning rates was extended in the tune phase, and by which."""
    if not (place / "tuning.json").is_file():
        return []
    tried = loads((place / "tuning.json").read_bytes())["means"][plan.baseline]
    more = [f"{float(rate):g}" for rate in tried if float(rate) not in plan.learning_rates[plan.baseline]]
    if not more:
        return []
    return [
        f"The grid of learning rates was extended in all arms alike, by {' and '.join(more)}: the best of an arm was at"
        " its edge."
    ]


def _by_step(plan: Plan, records: Records) -> dict[str, Curve]:
    """The endpoint over training."""
    return {arm: curve for (arm, _), own in records.items() if (curve := _curve(own, plan.endpoint))}


def _by_rate(plan: Plan, records: Records) -> dict[str, Curve]:
    """The endpoint at the last step over the learning rates; a failed seed's is not finite."""
    found = {}
    for arm in plan.arms:
        rates = sorted(rate for one, rate in records if one == arm and rate is not None)
        each = [values_of({(arm, rate): records[arm, rate]}, plan.endpoint)[arm] for rate in rates]
        values = [[at_rate[seed] for at_rate in each] for seed in each[0]]
        found[arm] = Curve([math.log10(rate) for rate in rates], values)
    return found


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
