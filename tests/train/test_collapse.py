"""The signs of collapse, each made by hand in a model that is sound but for it."""

from typing import Any

import jax
import numpy as np
import pytest

from tests.small import random_batch, small_experiment
from train.collapse import Watch
from train.sharding import placed
from train.state import Params

LATE = 10**6


def scaled(params: Params, part: str, factor: float) -> Params:
    """The parameters with the leaves of a part of the model times a factor, of a population those of its last seed."""

    def leaf(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        if part not in jax.tree_util.keystr(path):
            return x
        return x.at[-1].multiply(factor) if path[0].key != "stack" and x.ndim == 3 else x * factor

    return jax.tree_util.tree_map_with_path(leaf, params)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.norm": "layer", "model.norm_place": "post", "model.dtype": "bfloat16"},
        pytest.param({"mesh.fsdp": 4}, marks=pytest.mark.rest),
        pytest.param({"train.seeds": 2}, marks=pytest.mark.rest),
        pytest.param({"model.norm_place": "sandwich", "model.embedding": "normed"}, marks=pytest.mark.rest),
    ],
    ids=str,
)
def test_each_sign_is_told_with_its_figure(changes: dict[str, Any]) -> None:
    experiment = small_experiment(**{"model.num_layers": 1, **changes})
    seeds = experiment.config.train.seeds
    losses = np.full(seeds, 3.0) if seeds > 1 else 3.0
    who = "seed 1: " if seeds > 1 else ""
    with placed(experiment.mesh, experiment.rules):
        watch, params = Watch(experiment, random_batch(0, 24, 16)), experiment.make_state().params
        assert watch.signs(LATE, params, losses) == []
        assert watch.collapsed_at == -1
        huge = watch.signs(LATE, scaled(params, "embed", 1e19), losses)
        assert watch.collapsed_at == LATE
        assert len(huge) == 1
        assert huge[0].startswith(f"{who}the residual stream reaches ")
        assert "e+1" in huge[0]
        bad = losses + 1.1 * (np.arange(seeds) == 1) if seeds > 1 else 4.1
        assert watch.signs(LATE, params, bad) == [
            f"{who}the validation loss 4.1000 is not below 4.0254, that of who knows nothing"
        ]
        early = experiment.config.optimizer.warmup_steps + 9
        assert watch.signs(early, params, bad) == []
        if not changes:
            flat = watch.signs(LATE, scaled(scaled(params, "embed", 0.0), "output", 0.0), losses)
            assert flat == ["the input of a norm varies by 0.0e+00 of its size alone"]
