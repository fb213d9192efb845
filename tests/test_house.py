"""The rules of the house that a reader could break without noticing: imports, READMEs, packages and locks."""

import ast
import importlib
import re
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest
from packaging.requirements import Requirement

from model.families.table import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
# launch -> eval -> train -> model, never back; configs stand alone and are loaded by path.
MAY_IMPORT = {
    "configs": {"configs"},
    "model": {"model"},
    "train": {"train", "model"},
    "eval": {"eval", "train", "model"},
    "launch": {"launch", "eval", "train", "model", "configs"},
}
FILES = sorted(path.relative_to(ROOT) for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))
ROOMS = sorted({str(path.parent) for path in FILES} | {"tests", "notebooks"})
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(source: str) -> set[str]:
    """The modules that a file imports by their full name, wherever in the file it does so."""
    nodes = list(ast.walk(ast.parse(source)))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return plain | {node.module for node in froms if node.module}


def broken_rules(room: str, source: str) -> list[str]:
    """What a file of a room imports that it may not."""
    tops = {name.split(".")[0] for name in imports(source)}
    broken = [f"{room} -> {top}" for top in sorted(tops & MAY_IMPORT.keys() - MAY_IMPORT[room])]
    if room == "configs":
        broken += [f"configs -> {top}" for top in sorted(tops - MAY_IMPORT.keys() - {"ml_collections"})]
    plain = [alias for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names]
    # `import eval`, or eval.x, or anything called eval, hides the builtin.
    return broken + ["import eval" for alias in plain if (alias.asname or alias.name.split(".")[0]) == "eval"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_follow_the_arrows(path: Path) -> None:
    assert broken_rules(path.parts[0], (ROOT / path).read_text()) == []


@pytest.mark.parametrize(
    ("room", "source", "broken"),
    [
        ("model", "def f():\n    from train.loop import run", ["model -> train"]),
        ("train", "import eval.likelihood", ["train -> eval", "import eval"]),
        ("launch", "from eval import likelihood\nimport train.loop", []),
        ("configs", "from ml_collections import ConfigDict\nfrom configs import base\nimport jax", ["configs -> jax"]),
    ],
)
def test_the_arrows_are_noticed(room: str, source: str, broken: list[str]) -> None:
    assert broken_rules(room, source) == broken


def names(source: str) -> set[str]:
    """The names that a file reads or imports."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = [alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]
    return {*imported, *(node.id for node in nodes if isinstance(node, ast.Name))}


def test_only_the_table_knows_families_by_name() -> None:
    """What trains, evaluates and launches asks the table for the config, and the config for its model."""
    kinds = [kind for config in FAMILIES.values() for kind in (config, get_type_hints(config.build)["return"])]
    known = {kind.__name__ for kind in kinds}
    assert {"GPT", "GPTConfig"} <= known
    assert names("from model import GPT\nx: GPTConfig") & known == {"GPT", "GPTConfig"}
    for path in FILES:
        assert path.parts[0] == "model" or not names((ROOT / path).read_text()) & known, path


def refusals(source: str) -> list[str]:
    """What a file says in its UserErrors, where that is written there; `{}` for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("UserError", "Diverged"):
            (given,) = node.args
            pieces = given.values if isinstance(given, ast.JoinedStr) else [given]
            texts = [piece.value if isinstance(piece, ast.Constant) else "{}" for piece in pieces]
            if texts != ["{}"]:
                found.append("".join(map(str, texts)))
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_refusal_is_a_sentence_that_names_flags_as_they_are_typed(path: Path) -> None:
    for text in refusals((ROOT / path).read_text()):
        assert text.endswith("."), text
        assert not re.search(r"(?<!--config\.)\b(data|model|train|optimizer|mesh)\.[a-z_]+=", text), text


def test_a_refusal_that_is_none_is_noticed() -> None:
    assert refusals('raise UserError(f"data.path={x!r}: " "no")\nUserError(text)') == ["data.path={}: no"]


def test_json_is_written_in_one_place() -> None:
    """Where NaN and Infinity, which are no JSON, become null."""
    writers = [path for path in FILES if re.search(r"json\.dumps?\(", (ROOT / path).read_text())]
    assert list(map(str, writers)) == ["train/run/files/json_files.py"]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_module_imports(path: Path) -> None:
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_short_readme(room: str) -> None:
    """At most 40 lines; where cores live, which holds their table and shows how to add one, 40 of prose."""
    text = (ROOT / room / "README.md").read_text()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL).splitlines()
    lines = [line for line in prose if line and not line.startswith(("|", "    "))]
    assert len(lines if room == "model/attention/cores" else text.splitlines()) <= 40


def test_every_package_is_listed() -> None:
    found = {".".join(path.parent.parts) for path in FILES}
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_dependency_has_both_bounds() -> None:
    for line in PYPROJECT["project"]["dependencies"]:
        assert {">=", "<"} <= {bound.operator for bound in Requirement(line).specifier}, line


def test_the_lock_follows_the_bounds() -> None:
    """When this fails after a change of pyproject.toml: `make lock`."""
    lock = (ROOT / "requirements.txt").read_text()
    pins = [Requirement(line.removesuffix(" \\")) for line in re.findall(r"^\w.*==.*", lock, re.MULTILINE)]
    extras = PYPROJECT["project"]["optional-dependencies"]
    for wanted in map(Requirement, PYPROJECT["project"]["dependencies"] + extras["dev"]):
        name = re.sub("[-_.]+", "-", wanted.name).lower()
        versions = [next(iter(pin.specifier)).version for pin in pins if pin.name == name]
        assert versions, f"{name} is not in the lock"
        assert all(wanted.specifier.contains(version) for version in versions), (str(wanted), versions)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_the_lock_names_no_place(name: str) -> None:
    """No index, host or folder: where packages come from is the business of whoever installs them."""
    lines = (ROOT / name).read_text().splitlines()
    assert [line for line in lines if "://" in line or re.match(r"\s*(-|/)(?!-hash=)", line)] == []
