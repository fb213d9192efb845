"""The one allowed pair of equal arms: what tells arms apart is tried on two that are the same."""

import dataclasses
from collections.abc import Mapping, Sequence

from eval.verdict.decision import Verdict
from eval.verdict.planning import all_equal, paths_agree
from launch.ablation.grid import Cell, Grid
from launch.ablation.phases import verdict
from launch.ablation.plan import Plan, config_of
from launch.ablation.programs import Program, address
from launch.ablation.running import run_all

SEEDS = range(3000, 3008)  # of both arms; a plan's own are not looked at
PATHS = 32  # seeds of each of the two ways in which one may be trained
_POPULATION, _SINGLE, _PACK = 1000, 2000, 8


def equal_plan(plan: Plan) -> Plan:
    """A plan's baseline against itself, by all that the plan declares but what equal arms have no use for."""
    arm, smallest = plan.arms[plan.baseline], plan.smallest
    return dataclasses.replace(
        plan,
        name=f"{plan.name}-aa",
        question=f"Are two equal arms told to be equal? ({plan.question})",
        arms={"a": arm, "b": arm},
        smallest=1.0 if isinstance(smallest, str) else smallest,
        seeds=tuple(SEEDS),
        looks=(len(SEEDS),),
        pilot_seeds=(),
        tune_seeds=(),
        learning_rates={},
        contrast="difference",
        success=None,
        alpha=0.05,
        match="",
    )


class Apart(Grid):
    """A grid whose arms share no program, though they be equal: each is trained."""

    def programs(self, cells: Sequence[Cell], seeds: tuple[int, ...]) -> dict[Cell, list[Program]]:
        """The programs of some seeds of each cell, each made for its arm."""
        return {
            cell: [dataclasses.replace(one, made={**one.made, "arm": cell[0]}) for one in own]
            for cell, own in super().programs(cells, seeds).items()
        }


def equal_arms(grid: Grid) -> tuple[bool, Verdict]:
    """(whether two trainings of the same seeds are the same, bit for bit, the verdict on them), by the whole grid.

    grid: of an `equal_plan`.
    """
    own = Apart(grid.plan, grid.folder, grid.bar, grid.jobs)
    rates = dict.fromkeys(grid.plan.arms)
    grid.ledger.begin(grid.plan)
    found = verdict(own, rates, float(grid.plan.smallest))
    records = own.run("verdict, look 1", own.cells(rates), grid.plan.seeds)
    one, other = (records[arm, None] for arm in grid.plan.arms)
    values: list[Mapping[int, float]] = [
        {seed: value for record in arm for seed, value in record.of(grid.plan.endpoint).items()} for arm in (one, other)
    ]
    bits = [record.bits for record in one] == [record.bits for record in other]
    return bits and all_equal(*values) and not any(found.rows[0].differences), found


def two_paths(grid: Grid) -> float:
    """The p of the exact Mann-Whitney test of `PATHS` seeds trained as populations against as many others alone."""
    plan = grid.plan

    def programs(first: int, pack: int) -> list[Program]:
        return [address(config_of(plan, plan.baseline, None, pack, one)) for one in range(first, first + PATHS, pack)]

    whole, single = programs(_POPULATION, _PACK), programs(_SINGLE, 1)
    grid.bar.expect(grid.seed_steps + sum(len(one.seeds) * one.config.train.steps for one in [*whole, *single]))
    grid.bar.phase("two paths", [*whole, *single])
    run_all([*whole, *single], grid.store, grid.jobs)
    return paths_agree(
        *(
            [value for one in own for value in grid.store.ended(one).of(plan.endpoint).values()]
            for own in (whole, single)
        )
    )
