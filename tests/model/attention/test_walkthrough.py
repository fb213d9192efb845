"""model/attention/cores/README.md adds a mask and a core; here is somebody who does exactly what it says, in a copy."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.rest
README = (ROOT / "model/attention/cores/README.md").read_text()
SECTIONS = dict(re.findall(r"^## Add a (mask|core)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the two files and the two lines (and their imports) of the README."""
    folder = tmp_path_factory.mktemp("copy")
    for room in ("configs", "model", "train", "eval", "launch", "tests"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for section, table, word in (
        (SECTIONS["mask"], "MASKS: Table = {\n", "lookback"),
        (SECTIONS["core"], "CORES: dict[str, Core] = {\n", "textbook"),
    ):
        ((name, code),) = re.findall(r"A file, `(.*?)`:\n\n```python\n(.*?)```", section, re.DOTALL)
        (line,), (file,) = (
            re.findall(r'^    ("\w+": .*)$', section, re.MULTILINE),
            re.findall(r"of `([\w/]+\.py)`", section),
        )
        (folder / name).write_text(code)
        path, module = folder / file, name.removesuffix(".py").replace("/", ".")
        before = path.read_text()
        added = (
            f"from {module} import {word}\n" if word == "lookback" else f"from model.attention.cores import {word}\n"
        )
        after = before.replace(table, f"{table}    {line}\n").replace("\nfrom model", f"\n{added}from model", 1)
        assert len(after.splitlines()) == len(before.splitlines()) + 2
        path.write_text(after)
    return folder


def python(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_mask_and_the_core_are_there(copy: Path) -> None:
    header, *_ = (table := python(copy, "-m", "launch.attention", "--table")).splitlines()
    assert "| textbook |" in header
    assert "mask: lookback(17)" in table
    assert "textbooks know no sinks; write dense." in table


def test_the_battery_finds_and_passes_them(copy: Path) -> None:
    cells = "lookback or textbook-packing or textbook-bias or textbook-dropout or textbook-rows or textbook-grouped"
    passed = python(copy, "-m", "pytest", "-q", "tests/model/attention/test_cores.py", "-k", cells)
    assert re.search(r"\b(1[0-9]|[2-9][0-9]) passed", passed), passed
