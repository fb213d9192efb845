"""Twelve ways to get the answer that one wants, each refused or flagged by the name of its gate."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.ablation.gates.causality import leak
from launch.ablation.gates.pairs import evidence_of
from launch.ablation.gates.rules import (
    Gate,
    gate_of_causality,
    gates_of_looks,
    gates_of_pairs,
    gates_of_plan,
    gates_of_records,
)
from launch.ablation.ledger import Ledger
from launch.ablation.plan import Plan, config_of
from launch.ablation.programs import Record
from model.attention.edits.table import EDITS
from tests.launch.ablation.gates.test_causality import peek
from tests.launch.ablation.small_plan import small_plan
from train.experiment import make_experiment

LAST, BEST = 12, 6  # steps
MADE = {"code": "c0de", "packages": {"jax": "1"}, "data": "7e47"}
WHERE = {"device": "cpu", "prng": "threefry2x32", "windows": "3 of 9"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


def record(seeds: tuple[int, ...], **changes: Any) -> Record:
    """What a program leaves: its loss rises after its best step."""
    values, best = [0.2 + 0.01 * seed for seed in seeds], [0.1 + 0.01 * seed for seed in seeds]
    curves = {"val/loss": {str(BEST): best, str(LAST): values}}
    known: dict[str, Any] = {"key": "k", "seeds": seeds, "values": {"val/loss": values}, "curves": curves}
    known |= {"failed": {}, "bits": "b", "alone": (), "made": MADE, "where": WHERE, "seconds": 1.0}
    return Record(**known | changes)


def arms(*own: Record) -> dict[str, list[Record]]:
    """The baseline's programs, and those of the other arm."""
    return {"scaled": [record((0, 1, 2, 3)), record((4, 5, 6, 7))], "bare": list(own)}


def longer(folder: Path, keys: dict[str, Any]) -> Plan:
    return small_plan(folder, arms={"scaled": {}, "bare": {"model.scale": 1.0, **keys}})


def undeclared(**keys: Any) -> Callable[[Path], list[Gate]]:
    return lambda folder: gates_of_plan(longer(folder, {key.replace("__", "."): one for key, one in keys.items()}))


def pairs(keys: dict[str, Any]) -> Callable[[Path], list[Gate]]:
    def gates(folder: Path) -> list[Gate]:
        plan = dataclasses.replace(longer(folder, keys), pack=1)
        pair = dataclasses.replace(plan, seeds=(0, 1), looks=(2,))
        return gates_of_pairs(pair, evidence_of(pair, pair.seeds))

    return gates


def of_records(*own: Record) -> Callable[[Path], list[Gate]]:
    return lambda folder: gates_of_records(small_plan(folder), arms(*own), 8)


def grids(folder: Path) -> list[Gate]:
    rates = {"scaled": (1e-3, 3e-3, 1e-2), "bare": (1e-3, 2e-3, 3e-3, 6e-3, 1e-2)}
    return gates_of_plan(small_plan(folder, learning_rates=rates))


def reused(folder: Path) -> list[Gate]:
    return gates_of_plan(small_plan(folder, tune_seeds=(7, 200)))


def edited(folder: Path) -> list[Gate]:
    """D is made smaller when the difference is seen to be."""
    ledger, plan = Ledger(folder / "edited.jsonl"), small_plan(folder, smallest=0.02)
    ledger.begin(plan)
    ledger.look(plan, 1, ["k"], {"bare": "DIFFERENT BUT BELOW D"})
    later = small_plan(folder, smallest=0.001)
    return gates_of_looks(later, ledger.looks(later.question), 8)


def stopped(folder: Path) -> list[Gate]:
    """Seeds are added until p is small."""
    ledger = Ledger(folder / "stopped.jsonl")
    for count in (6, 7):
        plan = small_plan(folder, seeds=range(count), looks=(count,))
        ledger.begin(plan)
        ledger.look(plan, 1, [f"k{count}"], {"bare": "NOT DISTINGUISHABLE"})
    last = small_plan(folder)
    return gates_of_looks(last, ledger.looks(last.question), 8)


def leaking(folder: Path) -> list[Gate]:
    plan = small_plan(folder, factor="model.edits", arms={"scaled": {}, "bare": {"model.edits": "peek(1, 1)"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EDITS, "peek", peek)
        experiment = make_experiment(config_of(plan, "bare"), 256)
        return [gate_of_causality({"scaled": None, "bare": leak(experiment)})]


BEST_CHECKPOINT = record((4, 5, 6, 7), values={"val/loss": [0.1 + 0.01 * seed for seed in (4, 5, 6, 7)]})
CHEATS: list[tuple[str, str, Callable[[Path], list[Gate]]]] = [
    ("an extra layer", "keys", undeclared(model__num_layers=2)),
    ("a longer run", "keys", undeclared(train__steps=24)),
    ("another order of the data", "batches", pairs({"data.seed": 5, "data.order": "shared"})),
    ("another evaluation set", "evaluation", pairs({"train.evaluate_windows": 3})),
    ("another clipping", "keys", undeclared(optimizer__clip_norm=0.5)),
    ("an unequal grid", "grids", grids),
    ("the best checkpoint", "last", of_records(record((0, 1, 2, 3)), BEST_CHECKPOINT)),
    ("a failed seed that is dropped", "missing", of_records(record((0, 1, 2, 3)), record((4, 5, 7)))),
    ("a tuning seed that is used again", "phases", reused),
    ("D that is edited later", "smallest", edited),
    ("a mask that leaks", "causality", leaking),
    ("a stop at the first p < .05", "looks", stopped),
]
OTHERS: list[tuple[str, Record]] = [
    ("code", record((4, 5, 6, 7), made=MADE | {"code": "other"})),
    ("packages", record((4, 5, 6, 7), made=MADE | {"packages": {"jax": "2"}})),
    ("text", record((4, 5, 6, 7), made=MADE | {"data": "other"})),
    ("last", record((4, 5, 6, 7), values={}, curves={})),  # none of its seeds failed, and none was measured
    ("device", record((4, 5, 6, 7), where=WHERE | {"device": "TPU v5e"})),
    ("prng", record((4, 5, 6, 7), where=WHERE | {"prng": "rbg"})),
    ("windows", record((4, 5, 6, 7), where=WHERE | {"windows": "9 of 9"})),
]


def closed(gates: list[Gate]) -> list[str]:
    return [gate.name for gate in gates if not gate.passed]


def test_there_are_twelve() -> None:
    assert len({cheat for cheat, *_ in CHEATS}) == 12


@pytest.mark.parametrize(("cheat", "gate", "gates"), CHEATS, ids=[cheat for cheat, *_ in CHEATS])
def test_a_cheat_is_named(folder: Path, cheat: str, gate: str, gates: Callable[[Path], list[Gate]]) -> None:
    assert gate in closed(gates(folder))


@pytest.mark.parametrize(("gate", "other"), OTHERS)
def test_programs_that_were_made_otherwise_are_named(folder: Path, gate: str, other: Record) -> None:
    assert closed(of_records(record((0, 1, 2, 3)), other)(folder)) == [gate]


def test_an_honest_grid_is_let_through(folder: Path) -> None:
    """Also one with a failed seed, which keeps its place, and at its first look."""
    failed = record((4,), values={}, curves={}, failed={"4": "it diverged"}, where=WHERE)
    assert closed(of_records(record((0, 1, 2, 3)), failed, record((5, 6, 7)))(folder)) == []
    plan = small_plan(folder)
    assert closed(gates_of_plan(plan)) == []
    halves = {arm: own[:1] for arm, own in arms(record((0, 1, 2, 3))).items()}
    assert closed(gates_of_records(plan, halves, 4)) == []
    assert closed(gates_of_looks(plan, [], 8)) == []
