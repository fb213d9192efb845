"""Notebooks: kept without outputs, opened from one address, and run, cell by cell, as they stand."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
# Nobody knows yet where the project will be published; once pyproject.toml says so, every place must.
URLS: dict[str, str] = tomllib.loads(Path("pyproject.toml").read_text())["project"].get("urls", {})
ADDRESS = URLS.get("Repository", "https://github.com/OWNER/REPO")

# The cells in their order in one process, as a kernel runs them; a value at the end of one shows itself.
KERNEL = """
import ast, json, sys
cells, given = json.loads(sys.stdin.read())
def show(value):
    bundle = getattr(value, "_repr_mimebundle_", dict)()
    value is None or print(bundle.get("text/html") or getattr(value, "_repr_html_", value.__repr__)())
sys.displayhook = show
names = {"__name__": "__main__"}
for cell in cells:
    exec(compile(ast.Interactive(ast.parse("".join(cell["source"])).body), cell["id"], "single"), names)
    if "parameters" in cell["metadata"].get("tags", ()):
        assert names.keys() >= given.keys()
        names |= given
"""


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_a_notebook_is_kept_so_that_its_changes_can_be_read(notebook: Path) -> None:
    """Without outputs and counts, and written as Jupyter writes it, so that saving it changes nothing else."""
    text = notebook.read_text()
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
    assert {cell["execution_count"] for cell in cells(notebook, "code")} == {None}
    assert [cell["outputs"] for cell in cells(notebook, "code") if cell["outputs"]] == []
    assert sum("parameters" in cell["metadata"].get("tags", ()) for cell in cells(notebook, "code")) == 1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=str)
def test_its_badge_opens_it_and_what_colab_installs_is_the_same_project(notebook: Path) -> None:
    first, install = cells(notebook, "markdown")[0], cells(notebook, "code")[0]
    (badge,) = re.findall(r"https://colab\.research\.google\.com/github/[^)\s]+", "".join(first["source"]))
    owner = ADDRESS.removeprefix("https://github.com/")
    assert badge == f"https://colab.research.google.com/github/{owner}/blob/main/{notebook}"
    assert re.findall(r"https://github\.com/[\w.-]+/[\w.-]+", "".join(install["source"])) == [ADDRESS]
    readme = Path("notebooks/README.md").read_text()
    assert f"`{notebook.name}`" in readme
    assert ("OWNER/REPO" in readme) == ("OWNER/REPO" in ADDRESS)


def run(notebook: str, given: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Its cells, from another folder, on the devices that this machine has."""
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input=json.dumps([cells(Path("notebooks", notebook), "code"), given]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.rest
def test_the_ablation_ends_in_a_verdict_that_shows_itself(tmp_path: Path) -> None:
    """On fewer seeds and steps."""
    done = run("ablation.ipynb", {"SEEDS": 6, "STEPS": 24, "WORKDIR": str(tmp_path / "grid")}, tmp_path)
    assert '<div class="heed">' in done.stdout
    *_, seeds, page = done.stdout.splitlines()
    assert "<svg" in done.stdout
    assert len(re.findall(r"[+-]\d\.\d{4}", seeds)) == 6
    assert Path(page).is_file()
    assert len([*tmp_path.glob("grid/store/*/record.json")]) == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()][:2] == ["gates", "verdict, look 1"]
    assert [one.name for one in tmp_path.iterdir()] == ["grid"]


@pytest.mark.rest
def test_the_explanation_finds_what_the_label_stands_on(tmp_path: Path) -> None:
    done = run("explain.ipynb", {"WORKDIR": str(tmp_path / "run")}, tmp_path)
    lines = done.stdout.splitlines()
    (told,) = (line for line in lines if " is " in line and " by [" in line)
    letters = re.findall(r"'(\w)'", told)
    assert [line.rpartition(" ")[2] for line in lines if ": it says " in line] == [
        "".join(sorted(letters)),
        *["none"] * 3,
    ]
    assert any(line.startswith("<iframe sandbox='allow-scripts'") for line in lines)
    (row,) = (line.split() for line in lines if line.startswith("integrated_gradients "))
    assert row[1:3] == ["faithful", "here"]
    assert row[3:6] == letters
    assert (tmp_path / "run/explained.html").stat().st_size < 1e6
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
