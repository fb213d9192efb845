"""Output is not the run: whoever stops reading it, closes it or fills its disk ends no training and loses no step."""

import os
import pty
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import train
from tests.conftest import ROOT
from tests.tiny import call, metrics, saved, words, write_text


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("output")) | {"train.prompt": ""}


def shell(script: str, verb: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a bash script, in which $RUN is the command; its status is that of the first command that fails."""
    command = shlex.join([sys.executable, "-m", f"launch.{verb}", *argv])
    script = f"set -o pipefail; {script.replace('$RUN', command)}"
    return subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)


def assert_whole(run: Path) -> None:
    assert [line["step"] for line in metrics(run) if "train/loss" in line] == [*range(1, 13)]
    assert saved(run)[-1] == 12


OUTPUTS = {
    "full": "$RUN >/dev/full 2>/dev/full",
    "closed": "$RUN >&- 2>&- <&-",
    "head": "$RUN 2>&1 | head -1",
    "nobody": "$RUN 2>&1 | true",
}


@pytest.mark.rest
@pytest.mark.parametrize("name", OUTPUTS)
def test_training_outlives_its_output(keys: dict[str, Any], name: str, tmp_path: Path) -> None:
    done = shell(OUTPUTS[name], "train", *words(tmp_path / "run", keys))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == (name == "head")
    assert_whole(tmp_path / "run")


@pytest.mark.rest
def test_training_outlives_its_terminal(keys: dict[str, Any], tmp_path: Path) -> None:
    """It leads the session of a terminal that goes away after the first words: SIGHUP, and nothing to write to."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "launch.train", *words(tmp_path / "run", keys)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(theirs)
    assert os.read(ours, 1)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=300) == 0
    assert_whole(tmp_path / "run")


@pytest.mark.rest
def test_generation_into_a_closed_pipe_ends_quietly(keys: dict[str, Any], tmp_path: Path) -> None:
    assert call(train.main, words(tmp_path / "run", keys)).status == 0
    argv = [f"--workdir={tmp_path}/run", "--prompt=def ", "--max_new_tokens=40"]
    done = shell("$RUN | head -c 3", "generate", *argv)
    assert (done.returncode, done.stdout, done.stderr) == (141, "def", "")
    full = shell("$RUN >/dev/full", "generate", *argv)
    assert full.returncode == 2
    assert full.stderr == "standard output cannot be written (No space left on device): give it a place.\n"
