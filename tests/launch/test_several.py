"""The commands in two real processes: they train, one is killed or frozen or fails, and what is left goes on."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import evaluate, generate, train
from launch.configs import load
from launch.train import fit
from tests.launch.test_resume import assert_the_same
from tests.several import SIGNALLED, open_mpi, run_together, slurm
from tests.tiny import SIZES, Outcome, call, metrics, saved, words, write_text
from tests.train.tasks.every import keys_of

pytestmark = pytest.mark.rest
TRAIN, HEARTBEAT = ("-m", "launch.train"), "--heartbeat-seconds=10"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("several")) | {"train.prompt": "", "mesh.fsdp": -1}


@pytest.fixture(scope="module")
def whole(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes under SLURM that nothing has interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    outcomes = run_together(slurm, TRAIN, 2 * [words(workdir, keys)], workdir.with_name("logs"))
    assert_ended(outcomes, 0)
    assert "at localhost:" in outcomes[1].err
    assert "this model" in outcomes[0].out
    assert "this model" not in outcomes[1].out
    assert "step 12/12" not in outcomes[1].err
    assert "coordination_service.cc" not in outcomes[0].err  # jax warns of what it is asked for
    go_on = re.search(r"^go on +(.*)$", outcomes[0].out, re.MULTILINE)
    assert go_on is not None
    assert go_on[1].endswith("--extend --config.train.steps=N  # on each of the 2 processes")
    return workdir


def assert_ended(outcomes: list[Outcome], status: int, *parts: str) -> None:
    """All with the status and, if there are parts, a last line that holds them; none with a stack trace."""
    for outcome in outcomes:
        assert outcome.status == status, outcome.err[-3000:]
        assert "Traceback" not in outcome.err
        assert "stack trace" not in outcome.err
        assert all(part in outcome.err.splitlines()[-1] for part in parts), outcome.err[-3000:]


# Whose first rank takes its time to mend what is damaged.
MENDING = """
import time
from launch import cli, train
from train.run import folder
mend = folder.mend
def slowly(*given):
    time.sleep(5)
    mend(*given)
folder.mend = slowly
cli.run(train.main)
"""


def test_nobody_reads_a_damaged_file_before_it_is_mended(keys: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/config.json").write_text("{")
    ends = run_together(slurm, ("-c", MENDING), 2 * [words(tmp_path / "run", keys)], tmp_path / "logs")
    assert_ended(ends, 0)
    assert "config.json is damaged" in ends[0].err


def test_a_killed_run_goes_on_with_two_processes_and_with_one(
    keys: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    """Bit for bit on two; on one the sums are in another order."""
    two, one = tmp_path / "two", tmp_path / "one"
    ends = run_together(
        open_mpi, ("-c", SIGNALLED), 2 * [words(two, keys, HEARTBEAT, "7", "1", "SIGKILL")], tmp_path / "killed"
    )
    assert ends[1].status == -9
    assert_ended(ends[:1], 75, "rank 1 of 2 (host ", "has not been heard of for 10 s")
    assert saved(two) == [4]
    shutil.copytree(two, one)

    again = run_together(open_mpi, TRAIN, 2 * [words(two, keys)], tmp_path / "again")
    assert_ended(again, 0)
    assert "resumed from step 4\n" in again[0].err
    assert_the_same(two, whole, keys | {"mesh.fsdp": 1})

    alone = run_together(slurm, TRAIN, [words(one, keys, "--num-processes=1")], tmp_path / "alone")
    assert_ended(alone, 0)
    assert "resumed from step 4\n" in alone[0].err
    assert "joining" not in alone[0].err
    for found, wanted in zip(metrics(one), metrics(whole), strict=True):
        for name in {"train/loss", "val/loss", "val/bits_per_byte"} & wanted.keys():
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


def test_rows_that_go_on_do_so_with_two_processes_and_with_one(tmp_path: Path) -> None:
    """A stream of three windows, of which two are read by two processes."""
    keys = keys_of("streamed_text", "recurrent", tmp_path) | {"train.prompt": ""}
    argv = words(tmp_path / "run", keys | {"mesh.fsdp": -1})
    assert_ended(run_together(slurm, TRAIN, 2 * [[*argv, "--config.train.steps=2"]], tmp_path / "two"), 0)
    assert_ended(run_together(slurm, TRAIN, [[*argv, "--extend", "--num-processes=1"]], tmp_path / "one"), 0)
    for found, wanted in zip(metrics(tmp_path / "run"), fit(load("base", **keys))[1], strict=True):
        for name in {"train/loss", "val/loss"} & wanted.keys():
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("signal", "rank", "parts"),
    [
        ("SIGKILL", 0, ("rank 0 of 2 (host ", "the coordinator, was lost")),
        ("SIGSTOP", 0, ("rank 0 of 2 (host ", "the coordinator, has not been heard of for 10 s")),
        ("SIGSTOP", 1, ("rank 1 of 2 (host ", "has not been heard of for 10 s")),
    ],
)
def test_the_loss_of_a_process_ends_the_other(
    signal: str, rank: int, parts: tuple[str, ...], keys: dict[str, Any], tmp_path: Path
) -> None:
    argv = words(tmp_path / "run", keys, HEARTBEAT, "3", str(rank), signal)
    outcomes = run_together(open_mpi, ("-c", SLOWLY), 2 * [argv], tmp_path / "logs")
    assert outcomes[rank].status == -9
    assert_ended([outcomes[1 - rank]], 75, *parts)


# jax looks once a second whether a signal has come: the steps must not be over by then.
SLOWLY = SIGNALLED.replace("import os,", "import time, os,").replace(
    "rest)\n    if", "rest)\n    time.sleep(0.3)\n    if"
)


def test_a_stop_that_one_process_hears_of_is_a_stop_of_all(keys: dict[str, Any], tmp_path: Path) -> None:
    assert "time.sleep" in SLOWLY
    for name, at in (("SIGTERM", "2"), ("SIGINT", "7")):
        argv = words(tmp_path / "run", keys, at, "1", name)
        outcomes = run_together(open_mpi, ("-c", SLOWLY), 2 * [argv], tmp_path / name)
        assert_ended(outcomes, 75, "")
        assert "stopped at step" in outcomes[0].out
    assert len(saved(tmp_path / "run")) > 1


@pytest.mark.parametrize(
    ("different", "parts"),
    [
        ("--config.data.dir=/proc/none", ("rank 1 of 2", "/proc/none")),
        ("--config.model.dropout=0.2", ("--config must be the same", "rank 1 of 2")),
        ("--workdir={}/elsewhere", ("/run is not seen by rank 1 of 2 (on ", "--workdir")),
    ],
)
def test_what_is_wrong_on_one_process_only_ends_both_with_a_sentence(
    different: str, parts: tuple[str, ...], keys: dict[str, Any], tmp_path: Path
) -> None:
    argv = words(tmp_path / "run", keys)
    both = [argv, [*argv, different.format(tmp_path)]]
    outcomes = run_together(slurm, TRAIN, both, tmp_path / "logs")
    assert_ended(outcomes[:1], 2, *parts)
    assert_ended(outcomes[1:], 2, parts[-1])


def test_an_error_of_one_process_keeps_its_traceback_there(keys: dict[str, Any], tmp_path: Path) -> None:
    """And the others are told its name; nobody is called lost."""
    broken = """
import jax
from launch import cli, train
from train.run.report import Report
def step(self, number, *rest):
    if number == 3 and jax.process_index() == 1:
        raise RuntimeError("a defect")
Report.step = step
cli.run(train.main)
"""
    outcomes = run_together(slurm, ("-c", broken), 2 * [words(tmp_path / "run", keys)], tmp_path / "logs")
    assert_ended(outcomes[:1], 1, "rank 1 of 2 (host ", "failed (RuntimeError: a defect)")
    assert outcomes[1].status == 1
    assert "RuntimeError: a defect\n" in outcomes[1].err
    assert "Traceback" in outcomes[1].err


def test_a_missing_coordinator_is_told_by_its_address(keys: dict[str, Any], tmp_path: Path) -> None:
    argv = words(tmp_path / "run", keys, "--coordinator=127.0.0.1:9", "--join_seconds=1")
    outcomes = run_together(open_mpi, TRAIN, [[*argv, "--process-id=1", "--num-processes=2"]], tmp_path / "logs")
    assert_ended(outcomes, 75, "127.0.0.1:9", "--join-seconds=1")
    assert "joining as rank 1 of 2 at 127.0.0.1:9" in outcomes[0].err


def assert_alike(lines: list[str], wanted: list[str]) -> None:
    """The same words, and the same numbers but for the order in which two processes add float32."""
    number = re.compile(r"\d+\.\d+")
    assert [number.sub("", line) for line in lines] == [number.sub("", line) for line in wanted]
    found = ([float(text) for line in some for text in number.findall(line)] for some in (lines, wanted))
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-4)


def test_two_processes_evaluate_and_write_as_one(whole: Path, tmp_path: Path) -> None:
    flags = [f"--workdir={whole}"]
    outcomes = run_together(open_mpi, ("-m", "launch.evaluate"), 2 * [flags], tmp_path / "evaluate")
    assert_ended(outcomes, 0)
    # The first lines of stdout may be those of the collectives' library.
    alone = call(evaluate.main, flags).out.splitlines()
    assert_alike(outcomes[0].out.splitlines()[-len(alone) :], alone)
    assert str(whole) not in outcomes[1].out
    flags += ["--prompt=def", "--prompt=return x", "--prompt=if", "--temperature=0", "--max-new-tokens=9"]
    outcomes = run_together(open_mpi, ("-m", "launch.generate"), 2 * [flags], tmp_path / "generate")
    assert_ended(outcomes, 0)
    assert outcomes[0].out.endswith(call(generate.main, flags).out)
    assert "===" not in outcomes[1].out


def test_seeds_on_two_processes_are_those_on_one(keys: dict[str, Any], tmp_path: Path) -> None:
    keys = keys | {"train.seeds": 2, "mesh.replica": 2, "mesh.fsdp": 1, "train.prompt": "de"}
    outcomes = run_together(slurm, TRAIN, 2 * [words(tmp_path / "two", keys)], tmp_path / "logs")
    assert_ended(outcomes, 0)
    assert "sample" in outcomes[0].out
    assert call(train.main, words(tmp_path / "one", keys)).status == 0
    for found, wanted in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        for name in {"train/loss", "val/loss", "train/grad_norm/stack/attention"} & wanted.keys():
            assert len(found[name]) == 2
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)
    assert json.loads((tmp_path / "two" / "passport.json").read_text())["processes"] == 2


def test_two_processes_write_the_predictions_of_one(tmp_path: Path) -> None:
    """Of 7 examples, which neither a batch nor two processes divide: each once, in order, by the first process."""
    rows = [{"text": f"{'xyz'[n % 3]} and {n}", "label": "abc"[n % 3]} for n in range(40)]
    for name, some in (("train", rows[7:]), ("validation", rows[:7])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    keys = {"family": "bert", "task": "classification", "data.path": f"{tmp_path}/*.jsonl", "data.length": 16}
    fit(load("base", **SIZES | keys | {"train.steps": 6, "data.dir": f"{tmp_path}/data"}), f"{tmp_path}/run")
    flags = [f"--workdir={tmp_path}/run"]
    assert call(evaluate.main, flags).status == 0
    (file,) = (tmp_path / "run").glob("predictions-*.jsonl")
    alone = file.read_text()
    assert [json.loads(line)["text"] for line in alone.splitlines()] == [row["text"] for row in rows[:7]]
    file.unlink()
    outcomes = run_together(open_mpi, ("-m", "launch.evaluate"), 2 * [flags], tmp_path / "logs")
    assert_ended(outcomes, 0)
    assert outcomes[0].out.splitlines()[-1] == f"predictions: {file}"
    assert file.read_text() == alone
