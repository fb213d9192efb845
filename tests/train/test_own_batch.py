"""A batch of one's own, from a notebook: ids outside of the vocabulary are refused, or told by what is not finite."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from model.errors import UserError
from tests.small import VOCAB, random_batch, small_experiment
from train.devices.placing import on_host
from train.loop import check_finite
from train.sharding import placed


def spoiled(name: str, value: int) -> dict[str, np.ndarray]:
    batch = random_batch(0, 24, 16)
    batch[name][5, 3], batch["weights"][5] = value, 1.0
    return batch


@pytest.mark.parametrize("changes", [{}, {"train.seeds": 2}, {"mesh.fsdp": 2, "mesh.tensor": 2}], ids=str)
def test_ids_outside_of_the_vocabulary_do_not_pass_for_others(changes: dict[str, Any]) -> None:
    """On one device, for a population of seeds, and on a mesh that splits the vocabulary."""
    experiment = small_experiment(**{"model.num_layers": 1, **changes})
    with placed(experiment.mesh, experiment.rules):
        params = experiment.make_state().params
        sums = lambda batch: experiment.sums(params, batch)[0]  # noqa: E731
        assert np.isfinite(sums(random_batch(0, 24, 16))).all()
        for name in ("tokens", "targets"):
            for value in (VOCAB, -1, -100):
                batch = spoiled(name, value)
                with pytest.raises(
                    UserError, match=rf"^{name}: {value} at \(5, 3\) .* outside of the vocabulary of 56"
                ):
                    experiment.place(batch)
                with pytest.raises(UserError, match="keep ids of your own batches within the vocabulary"):
                    check_finite(1, {"loss": np.asarray(sums(batch))})
                assert np.isnan(sums(batch)).all()


MESHES: list[dict[str, Any]] = [
    {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2, "model.core": "ring"},
    {"mesh.fsdp": 2, "mesh.context": 4, "model.core": "ulysses"},
    {"mesh.fsdp": 4, "mesh.tensor": 2, "train.accumulate": 2},
    {"mesh.replica": 2, "mesh.fsdp": 4, "model.core": "dense"},
]


def step(batch: dict[str, np.ndarray], **changes: Any) -> Any:
    """Parameters and metrics after one step."""
    experiment = small_experiment(**changes)
    with placed(experiment.mesh, experiment.rules):
        state, metrics = experiment.step(experiment.make_state(), experiment.place(batch))
    return on_host(state.params), on_host(metrics)


@functools.cache
def on_one_device() -> Any:
    """A batch with padding, and what a step makes of it, also if all of it were tokens."""
    batch = random_batch(0, 24, 16)
    padded = batch | {"valid": np.random.default_rng(5).random((24, 16)) < 0.7}
    return padded, step(padded), step(batch)


@pytest.mark.rest
@pytest.mark.parametrize("changes", MESHES, ids=str)
def test_padding_is_padding_on_every_mesh(changes: dict[str, Any]) -> None:
    """Whatever ids are there; one device is the reference."""
    padded, (params, metrics), (_, of_all) = on_one_device()
    junk = {name: np.where(padded["valid"], padded[name], -100) for name in ("tokens", "targets")}
    other_params, other_metrics = step(padded | junk, **changes)
    for name, value in metrics.items():
        np.testing.assert_allclose(other_metrics[name], value, rtol=1e-4, err_msg=name)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(other_params), strict=True):
        np.testing.assert_allclose(other, one, atol=3e-4)
    assert abs(of_all["loss"] - metrics["loss"]) > 1e-3
