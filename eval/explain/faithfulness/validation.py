"""What faithfulness is measured on: examples of a run's own validation set, each with a target of some kind."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.methods.integrated import baselines
from eval.explain.methods.table import Asked
from eval.explain.targets import Target, answering, predicted
from eval.runs import Run
from model.errors import UserError
from train.tasks.span_qa import NEVER

EXAMPLES, TOKENS = 64, 64  # that are measured, and the tokens of each, of both sides of a pair
CONTINUED = 3  # tokens of a continuation
AGAINST = " against another"  # behind the kind of a target that is the difference of two answers


def kind_of(run: Run) -> str:
    """What the default target of a run is: a class, a tag, a span, or a token."""
    head = run.experiment.task.HEAD
    return head if head in ("class", "tag", "span") else "token"


def kind_of_target(target: Target, kind: str) -> str:
    """The kind for which a target's faithfulness is measured: its own, or where it is beside another answer, that of
    such.
    """
    return kind + AGAINST if target.against_BP is not None else kind


def baseline(run: Run, inputs: dict[str, Any], name: str) -> dict[str, jax.Array]:
    """The vectors that tokens are compared with, by the name of what they are.

    Raises:
        UserError: there is none of that name, or the tokenizer has no such mark.
    """
    marks = {"end": run.tokenizer.end} | {
        m: run.tokenizer.marks[m] for m in ("pad", "mask") if m in run.tokenizer.marks
    }
    if name not in (known := ("zero", "mean", *marks)):
        raise UserError(f"--baseline={name} is none that this run has: {', '.join(known)}.")
    return baselines(run.model, inputs, {name: marks[name]} if name in marks else {})[name]


def validation(run: Run, kind: str, compared: str = "mean") -> Asked:
    """The examples that are measured, each with a target: by default the predicted class, or tag of the first word, or
    span; the next token at the last place; the first masked one. Of a kind `against another`, beside the next likely
    answer; of a continuation, the last tokens of the text itself. Of a window of several documents, it is the one of
    which most is there, and the tokens of others are none of the example.
    """
    task, rows = run.experiment.task, run.experiment.task.measured(run.data, EXAMPLES)
    whole = rows.rows(np.arange(min(EXAMPLES, len(rows))))
    batch: Any = {name: x[:, :TOKENS] if x.ndim > 1 else x for name, x in whole.items()}
    place_B = None
    if task.HEAD in ("token", "pair", "tag"):
        some_B = batch["weights"].any(axis=1)
        batch = {name: x[some_B] for name, x in batch.items()}
        place_B = batch["weights"].argmax(axis=1)
    if "sources" not in batch and "valid" not in batch:
        place_B = _last_of_longest(batch["segment_ids"]) if place_B is None else place_B
        batch["valid"] = batch["segment_ids"] == np.take_along_axis(batch["segment_ids"], place_B[:, None], axis=1)
    inputs = {name: x for name, x in task.inputs(batch).items() if x is not None}
    if kind == "continuation":
        inputs, target = _continued(inputs, place_B)
    else:
        target = default_target(run, inputs, batch, kind.removesuffix(AGAINST), place_B)
    if kind.endswith(AGAINST):
        logits_BPV = _logits(*nnx.split(run.model), inputs, target)
        own_BPV = jnp.arange(logits_BPV.shape[-1])[None, None] == target.answers_BP[..., None]
        others_BP = jnp.argmax(jnp.where(own_BPV, -jnp.inf, logits_BPV), axis=-1).astype(jnp.int32)
        target = dataclasses.replace(target, against_BP=others_BP)
    return Asked(run.model, inputs, target, baseline(run, inputs, compared))


def _continued(inputs: dict[str, Any], place_B: Any) -> tuple[dict[str, Any], Target]:
    """The texts of more than `CONTINUED` tokens, and the probability of as many of their last ones."""
    tokens_BT = inputs["pairs"].tokens_BT if "pairs" in inputs else inputs["tokens_BT"]
    real_BT = np.asarray(answering(inputs))
    last_B = real_BT.shape[1] - 1 - np.argmax(real_BT[:, ::-1], axis=1) if place_B is None else np.asarray(place_B)
    places_BP = last_B[:, None] - CONTINUED + np.arange(CONTINUED)
    long_B = (places_BP[:, 0] >= 0) & real_BT[np.arange(len(last_B)), np.maximum(places_BP[:, 0], 0)]
    answers_BP = np.take_along_axis(np.asarray(tokens_BT), np.maximum(places_BP, 0) + 1, axis=1)
    target = Target(jnp.asarray(places_BP[long_B], jnp.int32), jnp.asarray(answers_BP[long_B]), of_all=True)
    return jax.tree.map(lambda x: x[long_B], inputs), target


def _last_of_longest(ids_BT: np.ndarray) -> np.ndarray:
    """The last place of the document of which a window holds most, (B,)."""
    sizes_BT = np.array([np.bincount(ids_T)[ids_T] * (ids_T > 0) for ids_T in ids_BT])
    return ids_BT.shape[1] - 1 - np.argmax(sizes_BT[:, ::-1], axis=1)


def default_target(run: Run, inputs: dict[str, Any], batch: Mapping[str, Any], kind: str, place_B: Any) -> Target:
    """What is explained if nobody says otherwise, at a place of each row if that is given."""
    task: Any = run.experiment.task
    if kind != "span":
        return predicted(run.model, inputs, place_B, alone=getattr(task, "FORM", "") == "several")
    logits_BT2 = jnp.where(jnp.asarray(batch["allowed"])[..., None], _called(*nnx.split(run.model), inputs), NEVER)
    places_B2 = task.likeliest(logits_BT2).astype(jnp.int32)
    allowed_BT = jnp.asarray(batch["allowed"])
    return Target(places_B2, jnp.broadcast_to(jnp.arange(2), places_B2.shape), allowed_BT=allowed_BT)


@functools.partial(jax.jit, static_argnums=0)  # else rows that devices do not divide would be refused
def _called(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any]) -> jax.Array:
    logits: jax.Array = nnx.merge(graphdef, params)(**inputs)
    return logits


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> jax.Array:
    return target.logits(nnx.merge(graphdef, params), inputs)
