"""What pilot seeds say of a plan: spreads, the metric that decides best, and the seeds and hours of an effect."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from eval.verdict.detectable import detectable_rate, seeds_for_rate
from eval.verdict.planning import Spread, by_decisiveness, effects_by_seeds, seeds_by_effect, spread_of
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
    measured = {plan.judged: results_of(plan, records), **others}
    # What may have failed has no spread by which one could decide: some learning rates, or runs where success decides.
    sensitivity = {*others} if plan.contrast == "sensitivity" else set()
    optional = sensitivity if plan.success is None else {*measured}
    measured = {name: own for name, own in measured.items() if name not in optional or _sound(own)}
    hours = sum(record.seconds / len(record.seeds) for record in every) / len(every) / 3600  # at one learning rate
    hours *= len(records) / len(plan.arms)
    found: dict[str, Any] = {"smallest": smallest, "hours_of_a_seed": hours, "contrasts": {}}
    for contrast in plan.contrasts:
        pairs = {metric: sides(contrast, values, plan.pilot_seeds) for metric, values in measured.items()}
        spreads = by_decisiveness([spread_of(metric, *both) for metric, both in pairs.items()])
        needed, seen = _rates(plan, smallest) if plan.success is not None else _effects(plan, smallest, spreads)
        found["contrasts"][contrast.name] = {
            "metrics": [dataclasses.asdict(one) for one in spreads],
            "effect_to_seeds": [
                {"effect": effect, "seeds": seeds, "hours": seeds * len(contrast.cells) * hours}
                for effect, seeds in needed.items()
            ],
            "seeds_to_effect": [
                {"seeds": seeds, "effect": effect, "effect_at_upper": upper}
                for seeds, (effect, upper) in seen.items()
                if math.isfinite(effect)
            ],
        }
    write(grid.place / "power.json", found)
    _picture(found, plan.judged if plan.success is None else "the rate of success").savefig(grid.place / "power.svg")
    return found


Found = tuple[dict[float, int], dict[int, tuple[float, float]]]  # effect to seeds; seeds to effect, and at the limit


def _effects(plan: Plan, smallest: float, spreads: Sequence[Spread]) -> Found:
    """At the pilot's spread of the endpoint and at its upper limit."""
    arms, own = len(plan.contrasts), next(one for one in spreads if one.metric == plan.judged)
    needed = seeds_by_effect([smallest * one for one in EFFECTS], own.upper, plan.looks, arms, plan.alpha)
    seen = effects_by_seeds(SEEDS, arms, plan.alpha)
    return needed, {seeds: (effect * own.spread, effect * own.upper) for seeds, effect in seen.items()}


def _rates(plan: Plan, smallest: float) -> Found:
    """Differences of success rates, where no seed speaks against them: no spread says more."""
    arms, wanted = len(plan.contrasts), [smallest * one for one in EFFECTS if smallest * one <= 1]
    needed = {one: seeds_for_rate(one, arms, plan.alpha) for one in wanted}
    return needed, {seeds: (detectable_rate(seeds, arms, plan.alpha),) * 2 for seeds in SEEDS}


def _sound(values: Values) -> bool:
    return all(math.isfinite(one) for own in values.values() for one in own.values())


def _picture(found: Mapping[str, Any], judged: str) -> Figure:
    """The detectable effect against the number of seeds; the dashes are at the upper limit of the spread."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, one in found["contrasts"].items():
        lines = one["seeds_to_effect"]
        seeds = [line["seeds"] for line in lines]
        (drawn,) = axes.plot(seeds, [line["effect"] for line in lines], marker="o", label=name)
        axes.plot(seeds, [line["effect_at_upper"] for line in lines], "--", color=drawn.get_color())
    axes.axhline(found["smallest"], color="gray", linewidth=1, label="D")
    axes.set(xlabel="seeds", ylabel=f"detectable effect on {judged}", ylim=(0, None))
    axes.legend()
    return figure


def table(found: Mapping[str, Any], plan: Plan) -> str:
    """The same as lines, for a terminal."""
    lines, limit = [plan.question], " (at the upper limit)" if plan.success is None else ""
    for name, one in found["contrasts"].items():
        lines += [
            "",
            f"{name}: the metric that decides best first; differences of pairs over {len(plan.pilot_seeds)} seeds",
        ]
        for spread in one["metrics"]:
            rho = "-" if spread["correlation"] is None else f"{spread['correlation']:.2f}"
            mark = " (endpoint)" if spread["metric"] == plan.judged else ""
            lines.append(
                f"  {spread['metric']}{mark}: mean {spread['mean']:.4g}, spread {spread['spread']:.4g} (80 % upper"
                f" limit {spread['upper']:.4g}), correlation {rho}"
            )
        for line in one["effect_to_seeds"]:
            lines.append(
                f"  an effect of {line['effect']:.4g} needs {line['seeds']} seeds, {line['hours']:.2g} hours{limit}"
            )
        for line in one["seeds_to_effect"]:
            upper = f"; {line['effect_at_upper']:.4g} at the upper limit" if limit else ""
            lines.append(f"  {line['seeds']} seeds find {line['effect']:.4g}{upper}")
    return "\n".join(lines)
