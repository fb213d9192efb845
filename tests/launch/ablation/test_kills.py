"""A grid that is killed, spread or run elsewhere leaves the same bytes; a failed seed keeps its place."""

import dataclasses
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from launch import ablate, verify
from launch.ablation import programs
from launch.ablation.plan import Plan, config_of, make_plan
from launch.ablation.programs import Store, address
from launch.ablation.running import _last_step
from model.errors import Diverged, UserError
from tests.tiny import call, end, start, write_text
from train.run.files.json_files import loads

pytestmark = pytest.mark.rest
TINY = {"train.steps": 6, "train.evaluate_every": 3, "train.checkpoint_every": 2, "train.accumulate": 1}
POINTS = (1, 5, 9, 14, 20, 27, 35, 44, 54, 65)  # lines of metrics in all programs, at which a grid is killed


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "question": "Does the scale of the scores matter?",
        "factor": "model.scale",
        "arms": {"scaled": {}, "bare": {"model.scale": 1.0}},
        "smallest": "1 %",
        "seeds": list(range(8)),
        "looks": [4, 8],
        "pilot_seeds": [100, 101],
        "tune_seeds": [200],
        "learning_rates": [1e-2, 1e-1],
        "waived": {"seeds": "four are quick"},
        "shared": write_text(tmp_path_factory.mktemp("text")) | TINY,
    }


@pytest.fixture(scope="module")
def plan(values: dict[str, Any]) -> Plan:
    return make_plan("scale", values)


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "grid"
    ablate.ablate(plan, folder)
    return folder


def left(folder: Path) -> dict[str, Any]:
    """All that a grid leaves, but for the seconds of its programs, and for its own place on the page."""
    files = [*folder.glob("plans/*/*.csv"), *folder.glob("plans/*/*.json"), folder / "ledger.jsonl"]
    found: dict[str, Any] = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    for file in folder.glob("store/*/record.json"):
        found[file.parent.name] = {key: value for key, value in loads(file.read_bytes()).items() if key != "seconds"}
    return found


def lines(folder: Path) -> int:
    return sum(len(file.read_bytes().splitlines()) for file in folder.glob("store/*/run/metrics.jsonl"))


def test_a_grid_that_is_killed_ten_times_leaves_the_same_bytes(
    values: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "scale.py").write_text(f"def get_plan():\n    return {values!r}\n")
    folder = tmp_path / "grid"
    words = ["-m", "launch.ablate", f"--plan={tmp_path}/scale.py", f"--workdir={folder}"]
    for number, point in enumerate(POINTS):
        process = start(*words, f"--jobs={1 + number % 2}")
        deadline = time.monotonic() + 240
        while lines(folder) < point and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if number == 0:
            with pytest.raises(UserError, match="in use by another process"):
                ablate.ablate(make_plan("scale", values), folder)
        assert process.poll() is None, end(process)
        process.send_signal(signal.SIGKILL)
        end(process)
    ended = end(start(*words, "--jobs=2"))
    (page,) = whole.glob("plans/*/verdict.md")  # of two rates one is always at an edge
    assert "The grid of learning rates was extended in all arms alike, by" in page.read_text()
    assert ended.status == loads(next(whole.glob("plans/*/verdict.json")).read_bytes())["status"], ended.err
    assert left(folder) == left(whole)


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_all", [False, True], ids=["to one", "to all"])
def test_a_grid_that_is_stopped_says_how_it_goes_on(
    values: dict[str, Any], tmp_path: Path, jobs: int, number: signal.Signals, to_all: bool
) -> None:
    """Within seconds, whichever of its processes hear of it, and nobody sees a traceback."""
    long = values | {"shared": values["shared"] | {"train.steps": 100_000}}
    (tmp_path / "scale.py").write_text(f"def get_plan():\n    return {long!r}\n")
    words = [f"--plan={tmp_path}/scale.py", f"--workdir={tmp_path / 'grid'}"] + ["--jobs=2"] * (jobs - 1)
    process = start("-m", "launch.ablate", *words, start_new_session=True)
    while lines(tmp_path / "grid") < 2 and process.poll() is None:
        time.sleep(0.05)
    sent, one = time.monotonic(), process.pid
    workers = Path(f"/proc/{one}/task/{one}/children").read_text().split()
    for each in [one, *map(int, workers)] if to_all else [one]:
        os.kill(each, number)
    ended = end(process)
    assert time.monotonic() - sent < 20
    assert len(workers) == 2 * (jobs - 1)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert ended.err.count(": finishing ") == 1  # and no worker repeats it
    assert f"goes on from there:\n  .venv/bin/python -m launch.ablate {' '.join(words)}\n" in ended.out


def test_a_program_or_a_row_that_is_stopped_says_so(
    values: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To whoever stops it, within two seconds, and not to the log of the program."""
    folder, fresh = tmp_path / "grid", tmp_path / "fresh"
    shutil.copytree(whole, folder)
    fresh.mkdir()
    monkeypatch.setenv("TMPDIR", str(fresh))  # where a row is run again
    long = values | {"shared": values["shared"] | {"train.steps": 100_000}}
    program = address(config_of(make_plan("scale", long), "bare"))
    Store(folder / "store").write(program)
    (file,) = folder.glob("plans/*/programs.json")
    key, _ = loads(file.read_bytes())["bare"][0]
    shutil.copy(folder / "store" / program.key / "program.json", folder / "store" / key)
    run = Path(program.key, "run", "metrics.jsonl")
    commands = {
        ("launch.ablate", f"--workdir={folder}", f"--program={program.key}"): f"grid/store/{run}",
        ("launch.verify", str(folder), "bare:0"): f"fresh/*/{run}",
    }
    for words, there in commands.items():
        process = start("-m", *words)
        assert process.stderr is not None
        while not [*tmp_path.glob(there)] and process.poll() is None:
            time.sleep(0.05)
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        line = process.stderr.readline()
        assert re.match("SIGTERM: finishing .*; once more ends it at once", line), line + process.stderr.read()
        assert time.monotonic() - sent < 2
        ended = end(process)
        assert ended.status == 130
        assert ended.err == ""
        assert ("the same command goes on from there" in ended.out) == (words[0] == "launch.ablate")
    assert "finishing" not in (folder / "store" / program.key / "log.txt").read_text()
    assert [*fresh.iterdir()] == []


def test_a_program_runs_in_one_command_at_a_time(plan: Plan, tmp_path: Path) -> None:
    """Another is refused before it says anything in the first one's log."""
    store, program = Store(tmp_path), address(config_of(plan, "bare"))
    place = store.place(program.key)
    holder = start("-c", HOLDER.format(folder=str(place)))
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"{program.key} is in use by another process"):
            store.run(program)
        assert {file.name for file in place.iterdir()} == {".lock"}
    finally:
        holder.kill()
        holder.communicate()


HOLDER = """
import time
from pathlib import Path
from train.run.files.lock import FolderLock
lock = FolderLock(Path({folder!r}))
print("held", flush=True)
time.sleep(300)
"""

# As a cell of a notebook that is run again after it was interrupted; whatever it is told is written to its output.
CELL = """
import sys
from launch.ablate import ablate
from launch.ablation.plan import make_plan
values, folder = {values!r}, {folder!r}
try:
    ablate(make_plan("scale", values), folder)
except KeyboardInterrupt as error:
    print(type(error).__name__, error)
print(ablate(make_plan("scale", values), folder).status)
"""


@pytest.mark.parametrize("point", [0, 3, 30])
def test_a_notebook_that_is_interrupted_goes_on_when_it_is_told_again(
    values: dict[str, Any], whole: Path, tmp_path: Path, point: int
) -> None:
    """At the gates, in a program, and between two; in a process without a terminal, which an interrupt leaves alive."""
    folder = tmp_path / "grid"
    process = start("-c", CELL.format(values=values, folder=str(folder)), start_new_session=True)
    while lines(folder) < point or not (folder / ".lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    ended = end(process)
    status = loads(next(whole.glob("plans/*/verdict.json")).read_bytes())["status"]
    told = "Stopped stopped as told: nothing that is saved is lost, and the same call goes on from there"
    assert ended.out.splitlines() == [told, str(status)], ended.err
    assert "Ctrl-C: finishing" in ended.err  # on the screen, and not in the log of a program
    assert "once more interrupts at once" in ended.err
    assert left(folder) == left(whole)


def test_programs_that_run_elsewhere_leave_the_same_bytes(values: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    (tmp_path / "scale.py").write_text(f"def get_plan():\n    return {values!r}\n")
    folder = tmp_path / "grid"
    words = [f"--plan={tmp_path}/scale.py", f"--workdir={folder}"]
    rounds = 0
    while commands := call(ablate.main, [*words, "--print-commands"]).out.splitlines():
        if "--program=" not in commands[0]:
            break
        rounds += 1
        for line in commands:
            assert call(ablate.main, [word for word in line.split() if word.startswith("--")]).status == 0
    assert 4 <= rounds <= 7  # tune, one to three extensions of its grid, pilot, and one or two looks
    assert left(folder) == left(whole)


def test_a_row_is_verified_by_running_it_again(plan: Plan, whole: Path) -> None:
    found = verify.verify(whole, "bare:1")
    assert [*found.values()] == [[]]
    (key,) = found
    file = whole / "store" / key / "record.json"
    text = file.read_text()
    record = loads(text)
    value = record["values"]["val/loss"][1]
    try:
        file.write_text(text.replace(repr(value), repr(value + 1e-12)))
        assert verify.verify(whole, "bare:1")[key] == ["values", "curves"]
    finally:
        file.write_text(text)
    for row, words in {"bear": "the nearest is bare", "bare:9": "no such seed; there are 0 to"}.items():
        with pytest.raises(UserError, match=words):
            verify.verify(whole, row)
    for name in ("programs.json", "verdict.json"):
        (file,) = whole.glob(f"plans/*/{name}")
        text = file.read_text()
        try:
            file.write_text(text[:-9])
            with pytest.raises(UserError, match=rf"{name}: .*: start its plan again"):
                verify.verify(whole, "bare:1")
        finally:
            file.write_text(text)


def test_a_failed_seed_keeps_its_place_and_kills_no_other(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 1 diverges by whatever there is to it; the real one that diverges is in the next test."""
    real = programs.fit

    def fit(config: Any, workdir: str) -> Any:
        if config.train.seed <= 1 < config.train.seed + config.train.seeds:
            raise Diverged("step 2 is not finite in embed.")
        return real(config, workdir)

    monkeypatch.setattr(programs, "fit", fit)
    store = Store(tmp_path)
    program = address(config_of(plan, "bare", 1e-2, seeds=2))
    record = store.run(program)
    assert record.failed == {"1": "step 2 is not finite in embed."}
    assert len(record.alone) == 2
    losses = record.of("val/loss")
    assert losses[1] == float("inf")
    alone = store.run(address(config_of(plan, "bare", 1e-2, seeds=1)))
    assert losses[0] == alone.of("val/loss")[0]
    assert store.record(program.key) == dataclasses.replace(record)


def test_a_run_that_diverges_is_a_result(values: dict[str, Any], tmp_path: Path) -> None:
    change = {"arms": {"scaled": {}, "wild": {"optimizer.learning_rate": 1e30}}, "factor": "optimizer.learning_rate"}
    few = {"smallest": 0.1, "pilot_seeds": [], "seeds": range(4), "looks": [4], "waived": {"seeds": "quick"}}
    plan = make_plan("wild", values | change | {"learning_rates": []} | few)
    verdict = ablate.ablate(plan, tmp_path)
    (row,) = verdict.rows
    assert row.failed["wild"] == (0, 1, 2, 3)
    assert row.failed["scaled"] == ()
    assert (row.plus_rate.successes, row.minus_rate.successes) == (0, 4)
    page = next(tmp_path.glob("plans/*/verdict.md")).read_text()
    assert "wild, seed 3, failed: step" in page


def test_the_last_whole_line_says_how_far_a_run_is(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert _last_step(file) == 0
    file.write_text('{"step": 3}\n{"step": 4}\n{"ste')
    assert _last_step(file) == 4
