"""Ctrl-C in every phase of a run: a line within two seconds, the second one ends at once, and nothing is lost."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch import train
from tests.conftest import ROOT
from tests.launch.test_resume import SIGNALLED, assert_the_same
from tests.tiny import call, end, saved, words, write_text

pytestmark = pytest.mark.rest

# The command, which says when it begins to do something.
TOLD = """
import sys
from launch import cli, train
from train.run.signals import Stop
phase, doing = sys.argv.pop(), Stop.doing
def told(self, what):
    doing(self, what)
    if what.startswith(phase):
        print("now", flush=True)
Stop.doing = told
cli.run(train.main)
"""
PHASES = {
    "tokenizer": "the tokenizer",
    "compile": "the compilation of the step",
    "evaluation": "the evaluation of step 2",
    "save": "the save of step 2",
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Text of so many words that a tokenizer takes seconds, and so many layers that a compilation does."""
    folder = tmp_path_factory.mktemp("interrupt")
    keys = write_text(folder)
    drawn = random.Random(0)
    for number in range(40):
        text = "".join(drawn.choices("abcdefghijklmnopqrstuvwxyz ", k=5000))
        (folder / f"text/more{number}.txt").write_text(text)
    layers = {"model.num_layers": 8, "model.unroll": 8, "data.tokenizer": "bpe", "data.vocab_size": 900}
    steps = {"train.steps": 5, "train.evaluate_every": 2, "train.checkpoint_every": 2, "train.prompt": ""}
    return keys | layers | steps


@pytest.fixture(scope="module")
def whole(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert call(train.main, words(workdir, keys)).status == 0
    return workdir


def interrupt(argv: list[str], phase: str, times: int, cache: Path) -> tuple[int, str]:
    """Sends SIGINT a moment after a phase has begun, again when it was answered; returns status and last words."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    process = subprocess.Popen(
        [sys.executable, "-c", TOLD, *argv, phase],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline() == "now\n", process.stderr.read()
        time.sleep(0.02)
        for number in range(times):
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            words = ("Ctrl-C: finishing ", "Ctrl-C again: ended at once")[number]
            line = next((line for line in process.stderr if line.startswith("Ctrl-C")), "")
            if number == 1 and phase == PHASES["tokenizer"] and not line:
                break  # the first one has ended it within a tenth of a second, before the second could
            assert line.startswith(words)
            assert time.monotonic() - sent < 2
            if number == 0 and phase != PHASES["save"]:  # which is over soon
                assert phase in line
        status = process.wait(timeout=300)
        if times == 2:
            assert time.monotonic() - sent < 2
        assert "Traceback" not in process.stderr.read()
        return status, process.stdout.read()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", PHASES)
def test_an_interrupted_run_goes_on_bit_for_bit(keys: dict[str, Any], whole: Path, name: str, tmp_path: Path) -> None:
    if name == "tokenizer":
        keys = keys | {"data.dir": f"{tmp_path}/data"}  # where there is none yet
    cache = tmp_path if name == "compile" else Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    argv = words(tmp_path / "run", keys)
    status, _ = interrupt(argv, PHASES[name], 2, cache)
    assert status in (130, -signal.SIGINT)  # which a shell shows as 130, too
    status, out = interrupt(argv, PHASES[name], 1, cache)
    # Before the first step there is nothing to save.
    assert status == (130 if name == "tokenizer" else 75)
    # A save is not waited for: the step after it is on its way.
    stopped = {"compile": 1, "evaluation": 2, "save": 3}
    assert name == "tokenizer" or f"stopped at step {stopped[name]} of 5" in out
    again = call(train.main, argv)
    assert again.status == 0, again.err
    assert_the_same(tmp_path / "run", whole, keys)


def test_ctrl_c_in_one_of_two_processes_stops_both_at_one_step(tmp_path: Path) -> None:
    """As a terminal on one of the machines sends it: the other hears of it through the preemption service."""
    keys = write_text(tmp_path) | {
        "train.prompt": "",
        "mesh.fsdp": 2,
        "train.steps": 400,
        "train.evaluate_every": 400,
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    processes = []
    for rank in (0, 1):
        place = f"--coordinator=localhost:{port}", "--num-processes=2", f"--process-id={rank}"
        command = "-c", SIGNALLED, *words(tmp_path / "run", keys, *place), "5" if rank else "999", "SIGINT"
        processes.append(
            subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, text=True, stdout=-1, stderr=-1)
        )
    try:
        first, second = [end(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert (first.status, second.status) == (75, 75), first.err + second.err
    assert "Ctrl-C: finishing step 6, then the run ends" in second.err
    stopped = saved(tmp_path / "run")[-1]
    assert f"stopped at step {stopped} of 400" in first.out
    assert 5 < stopped < 400
