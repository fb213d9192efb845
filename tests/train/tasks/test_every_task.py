"""What holds of every task, with a family that can learn it: the same on every mesh, and after a stop, bit for bit."""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch.configs import load
from launch.train import fit
from model.families.table import FAMILIES
from tests.train.tasks.every import CASES, keys_of
from train.state import State

# All axes at once for every task; the others for one task of each family, as what they split is the same for all.
# What splits rows, heads and the sequence, for every task; copies, for one of each family.
EVERY, OTHER = {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2}, {"mesh.replica": 2, "mesh.fsdp": 4}
ONE = list({family: (task, family) for task, family in reversed(CASES)}.values())
pytestmark = pytest.mark.rest


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
    _whole.cache_clear()


@functools.cache
def _whole(task: str, family: str, folder: Path) -> tuple[dict[str, Any], State, list[dict[str, float]]]:
    """The keys of a run on one device that nothing stops, and what it learned: what all others are compared with."""
    own = folder / f"{task}-{family}"
    own.mkdir()
    keys = keys_of(task, family, own) | {"mesh.fsdp": 1}
    return keys, *fit(load("base", **keys))


@pytest.mark.parametrize(("task", "family"), CASES)
def test_losses_and_scores_do_not_depend_on_the_mesh(task: str, family: str, folder: Path) -> None:
    keys, _, history = _whole(task, family, folder)
    wanted = _losses(history)
    assert sum("val/loss" in line for line in wanted) == 2
    for mesh in (EVERY, OTHER) if (task, family) in ONE else (EVERY,):
        if FAMILIES[family].IN_TURN:  # which takes no sequence apart
            mesh = {axis: size for axis, size in mesh.items() if axis != "mesh.context"}
        for line, want in zip(_losses(fit(load("base", **keys | mesh))[1]), wanted, strict=True):
            assert line == pytest.approx(want, rel=1e-5), mesh


def _losses(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: x for name, x in one.items() if name in ("train/loss", "val/loss")} for one in history]


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_run_that_goes_on_is_as_one_that_was_not_stopped(
    task: str, family: str, folder: Path, tmp_path: Path
) -> None:
    keys, whole, _ = _whole(task, family, folder)
    fit(load("base", **keys | {"train.steps": 2}), str(tmp_path / "parts"))
    parts = fit(load("base", **keys), str(tmp_path / "parts"), extend=True)[0]
    learned = [jax.tree.leaves((one.params, one.opt_state, one.carry)) for one in (parts, whole)]
    for one, other in zip(*learned, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("task", "family"), ONE)
def test_a_population_learns_as_its_seeds(task: str, family: str, folder: Path) -> None:
    keys, _, history = _whole(task, family, folder)
    both = fit(load("base", **keys | {"train.seeds": 2}))[1][-1]
    second = fit(load("base", **keys | {"train.seed": 1, "data.seed": 1}))[1][-1]
    for seed, own in enumerate((history[-1], second)):
        assert both["val/loss"][seed] == pytest.approx(own["val/loss"], rel=1e-5)
