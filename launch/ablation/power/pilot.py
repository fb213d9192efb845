"""What pilot seeds say of a plan: spreads, the metric that decides best, and the seeds and hours of an effect."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from eval.verdict.planning import by_decisiveness, effects_by_seeds, seeds_by_effect, spread_of
from launch.ablation.grid import Grid
from launch.ablation.measures import Values, by_arm, others_of, results_of, sides
from launch.ablation.phases import pilot
from launch.ablation.plan import Plan
from launch.ablation.tuning import tune
from model.errors import UserError
from train.run.files.json_files import write

SEEDS = (4, 5, 6, 7, 8, 10, 12, 16)
EFFECTS = (0.5, 1.0, 2.0)  # of D


def foresee(grid: Grid) -> dict[str, Any]:
    """What the pilot says; written to power.json and power.svg.

    Raises:
        UserError: the plan has no pilot, or a seed of it failed.
    """
    plan = grid.plan
    if len(plan.pilot_seeds) < 2:
        raise UserError(f"plan {plan.name}: pilot_seeds={[*plan.pilot_seeds]} must be two or more to tell a spread.")
    rates = tune(grid)
    smallest, _ = pilot(grid, rates)
    records = grid.run("pilot", grid.cells(rates), plan.pilot_seeds)
    every = [record for own in by_arm(records).values() for record in own]
    others = others_of(plan, records)
    if plan.contrast == "sensitivity":  # of whose learning rates some may fail: they are no metric that could decide
        others = {name: own for name, own in others.items() if _sound(own)}
    measured = {plan.endpoint: results_of(plan, records), **others}
    hours = sum(record.seconds / len(record.seeds) for record in every) / len(every) / 3600  # at one learning rate
    hours *= len(records) / len(plan.arms)
    found: dict[str, Any] = {"smallest": smallest, "hours_of_a_seed": hours, "contrasts": {}}
    arms, looks = len(plan.contrasts), plan.looks
    for contrast in plan.contrasts:
        pairs = {metric: sides(contrast, values, plan.pilot_seeds) for metric, values in measured.items()}
        spreads = by_decisiveness([spread_of(metric, *both) for metric, both in pairs.items()])
        own = next(one for one in spreads if one.metric == plan.endpoint)
        needed = seeds_by_effect([smallest * one for one in EFFECTS], own.upper, looks, arms, plan.alpha)
        found["contrasts"][contrast.name] = {
            "metrics": [dataclasses.asdict(one) for one in spreads],
            "effect_to_seeds": [
                {"effect": effect, "seeds": seeds, "hours": seeds * len(contrast.cells) * hours}
                for effect, seeds in needed.items()
            ],
            "seeds_to_effect": [
                {"seeds": seeds, "effect": effect * own.spread, "effect_at_upper": effect * own.upper}
                for seeds, effect in effects_by_seeds(SEEDS, arms, plan.alpha).items()
                if math.isfinite(effect)
            ],
        }
    write(grid.place / "power.json", found)
    _picture(found, plan.endpoint).savefig(grid.place / "power.svg")
    return found


def _sound(values: Values) -> bool:
    return all(math.isfinite(one) for own in values.values() for one in own.values())


def _picture(found: Mapping[str, Any], endpoint: str) -> Figure:
    """The detectable effect against the number of seeds; the dashes are at the upper limit of the spread."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, one in found["contrasts"].items():
        lines = one["seeds_to_effect"]
        seeds = [line["seeds"] for line in lines]
        (drawn,) = axes.plot(seeds, [line["effect"] for line in lines], marker="o", label=name)
        axes.plot(seeds, [line["effect_at_upper"] for line in lines], "--", color=drawn.get_color())
    axes.axhline(found["smallest"], color="gray", linewidth=1, label="D")
    axes.set(xlabel="seeds", ylabel=f"detectable effect on {endpoint}", ylim=(0, None))
    axes.legend()
    return figure


def table(found: Mapping[str, Any], plan: Plan) -> str:
    """The same as lines, for a terminal."""
    lines = [plan.question]
    for name, one in found["contrasts"].items():
        lines += [
            "",
            f"{name}: the metric that decides best first; differences of pairs over {len(plan.pilot_seeds)} seeds",
        ]
        for spread in one["metrics"]:
            rho = "-" if spread["correlation"] is None else f"{spread['correlation']:.2f}"
            mark = " (endpoint)" if spread["metric"] == plan.endpoint else ""
            lines.append(
                f"  {spread['metric']}{mark}: mean {spread['mean']:.4g}, spread {spread['spread']:.4g} (80 % upper"
                f" limit {spread['upper']:.4g}), correlation {rho}"
            )
        for line in one["effect_to_seeds"]:
            lines.append(
                f"  an effect of {line['effect']:.4g} needs {line['seeds']} seeds, {line['hours']:.2g} hours"
                " (at the upper limit)"
            )
        for line in one["seeds_to_effect"]:
            lines.append(
                f"  {line['seeds']} seeds find {line['effect']:.4g}; {line['effect_at_upper']:.4g} at the upper limit"
            )
    return "\n".join(lines)
