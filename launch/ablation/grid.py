"""A plan in a folder, and what carries it out."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.ablation.ledger import Ledger
from launch.ablation.plan import Plan, config_of, packs
from launch.ablation.programs import Program, Record, Store, address
from launch.ablation.running import Bar, run_all

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
        return sum(self.plan.runs(arm) * config_of(self.plan, arm).train.steps for arm in self.plan.arms)

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
        return {cell: [self.store.ended(program) for program in own] for cell, own in programs.items()}


def place_of(plan: Plan, folder: Path) -> Path:
    """The folder of what a plan says and finds, in the one that all plans share."""
    return folder / "plans" / f"{plan.name}-{plan.hash}"
