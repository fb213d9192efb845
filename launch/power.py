"""What a plan could find, from its pilot's seeds, before its verdict's are spent.

    .venv/bin/python -m launch.power --plan=configs/ablations/scale.py --workdir=runs/ablations

runs the pilot, or reads it where it has run, and tells of each metric the spread of a pair's difference, of the
endpoint the seeds and hours that an effect needs, and writes power.json and power.svg beside the plan. --variance tells
what the first values (with dropout) and the order of the data each add to the spread of a run; --aa tries the grid on
two equal arms, each of which is trained.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from eval.verdict.decision import decide
from eval.verdict.declared import Contrast, Declared
from eval.verdict.planning import (
    all_equal,
    by_decisiveness,
    effects_by_seeds,
    paths_agree,
    seeds_by_effect,
    sensitivities,
    spread_of,
)
from launch import cli
from launch.ablate import opened
from launch.ablation.grid import Grid
from launch.ablation.measures import Values, by_arm, others_of, results_of, sides
from launch.ablation.phases import pilot
from launch.ablation.plan import Plan, config_of, load_plan
from launch.ablation.programs import Program, Record, address
from launch.ablation.running import run_all
from launch.ablation.tuning import tune
from launch.configs import Value
from model.errors import UserError
from train.run.files.json_files import write
from train.run.signals import stop_signals

SEEDS = (4, 5, 6, 7, 8, 10, 12, 16)
EFFECTS = (0.5, 1.0, 2.0)  # of D
CROSSED = 3  # seeds of each source of noise
PATHS = 32  # seeds of each of the two ways in which one may be trained


def power(grid: Grid) -> dict[str, Any]:
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


def _table(found: Mapping[str, Any], plan: Plan) -> str:
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


def variance(grid: Grid) -> dict[str, float]:
    """The spread of a run of the baseline when only some sources of noise are drawn anew, by the names of these."""
    plan, first = grid.plan, grid.plan.pilot_seeds[0] if grid.plan.pilot_seeds else 0
    programs = []
    for order in range(first, first + CROSSED):
        keys: dict[str, Value] = {"data.order": "shared", "data.seed": order}
        shared = dataclasses.replace(plan, shared={**plan.shared, **keys})
        programs.append(address(config_of(shared, plan.baseline, None, CROSSED, first)))
    run_all(programs, grid.store, grid.jobs)
    values = np.array([[*_record(grid, program).of(plan.endpoint).values()] for program in programs]).T
    found = sensitivities(values, ("first values and dropout", "order of the data"))
    return {" and ".join(names): spread for names, spread in found.items()}


def equal_arms(grid: Grid) -> tuple[bool, float]:
    """Two equal arms, each really trained: (whether every difference is exactly 0, the p of the two paths).

    The paths are 32 seeds as populations, and 32 others one by one.
    """
    plan = grid.plan
    seeds = range(8)
    config = config_of(plan, plan.baseline, None, len(seeds), 0)
    arms = [dataclasses.replace(one, made={**one.made, "arm": arm}) for arm in "ab" for one in [address(config)]]
    run_all(arms, grid.store, grid.jobs)
    results = {arm: _record(grid, program).of(plan.endpoint) for arm, program in zip("ab", arms, strict=True)}
    declared = Declared(plan.question, (Contrast("b", ("b",), ("a",)),), plan.endpoint, plan.direction, 1.0)
    row = decide(declared, results).rows[0]
    same = all_equal(results["a"], results["b"]) and not any(row.differences)
    whole = [address(config_of(plan, plan.baseline, None, 8, first)) for first in range(1000, 1000 + PATHS, 8)]
    single = [address(config_of(plan, plan.baseline, None, 1, first)) for first in range(2000, 2000 + PATHS)]
    run_all([*whole, *single], grid.store, grid.jobs)
    paths = [
        [value for one in own for value in _record(grid, one).of(plan.endpoint).values()] for own in (whole, single)
    ]
    return same, paths_agree(*paths)


def _record(grid: Grid, program: Program) -> Record:
    found = grid.store.record(program.key)
    assert found is not None
    return found


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("power", __doc__ or "", config=False)
    made.add_argument("--plan", required=True, help="what is declared, such as configs/ablations/scale.py")
    made.add_argument("--jobs", type=int, default=1, help="programs that run at a time, each in its own process")
    made.add_argument("--variance", action="store_true", help="cross first values with orders of the data")
    made.add_argument(
        "--aa", action="store_true", help="try the grid on two equal arms; status 1 if it tells them apart"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Tells what a plan could find."""
    flags, overrides = cli.parse(parser(), argv)
    plan = load_plan(flags.plan, **overrides)
    with (
        stop_signals(command=True),
        cli.telling_how_to_go_on(parser(), flags, overrides),
        opened(plan, Path(flags.workdir), flags.jobs) as grid,
    ):
        if flags.variance:
            for names, spread in variance(grid).items():
                cli.say(f"{names}: {spread:.4g} of {plan.endpoint}")
            return 0
        if flags.aa:
            same, p = equal_arms(grid)
            cli.say(f"two trainings of 8 seeds: {'every difference is exactly 0' if same else 'NOT THE SAME'}")
            cli.say(f"{PATHS} seeds as populations against {PATHS} others alone: p = {p:.3g} (Mann-Whitney, exact)")
            return 0 if same and p > 0.01 else 1
        cli.say(_table(power(grid), plan))
    return 0


if __name__ == "__main__":
    cli.run(main)
