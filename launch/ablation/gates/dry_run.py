"""What `--dry-run` prints: what the arms of a plan cost, what could be found, and every gate."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.verdict.declared import least_seeds
from eval.verdict.detectable import detectable_effect, detectable_rate
from eval.verdict.planning import spread_upper
from launch.ablation.gates.budget import Budget
from launch.ablation.gates.examine import Examined, examine
from launch.ablation.gates.rules import Gate, counted, difference, failed
from launch.ablation.grid import place_of
from launch.ablation.plan import Plan
from train.devices.machine import use_compilation_cache
from train.run.files.json_files import read_cache


def dry_run(plan: Plan, folder: Path) -> tuple[str, Sequence[Gate]]:
    """The table of a plan, after a few steps of each arm that are timed, and with what its pilot said, if it has run;
    and its gates.

    Raises:
        UserError: as `examine`.
    """
    use_compilation_cache()
    file, found = place_of(plan, folder) / "pilot.json", examine(plan, measured=True)
    return table(plan, found, read_cache(file, _spreads)), found.gates


def table(plan: Plan, examined: Examined, pilot: Mapping[str, Any] | None = None) -> str:
    """What `--dry-run` prints: of each arm its difference from the baseline and its costs, then what can be found, and
    the gates. pilot: what was written of one, with `contrasts`, each of a `spread`, and `seeds`.
    """
    lines = [plan.question, ""]
    header = ["arm", "parameters", "without embeddings", "FLOPs/token", "tokens", "GiB", "minutes a seed", "seeds"]
    rows = [header, *([arm, *_row(plan, arm, budget)] for arm, budget in examined.budgets.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines += ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    lines += ["", *(_differs(plan, arm) for arm in plan.arms if arm != plan.baseline)]
    minutes = [budget.minutes for budget in examined.budgets.values()]
    if all(one is not None for one in minutes):
        total = sum((one or 0) * plan.runs(arm) for arm, one in zip(plan.arms, minutes, strict=True))
        lines.append(f"all runs one after the other: {total:.3g} minutes, compilation and evaluations not counted")
    lines += ["", *_sight(plan, pilot), "", *_gates(plan, examined.gates)]
    return "\n".join(lines)


def _row(plan: Plan, arm: str, budget: Budget) -> list[str]:
    minutes = "-" if budget.minutes is None else f"{budget.minutes:.3g}"
    numbers = f"{budget.parameters:,}", f"{budget.matrices:,}", f"{budget.flops_per_token:.4g}", f"{budget.tokens:,}"
    return [*numbers, f"{budget.memory / 2**30:.3g}", minutes, str(plan.runs(arm))]


def _differs(plan: Plan, arm: str) -> str:
    changes = difference(plan, arm)
    return f"{arm}: " + ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


def _sight(plan: Plan, pilot: Mapping[str, Any] | None) -> list[str]:
    """The smallest n, and the effects that would be found in 80 % of cases."""
    m = len(plan.contrasts)
    lines = [
        f"smallest n that can reach alpha={plan.alpha:g} with {counted(m)}: "
        f"{least_seeds(m, plan.alpha)}; declared: {len(plan.seeds)}"
    ]
    if plan.success is not None:
        rate = detectable_rate(plan.looks[-1], m, plan.alpha)
        return [
            *lines,
            f"found in 80 % of cases, where no seed speaks against it: {rate:.2f} of the seeds more or less",
        ]
    effect = detectable_effect(plan.looks, m, plan.alpha)
    lines.append(f"found in 80 % of cases: {effect:.2f} spreads of a pair's difference")
    count = len(pilot["seeds"]) if pilot else 0
    for name, spread in _spreads(pilot).items() if pilot else ():
        if spread is not None:
            upper = spread_upper(spread, count)
            lines.append(
                f"{name}: {effect * spread:.4g} of {plan.judged} at the pilot's spread of {spread:.4g}, "
                f"{effect * upper:.4g} at its 80 % upper limit of {upper:.4g} ({count} seeds); D is {plan.smallest}"
            )
    return lines


def _spreads(pilot: Mapping[str, Any]) -> dict[str, float | None]:
    """What a pilot says of each contrast; without seeds, nothing."""
    return {name: one["spread"] for name, one in pilot["contrasts"].items() if pilot["seeds"]}


def _gates(plan: Plan, gates: Iterable[Gate]) -> list[str]:
    closed = failed(plan, gates)
    lines = []
    for gate in gates:
        word = "refused" if gate in closed else "holds" if gate.passed else "waived"
        reason = f" ({plan.waived[gate.name]})" if word == "waived" else ""
        lines.append(f"gate {gate.name}: {word}: {gate.text}{reason}")
    return lines
