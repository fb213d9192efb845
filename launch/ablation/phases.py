"""The phases of a grid: tune the learning rate, measure the spread in a pilot, and look at the verdict's seeds."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.verdict.decision import Verdict, decide
from eval.verdict.page import write_page
from launch.ablation.gates.rules import failed, gates_of_looks, gates_of_records
from launch.ablation.ledger import Ledger
from launch.ablation.plan import Plan, config_of, packs
from launch.ablation.programs import Program, Record, Store, address
from launch.ablation.running import Bar, run_all
from launch.ablation.showing import by_arm, results_of, shown
from model.errors import UserError
from train.run.files.json_files import write

Cell = tuple[str, float | None]  # an arm, and the learning rate; None: that of its config


class Pending(Exception):
    """Programs that other processes are to run before the grid goes on."""

    def __init__(self, programs: Sequence[Program]):
        super().__init__()
        self.programs = programs


@dataclasses.dataclass
class Grid:
    """A plan in a folder, and what carries it out.

    folder: what all plans share, store/ and ledger.jsonl; `place` is the plan's own. elsewhere: programs run by
    commands of their own, in whatever process, and none in this one.
    """

    plan: Plan
    folder: Path
    bar: Bar
    jobs: int = 1
    elsewhere: bool = False

    @property
    def store(self) -> Store:
        """The programs of all plans of the folder."""
        return Store(self.folder / "store")

    @property
    def ledger(self) -> Ledger:
        """What was looked at in the folder."""
        return Ledger(self.folder / "ledger.jsonl")

    @property
    def place(self) -> Path:
        """The folder of what this plan says and finds."""
        return place_of(self.plan, self.folder)

    @property
    def seed_steps(self) -> int:
        """The steps of all seeds of the whole grid, every look taken."""
        plan, found = self.plan, 0
        for arm in plan.arms:
            tuned = plan.contrast != "sensitivity"
            rates = len(plan.learning_rates.get(arm, ()))
            seeds = len(plan.pilot_seeds) + len(plan.seeds)
            runs = rates * len(plan.tune_seeds) + seeds if tuned else rates * seeds
            found += runs * config_of(plan, arm).train.steps
        return found

    def cells(self, rates: Mapping[str, float | None]) -> list[Cell]:
        """Each arm at its learning rate; of a sensitivity, at every one of its grid."""
        if self.plan.contrast == "sensitivity":
            return [(arm, rate) for arm, grid in self.plan.learning_rates.items() for rate in grid]
        return [*rates.items()]

    def programs(self, cells: Sequence[Cell], seeds: tuple[int, ...]) -> dict[Cell, list[Program]]:
        """The programs of some seeds of each cell."""
        plan = self.plan
        return {
            (arm, rate): [address(config_of(plan, arm, rate, len(own), own[0])) for own in packs(plan, seeds)]
            for arm, rate in cells
        }

    def run(self, phase: str, cells: Sequence[Cell], seeds: tuple[int, ...]) -> dict[Cell, list[Record]]:
        """Runs what has not ended, arm by arm within each pack, so that a machine's drift is shared by all arms.

        Raises:
            Pending: where they run elsewhere, those that have not ended.
        """
        programs = self.programs(cells, seeds)
        turns = [one for turn in zip(*programs.values(), strict=True) for one in turn]
        missing = [program for program in turns if self.store.record(program.key) is None]
        if self.elsewhere and missing:
            for program in missing:
                self.store.write(program)
            raise Pending(missing)
        self.bar.phase(phase, turns)
        run_all(turns, self.store, self.jobs)
        found = {}
        for cell, own in programs.items():
            records = [self.store.record(program.key) for program in own]
            found[cell] = [record for record in records if record is not None]
        return found


def place_of(plan: Plan, folder: Path) -> Path:
    """The folder of what a plan says and finds, in the one that all plans share."""
    return folder / "plans" / f"{plan.name}-{plan.hash}"


def tune(grid: Grid) -> dict[str, float | None]:
    """The learning rate of each arm: that of the best mean over the tuning seeds; None where nothing is tuned.

    A rate with a failed seed is worse than all without. Written to tuning.json.

    Raises:
        UserError: every rate fails, or the best one is at the edge of its grid, unless the gate `edge` is waived.
    """
    plan = grid.plan
    if not plan.learning_rates or plan.contrast == "sensitivity":
        return dict.fromkeys(plan.arms)
    cells = [(arm, rate) for arm in plan.arms for rate in plan.learning_rates[arm]]
    records = grid.run("tune", cells, plan.tune_seeds)
    sign = 1 if plan.direction == "lower" else -1  # so that less is better, and a failed seed is worst
    means: dict[str, dict[float, float]] = {arm: {} for arm in plan.arms}
    for (arm, rate), own in records.items():
        values = [value for record in own for value in record.of(plan.endpoint).values()]
        costs = [sign * value if math.isfinite(value) else math.inf for value in values]
        means[arm][rate or 0.0] = sum(costs) / len(costs)
    best = {arm: min(costs, key=costs.__getitem__) for arm, costs in means.items()}
    shown = {arm: {repr(rate): sign * cost for rate, cost in own.items()} for arm, own in means.items()}
    write(grid.place / "tuning.json", {"means": shown, "best": best})
    for arm, rate in best.items():
        if not math.isfinite(means[arm][rate]):
            tried = ", ".join(f"{one:g}" for one in means[arm])
            raise UserError(
                f"plan {plan.name}: a seed fails at every learning rate of {arm} ({tried}): give lower ones."
            )
        if "edge" not in plan.waived:
            check_edge(plan, arm, rate)
    return dict(best)


def check_edge(plan: Plan, arm: str, rate: float) -> None:
    """Refuses a best learning rate that has no worse one on both sides.

    Raises:
        UserError: names a grid, for all arms, that goes on there.
    """
    grid = plan.learning_rates[arm]
    if rate not in (grid[0], grid[-1]):
        return
    more = grid[0] * grid[0] / grid[1] if rate == grid[0] else grid[-1] * grid[-1] / grid[-2]
    wider = ", ".join(f"{one:.4g}" for one in sorted({*grid, more}))
    raise UserError(
        f"plan {plan.name}: gate edge: the best learning rate of {arm}, {rate:g}, is at the edge of its grid: set"
        f" learning_rates to [{wider}], for all arms alike; what has run is not run again."
    )


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
            sides = [
                sum(np.array([values[arm][seed] for seed in plan.pilot_seeds]) for arm in arms)
                for arms in (contrast.plus, contrast.minus)
            ]
            found["contrasts"][contrast.name] = _spread(*map(np.asarray, sides))
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


def _spread(plus_N: np.ndarray, minus_N: np.ndarray) -> dict[str, float | None]:
    """Of the pairs in which neither failed: the standard deviation of the differences, and the correlation."""
    good = np.isfinite(plus_N) & np.isfinite(minus_N)
    plus, minus = plus_N[good], minus_N[good]
    varies = len(plus) > 2 and np.std(plus) > 0 and np.std(minus) > 0
    return {
        "spread": float(np.std(plus - minus, ddof=1)) if len(plus) > 1 else None,
        "correlation": float(np.corrcoef(plus, minus)[0, 1]) if varies else None,
        "success": float(np.mean(good)),
    }


def verdict(grid: Grid, rates: Mapping[str, float | None], smallest: float) -> Verdict:
    """Looks once, or twice where the first look leaves a contrast open; each look is written and counted."""
    plan = grid.plan
    for number, look in enumerate(plan.looks, 1):
        records = grid.run(f"verdict, look {number}", grid.cells(rates), plan.seeds[:look])
        results, looks = results_of(plan, records), grid.ledger.looks(plan.question)
        gates = gates_of_records(plan, by_arm(records), look) + gates_of_looks(plan, looks, look)
        closed = [f"{gate.name}: {gate.text}" for gate in failed(plan, gates)]
        found = decide(plan.declared(smallest), results, closed)
        keys = [record.key for own in records.values() for record in own]
        grid.ledger.look(plan, number, keys, {row.contrast.name: row.word for row in found.rows})
        rows = {arm: [[record.key, list(record.seeds)] for record in own] for arm, own in by_arm(records).items()}
        write(grid.place / "programs.json", rows)
        write_page(grid.place, found, results, shown(plan, rates, records, grid.ledger, grid.place))
        if not found.open:
            break
    return found
