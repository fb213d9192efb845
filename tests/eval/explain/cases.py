"""Models of all kinds of heads, inputs and targets for them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.targets import Target
from launch.configs import load
from model.families.encoder_decoder import Pairs
from model.families.table import FAMILIES
from tests.tiers import tiered
from train.experiment import make_model_config
from train.tasks.table import TASKS

B, T, V, L, LABELS = 3, 7, 19, 3, 5
KINDS = {
    f"{name}-{task}": (name, task)
    for name, kind in FAMILIES.items()
    for task in ("language_model", "masked_lm", "classification", "tagging", "span_qa", "translation")
    if TASKS[task].HEAD in kind.HEADS
}
EVERY_DAY = ("gpt-language_model", "bert-classification")
KIND = tiered([(kind,) for kind in KINDS], EVERY_DAY.__contains__)


@functools.cache
def case(kind: str, **changes: Any) -> tuple[Any, dict[str, Any], Target]:
    """A model with random biases, rows of which some end in padding, and a target in them."""
    family, task = KINDS[kind]
    keys = {"family": family, "task": task, "model.num_layers": L, "model.width": 24, "data.length": T} | changes
    model = make_model_config(load("base", **keys), V, LABELS).build(nnx.Rngs(0))
    rng = np.random.default_rng(0)
    nnx.update(model, jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), nnx.state(model)))
    texts = [jnp.asarray(rng.integers(0, V, (B, T), np.int32)) for _ in range(2)]
    sizes_B = np.array([T, T - 2, T])
    valid_BT = jnp.asarray(np.arange(T) < sizes_B[:, None])
    ids_BT = valid_BT.astype(jnp.int32)
    inputs = {"pairs": Pairs(*texts, ids_BT, ids_BT)} if task == "translation" else {"tokens_BT": texts[0]}
    inputs |= {} if task == "translation" else {"valid_BT": valid_BT}
    places_BP = jnp.asarray(sizes_B - [1, 2, 4])[:, None].astype(jnp.int32)
    answers_BP = jnp.asarray([[1], [0], [1]], jnp.int32)
    return model, inputs, Target(places_BP, answers_BP)
