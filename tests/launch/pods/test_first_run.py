"""The page of the first run, as it stands: each command, and that it prints what the page says."""

import doctest
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import ablate, plan, pod
from launch.machines import tree
from tests.conftest import CACHE, ROOT
from tests.launch.pods.cloud import Cloud, executable
from tests.tiny import SIZES, call, write_text

PAGE = ROOT / "launch/pods/FIRST_RUN.md"
MAINS: dict[str, Any] = {"ablate": ablate.main, "plan": plan.main, "pod": pod.main}
# A host without a TPU, on which the packages of this machine are installed.
PYTHON = f"""#!/bin/sh
export XLA_FLAGS={shlex.quote(os.environ["XLA_FLAGS"])}
export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR={CACHE}/xla JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2
exec {sys.executable} "$@"
"""
ANY = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def steps() -> list[tuple[list[str], str]]:
    """The commands of the page, and what each prints."""
    text = "".join(re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    found = [re.split(r"(?<!\\)\n", part, maxsplit=1) for part in parts]  # a command goes on behind a backslash
    return [(shlex.split(command.replace("\\\n", "")), printed) for command, printed in found]


def code(folder: Path) -> None:
    """A checkout of this code, in which the page's ablation is one of seconds."""
    shutil.rmtree(folder)
    folder.mkdir()
    for room in ("configs", "model", "train", "eval", "launch"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "requirements-build.txt", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    write_text(folder)
    file = folder / "configs/ablations/scale.py"
    small = {
        "arms": {"root": {}, "none": {"model.scale": 1.0}}, "shared": {**SIZES, "data.path": "text/*.txt"},
        "seeds": [*range(6)], "pilot_seeds": [100, 101], "tune_seeds": [], "learning_rates": [],
    }  # fmt: skip
    file.write_text(f"{file.read_text()}\n\n_whole = get_plan\n\n\ndef get_plan():\n    return _whole() | {small}\n")
    commit = ["-c", "user.name=me", "-c", "user.email=me@example.com", "commit", "--quiet", "-m", "Begin"]
    for words in (["init", "--quiet", "--template="], ["add", "."], commit):
        subprocess.run(["git", *words], cwd=folder, check=True)


@pytest.mark.rest
def test_the_page_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cloud = Cloud(tmp_path, monkeypatch)
    code(tree.ROOT)
    executable(tmp_path / "host-bin/stub-python", PYTHON)
    monkeypatch.chdir(tree.ROOT)
    Path("runs").mkdir()
    for words, expected in steps():
        python, _, command, *rest = words
        assert python == ".venv/bin/python", words
        monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
        outcome = call(MAINS[command.removeprefix("launch.")], rest)
        shown = outcome.out + outcome.err + "".join(capfd.readouterr())  # a log comes from another process
        assert doctest.OutputChecker().check_output(expected, shown, ANY), f"{words}:\n{shown}"
    assert cloud.state() == {"queued": {}, "nodes": {}}
    assert len([*Path("runs/first").glob("plans/*/verdict.html")]) == 1
