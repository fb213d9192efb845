"""What holds of every task, with a family that can learn it: the same on every mesh, and after a stop, bit for bit."""

from pathlib import Path

import jax
import numpy as np
import pytest

from launch.configs import load
from launch.train import fit
from model.families.table import FAMILIES
from tests.train.tasks.every import CASES, keys_of

MESHES: list[dict[str, int]] = [
    {"mesh.fsdp": 8},
    {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2},
    {"mesh.replica": 2, "mesh.fsdp": 4},
]
pytestmark = pytest.mark.rest


@pytest.mark.parametrize(("task", "family"), CASES)
def test_losses_and_scores_do_not_depend_on_the_mesh(task: str, family: str, tmp_path: Path) -> None:
    keys = keys_of(task, family, tmp_path)

    def history(mesh: dict[str, int]) -> list[dict[str, float]]:
        found = fit(load("base", **keys | mesh))[1]
        return [{name: x for name, x in one.items() if name in ("train/loss", "val/loss")} for one in found]

    one = history({"mesh.fsdp": 1})
    assert sum("val/loss" in line for line in one) == 2
    for mesh in MESHES:
        if FAMILIES[family].IN_TURN:  # which takes no sequence apart
            mesh = {axis: size for axis, size in mesh.items() if axis != "mesh.context"}
        for line, wanted in zip(history(mesh), one, strict=True):
            assert line == pytest.approx(wanted, rel=1e-5), mesh


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_run_that_goes_on_is_as_one_that_was_not_stopped(task: str, family: str, tmp_path: Path) -> None:
    keys = keys_of(task, family, tmp_path)
    whole = fit(load("base", **keys), str(tmp_path / "whole"))[0]
    fit(load("base", **keys | {"train.steps": 2}), str(tmp_path / "parts"))
    parts = fit(load("base", **keys), str(tmp_path / "parts"), extend=True)[0]
    learned = [jax.tree.leaves((one.params, one.opt_state, one.carry)) for one in (parts, whole)]
    for one, other in zip(*learned, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_population_learns_as_its_seeds(task: str, family: str, tmp_path: Path) -> None:
    keys = keys_of(task, family, tmp_path)
    both = fit(load("base", **keys | {"train.seeds": 2}))[1][-1]
    for seed in range(2):
        own = fit(load("base", **keys | {"train.seed": seed, "data.seed": seed}))[1][-1]
        assert both["val/loss"][seed] == pytest.approx(own["val/loss"], rel=1e-5)
