"""The step that is written per device against the one that the compiler splits, on the same devices."""

import functools
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from launch.configs import load
from model.errors import UserError
from tests.small import compiled_step, random_batches, small_experiment
from tests.test_house import imports
from tests.tiers import tiered
from tests.train.tasks.every import FIRST, keys_of
from tests.train.test_sharding import COLLECTIVE
from train.experiment import Experiment, make_experiment
from train.sharding import placed
from train.tasks.base import Batch
from train.tasks.table import make_task

STEPS = 20
TWO_BY_FOUR = {"mesh.replica": 2, "mesh.fsdp": 4, "mesh.rules": "replicated"}
COPIES = {"mesh.replica": 8}  # on which rules for fsdp leave parameters whole
EXPLICIT = {"train.step": "explicit"}
OTHERS = ("streamed_text", "translation", "classification")
FIRST_CASE: dict[str, Any] = {
    **TWO_BY_FOUR,
    "mesh.fsdp": 2,
    "model.num_layers": 1,
    "model.dropout": 0.1,
    "train.accumulate": 3,
}
CASES: list[dict[str, Any]] = [
    FIRST_CASE,
    {**COPIES, "model.dropout": 0.1},
    {**COPIES, "model.core": "dense", "model.remat": "full", "optimizer.name": "muon", "train.accumulate": 3},
    {**TWO_BY_FOUR, "model.dtype": "bfloat16", "model.position": "learned", "model.bias": "t5"},
]


@functools.cache
def compiled(keys: tuple[tuple[str, Any], ...]) -> tuple[Experiment, jax.stages.Compiled]:
    experiment = small_experiment(**dict(keys))
    return experiment, compiled_step(experiment)


def trained(experiment: Experiment, step: Any, batches: Iterable[Batch]) -> tuple[dict[str, np.ndarray], Any]:
    """(each metric of all steps, the parameters after the last)."""
    with placed(experiment.mesh, experiment.rules):
        state, found = experiment.make_state(), []
        for batch in batches:
            state, metrics = step(state, batch)
            found.append(metrics)
        found, params = jax.device_get((found, state.params))
    return {name: np.stack([metrics[name] for metrics in found]) for name in found[0]}, params


def assert_alike(one: tuple[dict[str, np.ndarray], Any], other: tuple[dict[str, np.ndarray], Any], rtol: float) -> None:
    """Of all metrics of each step, and of the parameters after the last."""
    (found, params), (wanted, others) = one, other
    assert found.keys() == wanted.keys()
    assert np.ptp(wanted["loss"]) > 1e-2
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=rtol)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=10 * rtol, err_msg=name)
    # AdamW's first direction is a gradient's sign, however small that is.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=200 * rtol), params, others)


@pytest.mark.parametrize("keys", tiered(((one,) for one in CASES), lambda keys: keys is FIRST_CASE), ids=str)
def test_both_steps_learn_the_same(keys: dict[str, Any]) -> None:
    """With micro-batches and dropout, which are of rows, wherever these lie."""
    runs = [
        trained(experiment, step, random_batches(experiment, STEPS))
        for experiment, step in (compiled((*one.items(),)) for one in (keys | EXPLICIT, keys))
    ]
    assert_alike(*runs, rtol=2e-2 if "model.dtype" in keys else 1e-5)


@pytest.mark.rest
@pytest.mark.parametrize(("task", "family"), [one for one in FIRST if one[0] in OTHERS], ids=str)
def test_both_steps_learn_the_same_task(task: str, family: str, tmp_path: Path) -> None:
    """Rows that go on from those before, texts and their translations, labels of texts."""
    keys = keys_of(task, family, tmp_path) | TWO_BY_FOUR | {"train.accumulate": 2, "mesh.fsdp": 2}
    runs = []
    for kind in ("explicit", "partitioned"):
        config = load("base", **keys, **{"train.step": kind})
        data = make_task(config).open(config)
        experiment = make_experiment(config).with_data(data)
        batches = experiment.batches(experiment.task.rows(data), 0)
        runs.append(trained(experiment, experiment.step, itertools.islice(batches, 4)))
    assert_alike(*runs, rtol=1e-5)


def test_devices_send_each_other_one_sum_a_step() -> None:
    """Of all micro-batches together, in float32, and each step is a way of its own to it."""
    _, step = compiled((*(FIRST_CASE | EXPLICIT).items(),))
    (sent,) = re.findall(rf"^.* {COLLECTIVE}(?:-start)?\(.*$", step.as_text(), re.MULTILINE)
    assert "all-reduce" in sent
    assert set(re.findall(r"\b([a-z]+\d+)\[[\d,]*\]", sent.partition(" = ")[2].partition("all-reduce")[0])) == {"f32"}
    paths = {name: imports(Path(f"train/{name}.py").read_text()) for name in ("step", "explicit")}
    assert not paths["step"] & {"train.explicit", "train.steps"}
    assert not paths["explicit"] & {"train.step", "train.steps"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"mesh.tensor": 2},
            "--config.train.step=explicit splits nothing but rows; set --config.mesh.tensor=2 to 1, or "
            "--config.train.step=partitioned.",
        ),
        (
            {"mesh.context": 4},
            "--config.train.step=explicit splits nothing but rows; set --config.mesh.context=4 to 1, or "
            "--config.train.step=partitioned.",
        ),
        (
            {"mesh.fsdp": 2},
            "--config.train.step=explicit splits nothing but rows, and the mesh splits parameters; set "
            "--config.mesh.rules=replicated, with no --config.mesh.place, or --config.train.step=partitioned.",
        ),
        (
            {"train.seeds": 2},
            "--config.train.step=explicit splits nothing but rows, and --config.train.seeds=2 are an axis more; set it "
            "to 1, or --config.train.step=partitioned.",
        ),
        (
            {**TWO_BY_FOUR, "mesh.place": "norm.*=norm:fsdp"},
            "--config.train.step=explicit splits nothing but rows, and the mesh splits parameters; set "
            "--config.mesh.rules=replicated, with no --config.mesh.place, or --config.train.step=partitioned.",
        ),
        (
            {"train.step": "pmap"},
            "--config.train.step='pmap' is not one of: partitioned, partitioned_float32, explicit.",
        ),
        ({"mesh.rules": "zero"}, "--config.mesh.rules='zero' is not one of: fsdp, optimizer, replicated."),
    ],
)
def test_what_it_does_not_serve_is_refused_with_the_fix(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        small_experiment(**(EXPLICIT | changes))
