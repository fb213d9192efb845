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
SECTIONS = dict(
    re.findall(r"^## Add a (mask|core|core that learns)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the three files and the three lines (and their imports) of the README."""
    folder = tmp_path_factory.mktemp("copy")
    for room in ("configs", "model", "train", "eval", "launch", "tests"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for kind, added in (
        ("mask", "from model.attention.masks.lookback import lookback"),
        ("core", "from model.attention.cores import textbook"),
    ):
        ((name, code),) = re.findall(r"A file, `(.*?)`:\n\n```python\n(.*?)```", SECTIONS[kind], re.DOTALL)
        (folder / name).write_text(code)
        add_line(folder, SECTIONS[kind], added)
    ((kept, name),) = re.findall(r"`([\w/]+\.py)`\s+is one: copy it to `([\w/]+\.py)`", SECTIONS["core that learns"])
    shutil.copy(ROOT / kept, folder / name)
    add_line(folder, SECTIONS["core that learns"], "from model.attention.cores import decay")
    return folder


def add_line(folder: Path, section: str, added: str) -> None:
    """Puts the line that a section shows first into the table that it names, and the import above."""
    (line,) = re.findall(r'^    ("\w+": .*)$', section, re.MULTILINE)
    ((table, file),) = re.findall(r"in\s+`([A-Z]+)` of `([\w/]+\.py)`", section)
    path = folder / file
    before = path.read_text()
    after = re.sub(rf"^({table}: .* = {{)$", rf"\1\n    {line}", before, flags=re.MULTILINE)
    after = after.replace("\nfrom model", f"\n{added}\nfrom model", 1)
    assert len(after.splitlines()) == len(before.splitlines()) + 2
    path.write_text(after)


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


def test_the_core_that_learns_is_one_of_them(copy: Path) -> None:
    table = python(copy, "-m", "launch.attention", "--table")
    assert "| decay |" in table.splitlines()[0]
    assert "a state fades, and takes no other mask than causal; write --config.model.mask=causal." in table
    hybrid = "--config=configs/gpt.py:quickstart", "--config.model.core=3 * decay + dense"
    told = python(copy, "-m", "launch.attention", *hybrid)
    assert "3 * decay + dense takes 3 * decay + dense" in told
    assert "decay      another function" in told
