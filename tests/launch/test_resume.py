"""A run that was killed, or told to stop, and started again is bit for bit the run that was not."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch import train
from launch.configs import load
from tests.tiny import CONFIG, Outcome, call, end, metrics, saved, start, words, write_text
from train.data import open_data
from train.experiment import make_experiment
from train.run.bucket.address import checkpoints_of
from train.run.checkpoints import Checkpoints
from train.run.command import interpreter
from train.run.report import Report
from train.state import State

# The command, which sends itself a signal as soon as a step is written down: the next one runs already.
SIGNALLED = """
import os, signal, sys
from launch import cli, train
from train.run.report import Report
name, at = sys.argv.pop(), int(sys.argv.pop())
step = Report.step
def signalled(self, number, *rest):
    step(self, number, *rest)
    if number == at:
        os.kill(os.getpid(), getattr(signal, name))
Report.step = signalled
cli.run(train.main)
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("resume")) | {"train.prompt": ""}  # a sample would take seconds


@pytest.fixture(scope="module")
def whole(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert call(train.main, words(workdir, keys)).status == 0
    return workdir


def final_state(workdir: Path, keys: dict[str, Any]) -> State:
    abstract = make_experiment(load(CONFIG, **keys), keys.get("data.vocab_size", 256)).abstract
    with Checkpoints(checkpoints_of(workdir)) as checkpoints:
        state, extra, step = checkpoints.restore(abstract)
    assert extra["batches"] == step
    return state


def bits(state: State) -> dict[str, bytes]:
    state = state.replace(rng=jax.random.key_data(state.rng))
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(state)}


def assert_the_same(workdir: Path, whole: Path, keys: dict[str, Any]) -> None:
    """Parameters, optimizer, rng, step and every logged number but the speeds."""
    assert bits(final_state(workdir, keys)) == bits(final_state(whole, keys))
    speeds = {"train/tokens_per_second", "train/matrix_share", "train/wait_share"}
    found, wanted = (
        [{k: v for k, v in line.items() if k not in speeds} for line in metrics(w)] for w in (workdir, whole)
    )
    assert found == wanted


def call_and_signal(argv: list[str], number: signal.Signals, at: int) -> Outcome:
    """The command in this process, to which a signal comes while step `at` + 1 runs."""
    step = Report.step

    def signalled(self: Report, done: int, *rest: Any) -> None:
        step(self, done, *rest)
        if done == at:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Report, "step", signalled)
        outcome = call(train.main, argv)
    assert signal.getsignal(number) is before
    return outcome


def test_the_windows_hold_several_documents(keys: dict[str, Any]) -> None:
    windows = open_data(load(CONFIG, **keys).data).windows("train")
    assert windows.rows(range(len(windows)))["segment_ids"].max() > 1


@pytest.mark.rest
def test_a_killed_run_goes_on_bit_for_bit(keys: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    """SIGKILL arrives while a step runs and a checkpoint may be on its way; SIGTERM ends with status 75."""
    killed, told = tmp_path / "killed", tmp_path / "told"
    processes = [
        start("-c", SIGNALLED, *words(killed, keys), "9", "SIGKILL"),
        start("-c", SIGNALLED, *words(told, keys), "4", "SIGTERM"),
    ]
    ends = [end(process) for process in processes]
    assert ends[0].status == -signal.SIGKILL, ends[0].err
    assert ends[1].status == 75, ends[1].err
    assert "stopped at step 5 of 12" in ends[1].out
    assert saved(told) == [4, 5]
    newest = max(saved(killed))
    assert newest in (4, 8)

    again = call(train.main, words(killed, keys))
    assert (again.status, f"resumed from step {newest}\n" in again.err) == (0, True), again.err
    assert_the_same(killed, whole, keys)


def test_a_run_that_is_told_to_stop_goes_on_bit_for_bit(keys: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    argv = words(tmp_path / "run", keys)
    # Step 6 is read before its evaluation, which is owed then and made up for by the next start.
    for number, at, stopped, started in ((signal.SIGTERM, 2, 3, None), (signal.SIGINT, 6, 6, 3)):
        outcome = call_and_signal(argv, number, at)
        assert outcome.status == 75, outcome.err
        assert f"stopped at step {stopped} of 12; the same command goes on from there:\n" in outcome.out
        assert saved(tmp_path / "run")[-1] == stopped
        assert started is None or f"resumed from step {started}\n" in outcome.err
    outcome = call(train.main, argv)
    assert "resumed from step 6\n" in outcome.err
    assert "this model" in outcome.out
    assert_the_same(tmp_path / "run", whole, keys)


@pytest.mark.rest
def test_a_run_that_is_told_to_stop_before_its_last_evaluation_makes_up_for_it(
    keys: dict[str, Any], whole: Path, tmp_path: Path
) -> None:
    argv = words(tmp_path / "run", keys)
    outcome = call_and_signal(argv, signal.SIGTERM, 12)
    assert outcome.status == 75, outcome.err
    assert f"step 12 is not evaluated yet, which this makes up for:\n  {interpreter()} -m launch.train" in outcome.out
    for _ in range(2):  # and only once
        again = call(train.main, argv)
        assert (again.status, "this model" in again.out) == (0, True), again.err
        assert_the_same(tmp_path / "run", whole, keys)


@pytest.mark.rest
def test_a_wsd_run_is_extended_from_before_its_decay_bit_for_bit(keys: dict[str, Any], tmp_path: Path) -> None:
    """12 steps and then 20 are 20 steps, also where the first start after the extension is interrupted."""
    keys = keys | {"optimizer.schedule": "wsd", "optimizer.decay_fraction": 0.25, "train.keep_best": 0}
    more = keys | {"train.steps": 20}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert call(train.main, words(whole, more)).status == 0
    begun = call(train.main, words(run, keys))
    assert "wsd decays after step 9: its checkpoint is kept" in begun.err
    assert saved(run) == [9, 12]
    ended = metrics(run)

    outcome = call_and_signal(words(run, more, "--extend"), signal.SIGTERM, 13)
    assert "--extend: the learning rate goes on at 0.001 from step 9 (wsd, train.steps=12 -> 20)." in outcome.err
    assert "resumed from step 9\n" in outcome.err
    assert "wsd decays after step 15: its checkpoint is kept" in outcome.err
    again = call(train.main, words(run, more))
    assert again.status == 0, again.err
    assert "resumed from step 14\n" in again.err
    assert "--extend: " not in again.err.replace("and --extend", "")
    assert_the_same(run, whole, more)
    rates = [line["train/learning_rate"] for line in metrics(run) if "train/loss" in line]
    assert rates[2:15] == [rates[2]] * 13
    assert (run / "checkpoints/decayed-12").is_dir()
    assert [json.loads(line) for line in (run / "decayed-metrics.jsonl").read_text().splitlines()] == ended


@pytest.mark.rest
def test_a_population_goes_on_bit_for_bit(keys: dict[str, Any], tmp_path: Path) -> None:
    keys = keys | {"train.seeds": 2, "train.steps": 7, "mesh.replica": 2}
    assert call(train.main, words(tmp_path / "whole", keys)).status == 0
    argv = words(tmp_path / "run", keys)
    assert "stopped at step 5 of 7" in call_and_signal(argv, signal.SIGTERM, 4).out
    assert "resumed from step 5\n" in call(train.main, argv).err
    assert_the_same(tmp_path / "run", tmp_path / "whole", keys)
    assert len(metrics(tmp_path / "run")[0]["train/loss"]) == 2
