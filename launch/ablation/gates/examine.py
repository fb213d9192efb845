"""All that is known of a plan before anything is spent: what its arms cost, and what every gate finds."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import by_position
from eval.evaluators import endpoints
from launch.ablation.gates.budget import Budget, budget_of, data_of, opened
from launch.ablation.gates.causality import leak
from launch.ablation.gates.pairs import evidence_of
from launch.ablation.gates.rules import (
    Gate,
    check_waivers,
    gate_of_causality,
    gates_of_budgets,
    gates_of_pairs,
    gates_of_plan,
    refuse,
)
from launch.ablation.plan import Plan, config_of, packs
from launch.ablation.programs import address, code_digest, where
from model.errors import UserError
from train.run.files.json_files import read_cache, write
from train.tasks.table import make_task

_FILE = "gates.json"
_CODE = ("model", "train", "eval", "launch")  # what costs and gates are found by: their own rules, too


@dataclasses.dataclass(frozen=True)
class Examined:
    """What each arm of a plan costs, and what was found of each gate."""

    budgets: Mapping[str, Budget]
    gates: Sequence[Gate]


def examine(plan: Plan, *, measured: bool = False) -> Examined:
    """Counts what the arms cost, and tries every gate; trains nothing, or, with `measured`, a few steps of each arm.

    What needs no program is refused at once; of the other gates it is told what they find.

    Raises:
        UserError: a config cannot be used, a gate of the plan alone does not hold, or nothing measures its endpoint.
    """
    check_waivers(plan)
    gates = gates_of_plan(plan)
    refuse(plan, gates)
    _check_endpoint(plan)
    first = packs(plan, plan.seeds)[0]
    configs = {arm: config_of(plan, arm, seeds=len(first), first_seed=first[0]) for arm in plan.arms}
    budgets = {arm: budget_of(config, measured=measured) for arm, config in configs.items()}
    gates += gates_of_budgets(plan, budgets)
    gates += gates_of_pairs(plan, evidence_of(plan, plan.seeds))
    return Examined(budgets, [*gates, gate_of_causality(_leaks(plan))])


def _leaks(plan: Plan) -> dict[str, int | None]:
    """By arm, what `leak` says of its model, which is asked once where arms share it; not of one whose task shows what
    follows.
    """
    experiments = {arm: opened(config_of(plan, arm)) for arm in plan.arms}
    experiments = {arm: one for arm, one in experiments.items() if not one.task.LOOKS_AHEAD}
    keys = {arm: (one.model_config, tuple(one.config.mesh.items())) for arm, one in experiments.items()}
    known = {key: leak(experiments[arm]) for key, arm in {key: arm for arm, key in keys.items()}.items()}
    return {arm: known[key] for arm, key in keys.items()}


def _check_endpoint(plan: Plan) -> None:
    """Refuses what an arm's task does not measure, and a loss at positions that no document of the text has.

    Raises:
        UserError: names the arm, and the length of its windows.
    """
    for arm in plan.arms:
        task = config_of(plan, arm).task
        if plan.endpoint not in endpoints(task):
            raise UserError(
                f"plan {plan.name}: endpoint={plan.endpoint!r} is not measured of the task {task!r} of {arm}; there are"
                f" {', '.join(endpoints(task))}."
            )
    for arm in plan.arms if plan.endpoint in by_position.NAMES else ():
        config = config_of(plan, arm)
        measured: Any = make_task(config).measured(data_of(config), config.train.evaluate_windows)
        if plan.endpoint in by_position.lacking(measured):
            raise UserError(
                f"plan {plan.name}: endpoint={plan.endpoint!r} has no target in the validation text of {arm}: no"
                f" document of it goes on for so long in a window of --config.data.length={config.data.length}; give a"
                " shorter length, longer documents, or another endpoint."
            )


def admitted(plan: Plan, place: Path) -> Examined:
    """The same of a plan that no gate refuses; what was found by the same code of the same text, with the same packages
    on the same kind of device, is read from the plan's folder.

    Raises:
        UserError: a gate does not hold, and is not waived.
    """
    found = examined_at(plan, place) or examine(plan)
    refuse(plan, found.gates)
    return found


def keep(plan: Plan, examined: Examined, place: Path) -> None:
    """Writes it to the plan's folder."""
    write(place / _FILE, {"found_by": _found_by(plan), **dataclasses.asdict(examined)})


def examined_at(plan: Plan, place: Path) -> Examined | None:
    """What was kept of it there, if what it was found by is still the same."""
    values = read_cache(place / _FILE, lambda values: (values["found_by"], _examined(values)))
    return None if values is None or values["found_by"] != _found_by(plan) else _examined(values)


def _examined(values: Mapping[str, Any]) -> Examined:
    budgets = {arm: Budget(**one) for arm, one in values["budgets"].items()}
    return Examined(budgets, [Gate(**one) for one in values["gates"]])


def _found_by(plan: Plan) -> dict[str, Any]:
    """What a plan's costs and gates depend on beside the plan."""
    made = {arm: dict(address(config_of(plan, arm)).made) for arm in plan.arms}
    return {"code": code_digest(_CODE, ""), "where": where(), "made": made}
