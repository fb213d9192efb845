"""What initial values, the order of the data and dropout each add to the spread of a run."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from eval.verdict.sources import Part, split
from launch.ablation.grid import Grid
from launch.ablation.plan import config_of
from launch.ablation.programs import address
from launch.ablation.running import run_all
from launch.configs import Value
from train.run.files.json_files import write

LEVELS = 3  # of each source


def variance(grid: Grid) -> list[Part]:
    """Runs the baseline with every initial value, order and draw of dropout crossed; written to variance.json.

    Each has `LEVELS` levels, numbered as the pilot's first seeds. A baseline without dropout has two sources.

    Raises:
        UserError: a run failed.
    """
    plan, first = grid.plan, grid.plan.pilot_seeds[0] if grid.plan.pilot_seeds else 0
    levels = range(first, first + LEVELS)
    drops = config_of(plan, plan.baseline).model.dropout > 0
    programs = []
    for order in levels:
        for draws in levels if drops else (-1,):
            keys: dict[str, Value] = {"data.order": "shared", "data.seed": order, "train.dropout_seed": draws}
            shared = dataclasses.replace(plan, shared={**plan.shared, **keys})
            programs.append(address(config_of(shared, plan.baseline, None, LEVELS, first)))
    grid.bar.expect(sum(len(one.seeds) * one.config.train.steps for one in programs))
    grid.bar.phase("sources of noise", programs)
    run_all(programs, grid.store, grid.jobs)
    values_ODI = np.array([[*grid.store.ended(program).of(plan.endpoint).values()] for program in programs])
    shape = (LEVELS, LEVELS, LEVELS) if drops else (LEVELS, LEVELS)
    names = ("order of the data", *(("dropout",) if drops else ()), "initial values")
    found = split(values_ODI.reshape(shape), names)
    write(grid.place / "variance.json", [dataclasses.asdict(part) for part in found])
    return found


def told(parts: Sequence[Part], endpoint: str) -> str:
    """The parts as lines."""
    runs = LEVELS ** max(len(part.sources) for part in parts)
    lines = [
        f"{endpoint} of {runs} runs, {LEVELS} levels of each source crossed with all others (standard deviations):"
    ]
    for part in parts:
        if part.interval is not None:
            low, high = part.interval
            lines.append(
                f"  {part.sources[0]} drawn anew: {part.spread:.4g} (95 %: {low:.4g} to {high:.4g}, {part.freedom:.3g}"
                " degrees of freedom)"
            )
    lines.append(f"  all drawn anew: {parts[-1].spread:.4g}")
    lines.append("what each adds beyond the others, whose squares add up to that of all drawn anew:")
    for part in parts:
        size = (
            f"{math.sqrt(part.component):.4g}" if part.component >= 0 else "none to be seen (its estimate is below 0)"
        )
        lines.append(f"  {' x '.join(part.sources)}: {size}")
    return "\n".join(lines)
