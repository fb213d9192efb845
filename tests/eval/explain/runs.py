"""Runs that nobody trained: a tiny model with random numbers, and what else is read of a run's folder."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from flax import nnx

from eval.runs import Run
from launch.configs import load
from train.data.tokenizers import ByteTokenizer
from train.experiment import make_model_config
from train.tasks.table import make_task

LENGTH = 17
SIZES = {"model.num_layers": 1, "model.width": 8, "model.num_heads": 2, "data.length": LENGTH}


def made(folder: Path, family: str, task: str, *names: str, **keys: Any) -> Run:
    """One of bytes, whose classes or tags have these names."""
    config = load("base", **{"family": family, "task": task} | SIZES | keys)
    own = make_task(config)
    tokenizer = ByteTokenizer(own.marks(LENGTH))
    model = make_model_config(config, tokenizer.vocab_size, len(names)).build(nnx.Rngs(0))
    rng = np.random.default_rng(0)
    nnx.update(model, jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape).astype(x.dtype), nnx.state(model)))
    (folder / "passport.json").write_text(json.dumps({"data": {"fingerprint": "of nothing", "names": names}}))
    experiment: Any = SimpleNamespace(task=own)
    return Run(folder, config, experiment, model, tokenizer, 3)


def logits(run: Run, inputs: dict[str, Any]) -> np.ndarray:
    """What the run's model says."""
    return np.asarray(_said(*nnx.split(run.model), inputs), np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _said(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any]) -> jax.Array:
    return nnx.merge(graphdef, params)(**inputs)


def shares(logits: np.ndarray) -> np.ndarray:
    """The probabilities of all answers, by the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)
