"""Runs of a second: a tiny model on a few lines of text, and the commands on it, in this process or in another."""

import contextlib
import dataclasses
import io
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch import cli
from tests.conftest import ROOT

WORDS = "def main return if else for in while import from class self print len x y ( ) :".split()
CONFIG = "configs/base.py"  # which no story of a variant changes
SIZES = {
    "model.num_layers": 1,
    "model.width": 16,
    "model.num_heads": 2,
    "model.dropout": 0.1,
    "data.tokenizer": "bytes",
    "data.length": 64,
    "data.batch_size": 4,
    "optimizer.warmup_steps": 2,
    "train.steps": 12,
    "train.accumulate": 2,
    "train.log_every": 1,
    "train.evaluate_every": 6,
    "train.checkpoint_every": 4,
    "train.prompt": "de",
    "mesh.fsdp": 1,
}


def write_text(folder: Path) -> dict[str, Any]:
    """Writes documents so short that a window holds several; returns the keys of a tiny run on them."""
    (folder / "text").mkdir(parents=True)
    drawn = random.Random(0)
    for number in range(97):
        line = " ".join(drawn.choices(WORDS, k=drawn.randrange(3, 12)))
        (folder / "text" / f"{number:02}.txt").write_text(f"{line}\n")
    return SIZES | {"data.path": f"{folder}/text/*.txt", "data.dir": f"{folder}/data"}


def words(workdir: Path | str, keys: dict[str, Any], *more: str) -> list[str]:
    """The words of a `launch.train` command."""
    return [
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in keys.items()),
        *more,
    ]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


def call(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> Outcome:
    """Runs a command in this process, as its `__main__` does."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    interrupt = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["command", *argv])
        try:
            cli.run(main)
        except SystemExit as end:
            status = int(end.code or 0)
    signal.signal(signal.SIGINT, interrupt)  # a command that was interrupted leaves the default: its process ends
    return Outcome(status, out.getvalue(), err.getvalue())


def start(*command: str | bytes, start_new_session: bool = False) -> subprocess.Popen[str]:
    """Starts a Python process in the root of the repository."""
    pipe, own = subprocess.PIPE, start_new_session
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=own
    )


def end(process: subprocess.Popen[str]) -> Outcome:
    """Waits for it."""
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir: Path) -> list[int]:
    """The steps of its checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
