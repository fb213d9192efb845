"""What the README says holds; its `make` commands, and those on `runs/quickstart`, are run as written by .ci/run."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch import ablate, cli
from launch.configs import load
from launch.train import check
from tests.conftest import ROOT
from tests.launch.ablation.test_tables import table
from tests.tiny import call

README = Path("README.md").read_text()
BLOCKS = re.findall(r"(?:^    .*\n)+", README, re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if "-m launch." in line]


def words(command: str) -> list[str]:
    """The words after `python -m launch.<verb>`."""
    return shlex.split(command.partition(" -m launch.")[2])[1:]


@pytest.mark.parametrize("command", [command for command in COMMANDS if "launch.train" in command])
def test_training_commands_build_what_they_name(command: str) -> None:
    parser = cli.make_parser("train", "")
    flags, overrides = cli.parse(parser, words(command))
    config = load(flags.config, **overrides)
    assert check(config).mesh.size == 8
    assert flags.workdir.startswith("runs/")


@pytest.mark.parametrize(
    "file",
    sorted(
        {
            *Path().glob("*/*.md"),
            *Path("model").rglob("*.md"),
            *Path("configs").glob("*.py"),
            *Path("launch").glob("*.py"),
            Path("README.md"),
        }
    ),
    ids=str,
)
def test_commands_are_written_as_they_run_where_nothing_is_activated(file: Path) -> None:
    assert re.findall(r"(?<!\.venv/bin/)python -m .*", file.read_text()) == []


def test_a_table_is_judged_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = [command for command in COMMANDS if "launch.ablate --table" in command]
    (tmp_path / "runs").mkdir()
    table(tmp_path / "runs/mine.csv", wider=-0.05, deeper=0.0)
    monkeypatch.chdir(tmp_path)
    done = call(ablate.main, words(command))
    assert (done.status, done.err) == (0, "")
    said = dict(re.findall(r"^  (\w+): ([A-Z].*)$", done.out, re.MULTILINE))
    assert said == {"wider": "BETTER", "deeper": "EQUIVALENT WITHIN D"}
    assert {*said.values()} <= {*re.findall(r"[A-Z]{4,}(?: [A-Z]+)*", " ".join(README.split()))}
    assert (tmp_path / "runs/mine.verdict/verdict.html").is_file()


def test_every_command_there_is_exists() -> None:
    verbs = {command.partition("-m launch.")[2].split()[0] for command in COMMANDS}
    assert {"train", "evaluate", "generate", "bench"} <= verbs
    assert all(Path(f"launch/{verb}.py").is_file() for verb in verbs)
    targets = re.findall(r"(?:^    |`)make ([\w-]+)", README, re.MULTILINE)
    makefile = Path("Makefile").read_text()
    assert targets == ["quickstart", "test", "test-all"]
    assert all(re.search(rf"^(.* )?{target}( .*)?:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.rest
def test_the_notebook_runs_as_written(tmp_path: Path) -> None:
    """From another folder, on the devices that this machine has, and says nothing but what it does."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code += 'print("logged", [(line["step"], line["train/loss"]) for line in history if "train/loss" in line])\n'
    env = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    _, (step, loss) = ast.literal_eval(done.stdout.splitlines()[-1].removeprefix("logged "))
    assert step == 10
    assert loss < 6.9  # nats: less than of 1024 tokens at random
    others = r"compiled programs are kept in |learns from \d+ tokens, |attention by blockwise, |"
    others += r"step 10?/10  (loss|val/loss) "
    assert [line for line in done.stderr.splitlines() if not re.match(others, line)] == []
    assert not list(tmp_path.iterdir())


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_one_step_is_understood_from_900_lines_of_code() -> None:
    """Of the files that the README names; blank lines, comments and docstrings are not counted."""
    (named,) = re.findall(r"To\s+understand\s+one training step, read (.*?):", README, re.DOTALL)
    files = re.findall(r"`([\w/]+\.py)`", named)
    assert {"train/step.py", "model/families/gpt.py", "model/attention/cores/dense.py"} <= {*files}
    counted = {file: lines_of_code(Path(file).read_text()) for file in files}
    assert sum(counted.values()) <= 900, counted


def lines_of_code(source: str) -> int:
    numbers = {n for n, text in enumerate(source.splitlines(), 1) if text.strip() and not text.lstrip().startswith("#")}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            numbers -= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    return len(numbers)
