"""The phases after the tune phase: measure the spread in a pilot, and look at the verdict's seeds."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.verdict.decision import Verdict, decide
from eval.verdict.page import write_page
from eval.verdict.planning import spread_of
from eval.verdict.rule import succeeded
from launch.ablation.gates.rules import failed, gates_of_looks, gates_of_records, refuse
from launch.ablation.grid import Grid
from launch.ablation.measures import by_arm, results_of, sides
from launch.ablation.plan import Plan
from launch.ablation.showing import shown
from model.errors import UserError
from train.run.files.json_files import write


def pilot(grid: Grid, rates: Mapping[str, float | None]) -> tuple[float, dict[str, Any]]:
    """D as a number, and what the pilot says of each contrast; both are written to pilot.json, before the verdict.

    Raises:
        UserError: D is a share of the baseline's mean, and that is not finite or 0.
    """
    plan = grid.plan
    found: dict[str, Any] = {"seeds": list(plan.pilot_seeds), "contrasts": {}}
    size, relative = plan.smallest, plan.relative
    if plan.pilot_seeds:
        values = results_of(plan, grid.run("pilot", grid.cells(rates), plan.pilot_seeds))
        found |= {"values": {arm: {str(seed): one for seed, one in own.items()} for arm, own in values.items()}}
        for contrast in plan.contrasts:
            found["contrasts"][contrast.name] = _spread(plan, *sides(contrast, values, plan.pilot_seeds))
        if relative is not None:
            mean = float(np.mean([*values[plan.baseline].values()]))
            if not math.isfinite(mean) or mean == 0:
                raise UserError(
                    f"plan {plan.name}: smallest={plan.smallest!r} is a share of the baseline's mean in the pilot,"
                    f" which is {mean}: give a number."
                )
            size = relative * abs(mean)
    found["smallest"] = float(size)
    write(grid.place / "pilot.json", found)
    return float(size), found


def _spread(plan: Plan, plus_N: np.ndarray, minus_N: np.ndarray) -> dict[str, float | None]:
    """Of the pairs in which neither failed: the standard deviation of the differences, and the correlation; of all runs
    the share that succeeded: reached the declared threshold, or ended where none is declared.
    """
    good = np.isfinite(plus_N) & np.isfinite(minus_N)
    count = int(good.sum())
    found = spread_of(plan.endpoint, plus_N[good], minus_N[good]) if count > 1 else None
    runs_2N = np.stack([plus_N, minus_N])
    ended = np.isfinite(runs_2N)
    succeeding = ended if plan.success is None else succeeded(plan.direction, plan.success, runs_2N)
    return {
        "spread": found.spread if found else None,
        "correlation": found.correlation if found and count > 2 else None,
        "success": float(np.mean(succeeding)),
    }


def verdict(grid: Grid, rates: Mapping[str, float | None], smallest: float) -> Verdict:
    """Looks once, or twice where the first look leaves a contrast open; each look is written and counted."""
    plan = grid.plan
    for number, look in enumerate(plan.looks, 1):
        records = grid.run(f"verdict, look {number}", grid.cells(rates), plan.seeds[:look])
        results, looks = results_of(plan, records), grid.ledger.looks(plan.question)
        gates = gates_of_records(plan, by_arm(records), look)
        refuse(plan, [gate for gate in gates if gate.name == "missing"])  # without a number there is nothing to judge
        gates += gates_of_looks(plan, looks, look)
        closed = [f"{gate.name}: {gate.text}" for gate in failed(plan, gates)]
        found = decide(plan.declared(smallest), results, closed)
        keys = [record.key for own in records.values() for record in own]
        grid.ledger.look(plan, number, keys, {row.contrast.name: row.word for row in found.rows})
        rows = {arm: [[record.key, list(record.seeds)] for record in own] for arm, own in by_arm(records).items()}
        write_page(grid.place, found, results, shown(plan, rates, records, grid.ledger, grid.place))
        write(grid.place / "programs.json", rows)  # last: a plan that has it has a verdict, which can be verified
        if not found.open:
            break
    return found
