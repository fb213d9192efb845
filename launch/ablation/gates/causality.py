"""Whether an arm's real model sees what it is to predict: a proof by gradients, and no statistic."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.families.family import Family
from train.devices.placing import batch_ways
from train.devices.together import compiled_together
from train.experiment import Experiment
from train.sharding import placed
from train.tasks.base import Inputs

_CUTS = 64  # places at which a sequence is cut, at most


def leak(experiment: Experiment) -> int | None:
    """The first cut of the sequence, before place t, such that an output before it has a gradient from an input at t or
    after it, exactly: anything but zero is a leak. None where there is none.

    The model has the arm's sizes, core, mask and edits, and parameters of which none is zero, so that nothing that
    starts as the identity hides a path. Each input is a token of its own; a source, where there is one, is of others.

    Raises:
        RuntimeError: outputs do not depend on the inputs before them either, so nothing is proved.
    """
    length = experiment.model_config.max_length
    cuts = np.unique(np.linspace(1, length - 1, min(_CUTS, length - 1)).astype(np.int32))
    # A token for each place and one for sources; nothing else of a model depends on the size of its vocabulary.
    most = max(length + 1, experiment.model_config.vocab_size)
    config = dataclasses.replace(experiment.model_config, vocab_size=most)
    with placed(experiment.mesh, experiment.rules):
        rows = batch_ways()
        found = compiled_together(jax.jit(functools.partial(_norms, config, experiment.task.inputs, rows, cuts)))(
            jax.random.key(0)
        )
    ahead, behind = (np.asarray(x) != 0 for x in jax.device_get(found))
    if not behind.all():
        raise RuntimeError("no output depends on an input: the gradients prove nothing")
    return int(cuts[ahead.argmax()]) if ahead.any() else None


def _norms(config: Family, inputs: Inputs, rows: int, cuts: np.ndarray, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each cut, the largest gradient of outputs before it from inputs after it, and from those before it."""
    graphdef, params = nnx.split(config.build(nnx.Rngs(params=key)), nnx.Param)
    leaves, tree = jax.tree.flatten(nnx.to_pure_dict(params))
    keys = jax.random.split(jax.random.fold_in(key, 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(one, x.shape) for x, one in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    T = config.max_length
    tokens_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32)[None], (rows, T))
    ids_BT = jnp.ones_like(tokens_BT)
    batch = {"tokens": tokens_BT, "segment_ids": ids_BT, "positions": tokens_BT, "sources": T * ids_BT}
    batch |= {"source_segment_ids": ids_BT, "source_positions": tokens_BT}

    def before(table: jax.Array, cut: jax.Array) -> jax.Array:
        embed = {**params["embed"], "embedding": table}
        model = nnx.merge(graphdef, {**params, "embed": embed})
        x_BTD = model.vectors(**inputs(batch, None))
        return jnp.sum(jnp.where((jnp.arange(T) < cut)[None, :, None], jnp.sin(x_BTD), 0))

    def one(cut: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen_T = jnp.max(jnp.abs(jax.grad(before)(params["embed"]["embedding"], cut)[:T]), axis=1)
        after_T = jnp.arange(T) >= cut
        return jnp.max(jnp.where(after_T, seen_T, 0)), jnp.max(jnp.where(after_T, 0, seen_T))

    return jax.lax.map(one, jnp.asarray(cuts))
