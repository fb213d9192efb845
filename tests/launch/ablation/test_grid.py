"""A grid from its plan to its verdict: what it leaves, and that nothing is run twice."""

import csv
import dataclasses
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from eval import evaluators
from eval.likelihood import Likelihood
from eval.runs import open_run
from launch import ablate
from launch.ablation import programs, running
from launch.ablation.gates.examine import examined_at
from launch.ablation.grid import place_of
from launch.ablation.ledger import Ledger
from launch.ablation.measures import results_of
from launch.ablation.plan import Plan, config_of, make_plan
from launch.ablation.programs import Store, code_digest
from launch.ablation.tuning import beyond
from launch.evaluate import evaluate
from launch.verify import verify
from model.errors import Diverged, UserError
from tests.tiny import call, write_text
from train.run.files.disk import FullDisk
from train.run.files.json_files import loads, write

# Arms that differ in their optimizer alone, so that all but the step is compiled once.
TINY = {
    "train.steps": 2,
    "train.evaluate_every": 1,
    "train.checkpoint_every": 2,
    "train.accumulate": 1,
    "model.core": "dense",
    "model.dropout": 0.0,
    "optimizer.learning_rate": 0.1,
}
DECAY: dict[str, Any] = {
    "question": "Does decay matter?",
    "factor": "optimizer.weight_decay",
    "arms": {"decayed": {}, "free": {"optimizer.weight_decay": 0.0}},
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
    return make_plan("decay", DECAY | {"shared": shared})


class Halved(Likelihood):
    """An endpoint is one file, which this stands for, and its name in a line of `MEASURED`."""

    NAMES = ("val/halved",)

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        yield from (("val/halved", value / 2) for name, value in super().values(totals) if name == "val/loss")


@pytest.fixture(scope="module", autouse=True)
def one_more_endpoint() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        of = evaluators.MEASURED["language_model"]
        patch.setitem(evaluators.MEASURED, "language_model", of._replace(evaluators=(*of.evaluators, Halved)))
        yield


@pytest.fixture(scope="module")
def grid(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grids") / "decay"
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
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, seed) for arm in ("decayed", "free") for seed in "01"]
    records = [loads(file.read_bytes()) for file in sorted(grid.glob("store/*/record.json"))]
    values = {float(row["value"]) for row in rows}
    assert len(values) == 4
    assert values == {value / 2 for record in records for value in record["values"]["val/loss"]}
    assert [record["failed"] for record in records] == [{}, {}]
    (row,) = loads(the_file(grid, "verdict.json"))["rows"]
    assert row["contrast"]["name"] == "free"
    found = loads(the_file(grid, "gates.json"))["gates"]
    before = "keys seeds phases grids budget init batches dropout evaluation sources causality".split()
    assert [gate["name"] for gate in found] == before
    assert [gate["name"] for gate in found if not gate["passed"]] == ["seeds"]  # which is waived
    assert loads((grid / "ledger.jsonl").read_bytes().splitlines()[0])["event"] == "plan"
    page = the_file(grid, "verdict.md").decode()
    assert "of no other noise do the intervals speak: initial values, order of the batches." in page
    assert re.search(r"measured on the same items, (\d+) of \1 rows of the validation split", page)


@pytest.mark.usefixtures("no_runs")
def test_what_has_run_is_not_run_again(plan: Plan, shared: dict[str, Any], grid: Path) -> None:
    before = the_file(grid, "seeds.csv"), (grid / "ledger.jsonl").read_bytes()
    ablate.ablate(plan, grid)
    assert (the_file(grid, "seeds.csv"), (grid / "ledger.jsonl").read_bytes()) == before
    # Where the text lies, and which checkpoints are kept of a run, is no part of it.
    same = {"data.prefetch": 3, "train.keep_last": 1, "train.keep_best": 0, "train.checkpoint_every": 1}
    other = make_plan("decay", DECAY | {"shared": shared | same | {"train.prompt": ""}})
    assert other.hash == plan.hash
    ablate.ablate(other, grid)
    assert the_file(grid, "seeds.csv") == before[0]


def test_a_changed_plan_counts_and_is_told(plan: Plan, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for _ in range(2):  # a grid that was killed notes the same again
        ledger.begin(plan)
        ledger.look(plan, 1, ["a", "b"], {"free": "NOT DISTINGUISHABLE"})
    assert ledger.counts(plan.question) == {"plans": 1, "arms": 2, "looks": 1}
    assert ledger.remarks(plan) == []
    with (tmp_path / "ledger.jsonl").open("ab") as opened:
        opened.write(b'{"id": "cut')  # a kill within a line
    other = make_plan("decay", DECAY | {"shared": plan.shared, "smallest": 0.02, "seeds": [0, 1, 2]})
    ledger.begin(other)
    assert ledger.counts(plan.question) == {"plans": 2, "arms": 2, "looks": 1}
    told = " ".join(ledger.remarks(other))
    assert "1 other plan" in told
    assert "1 look was taken under other plans before, at 2 of these seeds" in told
    assert "D was edited after a look: it was 0.01, and is 0.02" in told
    assert ledger.counts("Another?") == {"plans": 0, "arms": 0, "looks": 0}


def test_a_grid_goes_on_beyond_the_best_at_its_edge() -> None:
    rates = {"a": (1e-3, 2e-3, 4e-3), "b": (1e-3, 2e-3, 4e-3)}
    assert beyond(rates, {"a": 2e-3, "b": 2e-3}) == set()
    assert beyond(rates, {"a": 2e-3, "b": 1e-3}) == {5e-4}
    assert beyond(rates, {"a": 4e-3, "b": 1e-3}) == {8e-3, 5e-4}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--workdir is missing"),
        (["--workdir=x"], "--plan is missing"),
        (["--workdir=x", "--plan=none.py"], "there is no such Python file"),
        (["--workdir=x", "--program=abc"], "no plan of this folder asks for it"),
        (["--workdir=x", "--plan=configs/ablations/scale.py", "--smallest=1"], "--smallest says nothing of a plan"),
        (["--workdir=x", "--program=abc", "--plan=configs/ablations/scale.py"], "--plan says nothing of a program"),
        (["--workdir=x", "--plan=configs/ablations/scale.py", "--jobs=0"], "--jobs=0 must be at least 1"),
        (["--workdir=x", "--plan=configs/ablations/scale.py", "--config.train.stepss=1"], "the nearest is train.steps"),
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


def test_what_a_crash_has_cut_is_set_aside_and_made_again(plan: Plan, grid: Path, tmp_path: Path) -> None:
    shutil.copytree(grid, tmp_path / "grid")
    store = Store(tmp_path / "grid" / "store")
    key, other = sorted(file.parent.name for file in store.folder.glob("*/record.json"))
    for text in ("", '{"key": "cut'):
        (store.place(key) / "record.json").write_text(text)
        assert store.record(key) is None
    assert len([*store.place(key).glob("broken-record*.json")]) == 2
    assert store.record(other) is not None
    (arm,) = (arm for arm, own in loads(the_file(grid, "programs.json")).items() if own[0][0] == key)
    with pytest.raises(UserError, match=f"{arm}: program {key} has not ended"):
        verify(tmp_path / "grid", arm)
    (store.place(key) / "program.json").write_text("")
    with pytest.raises(UserError, match=f"program {key} of .*: start its plan again"):
        verify(tmp_path / "grid", arm)


def test_a_disk_that_fills_up_is_told(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a program is on a full disk."""

    def diverging(*_: object) -> None:
        sys.stderr.write("it begins")
        raise Diverged("it diverged")

    monkeypatch.setattr(programs, "fit", diverging)
    store, program = Store(tmp_path), programs.address(config_of(plan, "free"))
    store.place(program.key).mkdir()
    (store.place(program.key) / "log.txt").symlink_to("/dev/full")
    with pytest.raises(FullDisk, match="the disk under .* is full"):
        store.run(program)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_of_several_processes_alone_writes_the_log_of_a_program(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    """What the others have to say stands on their own standard error, as that of a run does."""

    def diverging(*_: object) -> None:
        sys.stderr.write(f"from {rank}")
        raise Diverged("it diverged")

    monkeypatch.setattr(programs, "fit", diverging)
    monkeypatch.setattr(jax, "process_index", lambda: rank)
    store, program = Store(tmp_path), programs.address(config_of(plan, "free"))
    assert store.run(program).failed == {"0": "it diverged"}
    assert capsys.readouterr().err == rank * "from 1"
    logs = [file.read_text() for file in tmp_path.glob("*/log.txt")]
    assert logs == ["from 0"] * (1 - rank)


def test_runs_that_were_not_made_alike_make_a_verdict_invalid(plan: Plan, grid: Path, tmp_path: Path) -> None:
    """One of them is said to have run on another device."""
    shutil.copytree(grid, tmp_path / "grid")
    file = next((tmp_path / "grid").glob("store/*/record.json"))
    values = loads(file.read_bytes())
    write(file, values | {"where": values["where"] | {"device": "TPU v5e"}})
    found = ablate.ablate(plan, tmp_path / "grid")
    assert found.status == 7
    assert [gate.partition(":")[0] for gate in found.gates] == ["device"]


def test_a_gate_refuses_before_anything_is_made(plan: Plan, tmp_path: Path) -> None:
    few = make_plan("decay", DECAY | {"shared": plan.shared, "waived": {}})
    with pytest.raises(UserError, match="gate seeds: 2 seeds cannot reach alpha"):
        ablate.ablate(few, tmp_path / "grid")
    longer = {"arms": {"decayed": {}, "free": {"optimizer.weight_decay": 0.0, "train.steps": 3}}}
    with pytest.raises(UserError, match="gate keys: free differs in train.steps"):
        ablate.ablate(make_plan("decay", DECAY | longer | {"shared": plan.shared}), tmp_path / "grid")
    long = {"endpoint": "val/loss/quarter_4", "shared": {**plan.shared, "data.length": 256}}
    with pytest.raises(UserError, match="val/loss/quarter_4' has no target in the validation text of decayed: "):
        ablate.ablate(make_plan("decay", DECAY | long), tmp_path / "grid")
    assert not (tmp_path / "grid").exists()


@pytest.mark.rest
def test_loss_by_position_decides_like_any_endpoint(plan: Plan, tmp_path: Path) -> None:
    """Its values are those that `launch.evaluate` finds in the run, and it has a curve where it is measured twice."""
    change = {"endpoint": "val/loss/last_less_first", "seeds": [0, 3], "pack": 1, "shared": plan.shared}
    found = ablate.ablate(make_plan("place", DECAY | change), tmp_path / "grid")
    assert found.rows[0].word == "NOT DISTINGUISHABLE"
    rows = csv.DictReader(the_file(tmp_path / "grid", "seeds.csv").decode().splitlines())
    values = {float(row["value"]) for row in rows}
    runs = [open_run(folder) for folder in (tmp_path / "grid").glob("store/*/run")]
    assert sorted(values) == pytest.approx(sorted(evaluate(run)["val/loss/last_less_first"] for run in runs), abs=1e-6)
    page = the_file(tmp_path / "grid", "verdict.md").decode()
    assert "the mean loss of the targets that see 49 to 64 tokens, less that of those that see 1 to 16 tokens" in page
    assert "## Curves" in page


def test_a_sensitivity_is_of_the_whole_grid_of_learning_rates(shared: dict[str, Any], grid: Path) -> None:
    """No loss counts for more than the seed's first one, and a seed fails where it does at every rate."""
    change = {"contrast": "sensitivity", "endpoint": "val/loss", "learning_rates": [1e-3, 1e-2, 1e-1]}
    keys = {key: value for key, value in shared.items() if key != "optimizer.learning_rate"}
    plan = make_plan("decay", DECAY | change | {"shared": keys})
    record = Store(grid / "store").record(next(grid.glob("store/*/record.json")).parent.name)
    assert record is not None
    losses = {1e-3: [2.5, None], 1e-2: [2.0, None], 1e-1: [9.0, None]}
    curves = {1e-3: {"train/loss": {"1": [2.9, 2.8]}}, 1e-2: {}, 1e-1: {}}
    made = {
        ("free", rate): [dataclasses.replace(record, values={"val/loss": own}, curves=curves[rate])]
        for rate, own in losses.items()
    }
    found = results_of(plan, made)["free"]
    assert found[0] == pytest.approx((2.5 + 2.0 + 2.9) / 3 - 2.0, rel=1e-12)
    assert found[1] == math.inf


def forged(grid: Path, folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """A copy of a grid in which the program of the second arm says something else."""
    shutil.copytree(grid, folder)
    ((key, _),) = loads(the_file(folder, "programs.json"))["free"]
    file = folder / "store" / key / "record.json"
    values = loads(file.read_bytes())
    write(file, values | change(values))
    return folder


def test_the_best_checkpoint_is_no_result(plan: Plan, grid: Path, tmp_path: Path) -> None:
    """The values of a trained arm are those of the step before the last."""
    found = ablate.ablate(
        plan,
        forged(
            grid,
            tmp_path / "grid",
            lambda record: {"values": {name: one["1"] for name, one in record["curves"].items()}},
        ),
    )
    assert (found.status, [row.word for row in found.rows]) == (7, ["INVALID"])
    assert found.gates == ("last: val/halved of free is not that of the last step",)


def test_a_failed_seed_cannot_be_dropped(plan: Plan, grid: Path, tmp_path: Path) -> None:
    """Of the program's record, where it counts as one, or of the plan, once it was looked at."""

    def failing(record: dict[str, Any]) -> dict[str, Any]:
        values = {name: [one[0], None] for name, one in record["values"].items()}
        curves = {name: {step: [one[0], None] for step, one in of.items()} for name, of in record["curves"].items()}
        return {"values": values, "curves": curves, "failed": {"1": "step 2 is not finite."}}

    def dropping(record: dict[str, Any]) -> dict[str, Any]:
        values = {name: one[:1] for name, one in record["values"].items()}
        curves = {name: {step: one[:1] for step, one in of.items()} for name, of in record["curves"].items()}
        return {"values": values, "curves": curves, "seeds": [0]}

    (row,) = ablate.ablate(plan, forged(grid, tmp_path / "failing", failing)).rows
    assert row.failed == {"free": (1,), "decayed": ()}
    with pytest.raises(UserError, match="gate missing: free lacks seeds 1: a failed seed counts as one"):
        ablate.ablate(plan, forged(grid, tmp_path / "dropping", dropping))


@pytest.mark.rest
def test_a_plan_that_is_changed_after_a_look_is_told(plan: Plan, grid: Path, tmp_path: Path) -> None:
    """More seeds are trained, as for a stop at the first small p; or others in the place of one; or D is edited."""
    more: dict[str, Any] = {"shared": plan.shared, "pack": 1}
    changes: list[tuple[dict[str, Any], list[str]]] = [
        (more | {"seeds": [0, 1, 2]}, ["looks"]),
        (more | {"seeds": [0, 2]}, ["missing"]),
        ({"shared": plan.shared, "smallest": 0.02}, ["smallest"]),
    ]
    for number, (change, gates) in enumerate(changes):
        name = str(number)
        shutil.copytree(grid, tmp_path / name)
        found = ablate.ablate(make_plan("decay", DECAY | change), tmp_path / name)
        assert found.status == 7
        assert [gate.partition(":")[0] for gate in found.gates] == gates


def test_what_the_gates_found_is_found_again_where_it_may_be_another(plan: Plan, grid: Path, tmp_path: Path) -> None:
    """By their own code, too: it is no part of a program's address."""
    shutil.copytree(grid, tmp_path / "grid")
    (file,) = (tmp_path / "grid").glob("plans/*/gates.json")
    assert examined_at(plan, file.parent) is not None
    values = loads(file.read_bytes())
    for changed in ({"code": "other"}, {"where": {"device": "TPU v5e"}}, {"made": {}}):
        write(file, values | {"found_by": values["found_by"] | changed})
        assert examined_at(plan, file.parent) is None
    assert values["found_by"]["code"] != code_digest()


@pytest.mark.rest
def test_success_at_a_threshold_is_judged_of_the_same_runs(plan: Plan, grid: Path, tmp_path: Path) -> None:
    """Between the largest value of all and the next: one of the four runs has none."""
    shutil.copytree(grid, tmp_path / "grid")
    rows = [*csv.DictReader(the_file(grid, "seeds.csv").decode().splitlines())]
    *_, last, largest = sorted(rows, key=lambda row: float(row["value"]))
    threshold = (float(last["value"]) + float(largest["value"])) / 2
    change = {"shared": plan.shared, "success": threshold}
    asking = make_plan("decay", DECAY | change)
    (row,) = ablate.ablate(asking, tmp_path / "grid").rows
    rates = {"free": row.plus_rate.successes, "decayed": row.minus_rate.successes}
    assert rates == {"free": 2, "decayed": 2} | {largest["arm"]: 1}
    assert (row.test, row.word) == ("McNemar", "NOT DISTINGUISHABLE")
    assert len([*(tmp_path / "grid").glob("store/*/record.json")]) == 2
    page = (place_of(asking, tmp_path / "grid") / "verdict.html").read_text()
    assert f">success: at most {threshold:.4g}</text>" in page


@pytest.mark.rest
def test_text_and_plans_that_are_edited_between_two_calls_are_others(tmp_path: Path) -> None:
    """In one process, as in a notebook; what has run of the text as it was is found again."""
    text, file, folder = tmp_path / "text" / "00.txt", tmp_path / "decay.py", tmp_path / "grid"
    values = DECAY | {"shared": write_text(tmp_path) | TINY}

    def judged(smallest: float) -> dict[Path, bytes]:
        file.write_text(f"def get_plan():\n    return {values | {'smallest': smallest}!r}\n")
        ablate.ablate(file, folder)
        return {place: place.read_bytes() for place in folder.glob("plans/*/seeds.csv")}

    whole, first = text.read_text(), judged(0.01)
    text.write_text("edited\n")
    other = judged(0.01)
    assert first.keys() == other.keys()
    assert first != other
    text.write_text(whole)
    assert judged(0.01) == first
    assert len([*folder.glob("store/*/record.json")]) == 4
    assert len(judged(0.02)) == 2
    # Nor is a run said to be of text that it did not learn from: here it is edited after the program was asked for.
    program = programs.address(config_of(make_plan("decay", values), "free", first_seed=7))
    text.write_text("edited again\n")
    with pytest.raises(UserError, match=f"program {program.key}: its text was changed after it was asked for"):
        Store(folder / "store").run(program)


def test_the_bar_is_full_when_the_grid_has_ended(plan: Plan, grid: Path) -> None:
    with ablate.opened(plan, grid) as made:
        made.run("verdict", made.cells(dict.fromkeys(plan.arms)), plan.seeds)
        assert made.bar._done(made.bar._now[1]) == made.bar._total == made.seed_steps == 2 * 2 * 2  # arms, seeds, steps


def test_where_there_is_no_terminal_the_bar_is_a_line_for_each_phase(
    plan: Plan, grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whenever it looks: also while a phase's programs are counted."""
    counted = running._seed_steps
    monkeypatch.setattr(running, "_POLL", 0.01)
    monkeypatch.setattr(running, "_seed_steps", lambda *given: time.sleep(0.03) or counted(*given))
    with ablate.opened(plan, grid) as made:
        for phase, seeds in (("pilot", plan.seeds[:0]), ("verdict", plan.seeds)):
            made.run(phase, made.cells(dict.fromkeys(plan.arms)), seeds)
            time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-2:] == ["pilot: 0 %", "verdict: 100 %"]
    assert len({*lines}) == len(lines)
