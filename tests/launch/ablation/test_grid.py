"""A grid from its plan to its verdict: what it leaves, and that nothing is run twice."""

import csv
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import evaluators
from eval.likelihood import Likelihood, Value
from launch import ablate
from launch.ablation import programs
from launch.ablation.ledger import Ledger
from launch.ablation.phases import check_edge
from launch.ablation.plan import Plan, make_plan
from launch.ablation.programs import Store
from launch.ablation.showing import results_of
from model.errors import UserError
from tests.tiny import call, write_text
from train.run.files.json_files import loads, write

TINY = {"train.steps": 2, "train.evaluate_every": 2, "train.checkpoint_every": 1, "train.accumulate": 1}
SCALE: dict[str, Any] = {
    "question": "Does the scale of the scores matter?",
    "factor": "model.scale",
    "arms": {"scaled": {}, "bare": {"model.scale": 1.0}},
    "endpoint": "val/halved",
    "smallest": 0.01,
    "seeds": [0, 1],
    "waived": {"seeds": "two are quick"},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("ablation")) | TINY


@pytest.fixture(scope="module")
def plan(shared: dict[str, Any]) -> Plan:
    return make_plan("scale", SCALE | {"shared": shared})


class Halved(Likelihood):
    """An endpoint is one file, which this stands for, and one line in `EVALUATORS`."""

    NAMES = ("val/halved",)

    def __call__(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, Value]]:
        yield from (
            ("val/halved", value / 2) for name, value in super().__call__(params, should_stop) if "loss" in name
        )


@pytest.fixture(scope="module", autouse=True)
def one_more_endpoint() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluators, "EVALUATORS", (*evaluators.EVALUATORS, Halved))
        yield


@pytest.fixture(scope="module")
def grid(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grids") / "scale"
    ablate.ablate(plan, folder)
    return folder


@pytest.fixture
def no_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a program runs")

    with monkeypatch.context() as patch:
        patch.setattr(programs, "fit", refuse)
        yield


def the_file(folder: Path, name: str) -> bytes:
    (found,) = folder.glob(f"plans/*/{name}")
    return found.read_bytes()


def test_a_grid_leaves_its_plan_its_numbers_and_its_verdict(plan: Plan, grid: Path) -> None:
    assert loads(the_file(grid, "plan.json"))["hash"] == plan.hash
    rows = list(csv.DictReader(the_file(grid, "seeds.csv").decode().splitlines()))
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, seed) for arm in ("scaled", "bare") for seed in "01"]
    records = [loads(file.read_bytes()) for file in sorted(grid.glob("store/*/record.json"))]
    values = {float(row["value"]) for row in rows}
    assert len(values) == 4
    assert values == {value / 2 for record in records for value in record["values"]["val/loss"]}
    assert [record["failed"] for record in records] == [{}, {}]
    (row,) = loads(the_file(grid, "verdict.json"))["rows"]
    assert row["contrast"]["name"] == "bare"


@pytest.mark.usefixtures("no_runs")
def test_what_has_run_is_not_run_again(plan: Plan, shared: dict[str, Any], grid: Path) -> None:
    before = the_file(grid, "seeds.csv"), (grid / "ledger.jsonl").read_bytes()
    ablate.ablate(plan, grid)
    assert (the_file(grid, "seeds.csv"), (grid / "ledger.jsonl").read_bytes()) == before
    # Where the text lies is no part of a program.
    other = make_plan("scale", SCALE | {"shared": shared | {"train.log_every": 1, "data.prefetch": 3}})
    assert other.hash == plan.hash


def test_a_changed_plan_counts_and_is_told(plan: Plan, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for _ in range(2):  # a grid that was killed notes the same again
        ledger.begin(plan)
        ledger.look(plan, 1, ["a", "b"], {"bare": "NOT DISTINGUISHABLE"})
    assert ledger.counts(plan.question) == {"plans": 1, "arms": 2, "looks": 1}
    assert ledger.remarks(plan) == []
    with (tmp_path / "ledger.jsonl").open("ab") as opened:
        opened.write(b'{"id": "cut')  # a kill within a line
    other = make_plan("scale", SCALE | {"shared": plan.shared, "smallest": 0.02, "seeds": [0, 1, 2]})
    ledger.begin(other)
    assert ledger.counts(plan.question) == {"plans": 2, "arms": 2, "looks": 1}
    told = " ".join(ledger.remarks(other))
    assert "1 other plan" in told
    assert "1 look was taken under other plans before, at 2 of these seeds" in told
    assert "D was edited after a look: it was 0.01, and is 0.02" in told
    assert ledger.counts("Another?") == {"plans": 0, "arms": 0, "looks": 0}


def test_the_best_learning_rate_has_worse_ones_on_both_sides(shared: dict[str, Any]) -> None:
    plan = make_plan("scale", SCALE | {"shared": shared, "learning_rates": [1e-3, 2e-3, 4e-3], "tune_seeds": [9]})
    check_edge(plan, "bare", 2e-3)
    for rate, wider in {1e-3: "0.0005, 0.001, 0.002, 0.004", 4e-3: "0.001, 0.002, 0.004, 0.008"}.items():
        with pytest.raises(UserError, match=f"gate edge: .*{wider}"):
            check_edge(plan, "bare", rate)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x"], "--plan is missing"),
        (["--workdir=x", "--plan=none.py"], "there is no such Python file"),
        (["--workdir=x", "--program=abc"], "no plan of this folder asks for it"),
        (["--workdir=x", "--plan=configs/ablations/scale.py", "--jobs=0"], "--jobs=0 must be at least 1"),
        (["--workdir=x", "--plan=configs/ablations/scale.py", "--config.train.stesp=1"], "the nearest is train.steps"),
    ],
)
def test_bad_words_are_refused(words: list[str], sentence: str) -> None:
    outcome = call(ablate.main, words)
    assert outcome.status == 2
    assert sentence in outcome.err


def test_a_disk_that_will_not_hold_the_grid_is_refused(plan: Plan, tmp_path: Path, monkeypatch: Any) -> None:
    """The disk is said to be full but for a megabyte; nothing is written on it."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(UserError, match="the disk has 0.0 GB free"):
        ablate.ablate(plan, tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_runs_that_were_not_made_alike_make_a_verdict_invalid(plan: Plan, grid: Path, tmp_path: Path) -> None:
    """One of them is said to have run on another device; and D is edited after a look."""
    shutil.copytree(grid, tmp_path / "grid")
    file = next((tmp_path / "grid").glob("store/*/record.json"))
    values = loads(file.read_bytes())
    write(file, values | {"where": values["where"] | {"device": "TPU v5e"}})
    found = ablate.ablate(plan, tmp_path / "grid")
    assert found.status == 7
    assert [gate.partition(":")[0] for gate in found.gates] == ["device"]
    edited = make_plan(
        "scale", SCALE | {"shared": plan.shared, "smallest": 0.02, "waived": {"seeds": "quick", "device": "so"}}
    )
    found = ablate.ablate(edited, tmp_path / "grid")
    assert [gate.partition(":")[0] for gate in found.gates] == ["smallest"]


def test_a_gate_refuses_before_anything_is_made(plan: Plan, tmp_path: Path) -> None:
    few = make_plan("scale", SCALE | {"shared": plan.shared, "waived": {}})
    with pytest.raises(UserError, match="gate seeds: 2 seeds cannot reach alpha"):
        ablate.ablate(few, tmp_path / "grid")
    longer = {"arms": {"scaled": {}, "bare": {"model.scale": 1.0, "train.steps": 3}}}
    with pytest.raises(UserError, match="gate keys: bare differs in train.steps"):
        ablate.ablate(make_plan("scale", SCALE | longer | {"shared": plan.shared}), tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


def test_a_sensitivity_is_of_the_whole_grid_of_learning_rates(shared: dict[str, Any], grid: Path) -> None:
    """Losses are capped at the uniform guess, here of 16 tokens, and a seed fails where it does at every rate."""
    change = {"contrast": "sensitivity", "endpoint": "val/loss", "learning_rates": [1e-3, 1e-2, 1e-1]}
    plan = make_plan("scale", SCALE | change | {"shared": shared})
    records = [Store(grid / "store").record(file.parent.name) for file in grid.glob("store/*/record.json")]
    assert records[0] is not None
    losses = {1e-3: [2.5, None], 1e-2: [2.0, None], 1e-1: [9.0, None]}
    made = {
        ("bare", rate): [dataclasses.replace(records[0], vocabulary=16, values={"val/loss": own})]
        for rate, own in losses.items()
    }
    found = results_of(plan, made)["bare"]
    assert found[0] == pytest.approx((2.5 + 2.0 + math.log(16)) / 3 - 2.0, rel=1e-12)
    assert found[1] == math.inf


def test_the_bar_is_full_when_the_grid_has_ended(plan: Plan, grid: Path) -> None:
    with ablate.opened(plan, grid) as made:
        made.run("verdict", made.cells(dict.fromkeys(plan.arms)), plan.seeds)
        assert made.bar._done() == made.bar._total == made.seed_steps == 2 * 2 * 2  # arms, seeds, steps
