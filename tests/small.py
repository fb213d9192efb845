"""What several tests train: a GPT of distinct sizes, random batches for it, and the batches' shapes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from launch.configs import load
from train.data import Windows
from train.experiment import Experiment, make_experiment
from train.sharding import placed
from train.tasks.base import Batch

VOCAB = 56
# Each axis is a different multiple of 8, so that every mesh of up to eight devices divides it.
SIZES = {
    "model.num_layers": 2,
    "model.width": 48,
    "model.num_heads": 8,
    "model.mlp_width": 40,
    "data.length": 16,
    "data.batch_size": 24,
    "data.tokenizer": "bytes",  # whose vocabulary no key sets
    "optimizer.warmup_steps": 0,
    "mesh.fsdp": 1,
}
# Most of a test is compiling: code that is not optimised is there three times sooner, and fast enough for 20 steps.
QUICK = {"xla_backend_optimization_level": 0}


def small_config(**changes: Any) -> ConfigDict:
    """The base config at these sizes, without warm-up and on one device, with changes ({'train.seed': 3})."""
    return load("base", **(SIZES | changes))


def small_experiment(**changes: Any) -> Experiment:
    """The experiment of `small_config`."""
    return make_experiment(small_config(**changes), VOCAB)


def random_batch(number: int, rows: int, length: int, vocab: int = VOCAB) -> dict[str, np.ndarray]:
    """Batch `number`: two packed segments per row; the share of the targets that count differs from row to row."""
    rng = np.random.default_rng(number)
    second_BT = np.arange(length)[None] >= rng.integers(1, length, (rows, 1))
    starts_BT = np.where(second_BT, second_BT.argmax(axis=1, keepdims=True), 0)
    return {
        "tokens": rng.integers(0, vocab, (rows, length), np.int32),
        "targets": rng.integers(0, vocab, (rows, length), np.int32),
        "segment_ids": 1 + second_BT.astype(np.int32),
        "positions": (np.arange(length)[None] - starts_BT).astype(np.int32),
        "weights": (rng.random((rows, length)) < rng.random((rows, 1))).astype(np.float32),
    }


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes, types and shardings of the experiment's training batches."""
    return {
        name: jax.ShapeDtypeStruct(experiment.shape, x.dtype, sharding=experiment.sharding)
        for name, x in random_batch(0, 1, 2).items()
    }


def compiled_step(experiment: Experiment) -> jax.stages.Compiled:
    """The step, compiled for the experiment's mesh."""
    with placed(experiment.mesh, experiment.rules):
        lowered = experiment.step.lower(experiment.abstract, abstract_batch(experiment))
    return lowered.compile(QUICK)


def run(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, compiled like `compiled_step`."""
    return jax.jit(function).lower(*args).compile(QUICK)(*args)


def windows(experiment: Experiment) -> Windows:
    """Few enough windows of random tokens that every other batch begins an epoch."""
    length = experiment.config.data.length
    stream = np.random.default_rng(0).integers(0, VOCAB, 31 * length - 5)
    return Windows(stream, end=0, length=length, num_bytes=len(stream))


def losses(experiment: Experiment, step: Any, batches: Iterable[Batch]) -> np.ndarray:
    """The losses of as many steps as there are batches: (steps,), or (steps, N) with seeds."""
    values = []
    with placed(experiment.mesh, experiment.rules):
        state = experiment.make_state()
        for batch in batches:
            state, metrics = step(state, batch)
            values.append(metrics["loss"])
        return np.stack(jax.device_get(values))


def random_batches(experiment: Experiment, steps: int) -> Iterator[Batch]:
    """`random_batch` 0, 1, ... on the experiment's mesh, of which each process loads its part; others for each seed
    that has its own.
    """
    *lead, rows, length = experiment.shape
    for number in range(steps):
        parts = [random_batch(number + 1000 * seed, rows, length) for seed in range(*lead or [1])]
        whole = {name: np.stack([part[name] for part in parts]).reshape(experiment.shape) for name in parts[0]}
        yield experiment.place({name: x[np.ix_(*experiment.local)] for name, x in whole.items()})
