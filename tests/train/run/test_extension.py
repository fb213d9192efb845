"""More steps: what is said of the learning rate is said of the step that is restored."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from launch.configs import load
from train.run import extension
from train.run.checkpoints import Checkpoints


def config(steps: int, schedule: str) -> ConfigDict:
    changes = {
        "optimizer.schedule": schedule,
        "optimizer.decay_fraction": 0.25,
        "optimizer.warmup_steps": 2,
        "optimizer.learning_rate": 0.001,
    }
    return load("gpt:quickstart", **{"train.steps": steps, **changes})


def spoil(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("schedule", "spoiled", "step", "told"),
    [
        ("wsd", [], 9, "goes on at 0.001 from step 9 (wsd, train.steps=12 -> 20)"),
        ("wsd", ["12/run/metadata"], 9, "goes on at 0.001 from step 9 (wsd, train.steps=12 -> 20)"),
        ("wsd", ["12/extra/metadata"], 9, "goes on at 0.001 from step 9 (wsd, train.steps=12 -> 20)"),
        ("wsd", ["9/extra/metadata"], 12, " at step 12, for wsd depends on the total (train.steps=12 -> 20)"),
        ("cosine", [], 12, " at step 12, for cosine depends on the total (train.steps=12 -> 20)"),
        ("cosine", ["12/run/metadata"], 12, " at step 12, for cosine depends on the total (train.steps=12 -> 20)"),
        ("cosine", ["12/state/_sharding"], 9, " at step 9, for cosine depends on the total (train.steps=12 -> 20)"),
    ],
)
def test_what_is_said_is_of_the_step_that_is_restored(
    schedule: str, spoiled: list[str], step: int, told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"x": jnp.arange(3)}
    like = {"x": jax.ShapeDtypeStruct((3,), jnp.int32, sharding=state["x"].sharding)}
    with Checkpoints(tmp_path / "checkpoints", 5) as before:
        for saved in (9, 12):
            before.save(saved, state, extension.extra(saved, config(12, schedule)))
    for name in spoiled:
        spoil(tmp_path / "checkpoints" / name)
    with Checkpoints(tmp_path / "checkpoints", 5) as now, caplog.at_level(logging.WARNING, "heed"):
        found = extension.restore(now, like, tmp_path, config(20, schedule))
    assert found is not None
    assert found[1:] == ({"batches": step, "steps": 12}, step)
    (line,) = [record.getMessage() for record in caplog.records if "--extend" in record.getMessage()]
    assert told in line
