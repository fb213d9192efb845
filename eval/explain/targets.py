"""What is explained: a number that a model says of each example."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.errors import UserError
from model.families.family import Model
from model.inspection import seen, sites
from model.taps import Hook, Taps

_NEVER = -1e30  # a logit of what is not allowed
WRITES = ("next_token", "target", "token", "pair")  # heads that answer by a token of the vocabulary at a place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Target:
    """Which answers, one or several (P): at these places the tokens (or labels) `answers_BP`.

    The value of an example is the sum of their logits; `against_BP`: less those of other answers; `of_all`: of the
    logarithms of their probabilities, as for a continuation. Where a model answers for a whole row, places say nothing.
    Gradients and completeness are of the value, faithfulness is of the `probability`: that of an answer among others at
    its place; with `allowed_BT`, as for start and end of a span, that of its place among those; `alone`, where each
    answer is a question of its own, as for several labels, that it is told.
    """

    places_BP: jax.Array
    answers_BP: jax.Array
    against_BP: jax.Array | None = None
    of_all: bool = dataclasses.field(default=False, metadata={"static": True})
    alone: bool = dataclasses.field(default=False, metadata={"static": True})
    allowed_BT: jax.Array | None = None

    def logits(self, model: Model, inputs: dict[str, Any], taps: Taps | None = None) -> jax.Array:
        """Those of all answers at the places, (B, P, V or labels), in float32."""
        if _head(model) in WRITES:
            x_BTD = model.vectors(**inputs, taps=taps)
            return model.readout()(_at(x_BTD, self.places_BP))
        logits = model(**inputs, taps=taps)
        if logits.ndim == 2:  # of the whole row
            return jnp.broadcast_to(logits[:, None], (*self.places_BP.shape, logits.shape[-1]))
        return _at(logits, self.places_BP)

    def value(self, model: Model, inputs: dict[str, Any], taps: Taps | None = None) -> jax.Array:
        """The number that is explained, (B,)."""
        logits_BPV = self.logits(model, inputs, taps)
        if self.of_all:
            logits_BPV = jax.nn.log_softmax(logits_BPV)
        value_BP = _picked(logits_BPV, self.answers_BP)
        if self.against_BP is not None:
            value_BP = value_BP - _picked(logits_BPV, self.against_BP)
        return jnp.sum(value_BP, axis=1)

    def probability(self, model: Model, inputs: dict[str, Any], taps: Taps | None = None) -> jax.Array:
        """That of the answers, (B,): of all of them together; beside others, that they are told and not those."""
        logits_BPV = self.logits(model, inputs, taps)
        if self.against_BP is not None:
            less_BP = _picked(logits_BPV, self.answers_BP) - _picked(logits_BPV, self.against_BP)
            return jax.nn.sigmoid(jnp.sum(less_BP, axis=1))
        if self.allowed_BT is not None:
            logits_BTV = jnp.where(self.allowed_BT[..., None], model(**inputs, taps=taps), _NEVER)
            logs_BPV = _at(jax.nn.log_softmax(logits_BTV, axis=1), self.places_BP)
        else:
            logs_BPV = jax.nn.log_sigmoid(logits_BPV) if self.alone else jax.nn.log_softmax(logits_BPV)
        return jnp.exp(jnp.sum(_picked(logs_BPV, self.answers_BP), axis=1))


def _at(x_BTD: jax.Array, places_BP: jax.Array) -> jax.Array:
    """What is at places, (B, P, D): as a sum, for XLA spreads the gradient of a gather over devices that do not divide
    P wrongly (jax 0.10: what pads it reaches place 0).
    """
    there_BPT = places_BP[..., None] == jnp.arange(x_BTD.shape[1])[None, None]
    return jnp.sum(jnp.where(there_BPT[..., None], x_BTD[:, None], 0), axis=2)


def _picked(logits_BPV: jax.Array, answers_BP: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_BPV, answers_BP[..., None], axis=2)[..., 0]


def _head(model: Model) -> str:
    head: str = getattr(model.config, "head", "") or model.config.HEADS[0]
    return head


def places(inputs: dict[str, Any]) -> dict[str, jax.Array]:
    """Which places hold a token, (B, n) by the site of their vectors."""
    if "pairs" not in inputs:
        return {"embedding": _real(inputs["tokens_BT"], inputs.get("valid_BT"))}
    pairs = inputs["pairs"]
    return {
        "encoder.embedding": _real(pairs.sources_BS, pairs.source_segment_ids_BS),
        "decoder.embedding": _real(pairs.tokens_BT, pairs.segment_ids_BT),
    }


def _real(tokens: jax.Array, marked: jax.Array | None) -> jax.Array:
    return jnp.ones(tokens.shape, bool) if marked is None else jnp.broadcast_to(marked, tokens.shape) != 0


def answering(inputs: dict[str, Any]) -> jax.Array:
    """Which places a model answers at, (B, T): those of the text, or of the second one of a pair."""
    found = places(inputs)
    return found.get("embedding", found.get("decoder.embedding"))  # type: ignore[return-value]


def predicted(model: Model, inputs: dict[str, Any], places_B: Any = None, alone: bool = False) -> Target:
    """The likeliest answer of each row: its class, or the token at its place, by default the last one that is known;
    `alone` as for a target.
    """
    real_BT = answering(inputs)
    last_B = real_BT.shape[1] - 1 - jnp.argmax(real_BT[:, ::-1], axis=1)
    places_BP = (last_B if places_B is None else jnp.asarray(places_B))[:, None].astype(jnp.int32)
    target = Target(places_BP, jnp.zeros_like(places_BP), alone=alone)
    return dataclasses.replace(target, answers_BP=_likeliest(*nnx.split(model), inputs, target))


@functools.partial(jax.jit, static_argnums=0)  # else places that devices do not divide would be refused
def _likeliest(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> jax.Array:
    return jnp.argmax(target.logits(nnx.merge(graphdef, params), inputs), axis=-1).astype(jnp.int32)


def checked(target: Target, model: Model, inputs: dict[str, Any]) -> Target:
    """The same target, of these inputs.

    Raises:
        UserError: an answer that the model does not have, or a place that is not in its row.
    """
    count = jax.eval_shape(lambda: target.logits(model, inputs)).shape[-1]
    for numbers in (target.answers_BP, target.against_BP):
        wrong = np.zeros(0) if numbers is None else (np.asarray(numbers) < 0) | (np.asarray(numbers) >= count)
        _refuse(numbers, wrong, "answer", f"the model has {count}, from 0 on")
    real_BT, asked_BP = np.asarray(answering(inputs)), np.asarray(target.places_BP)
    outside_BP = (asked_BP < 0) | (asked_BP >= real_BT.shape[1])
    real_BP = np.take_along_axis(real_BT, np.where(outside_BP, 0, asked_BP), axis=1)
    _refuse(asked_BP, outside_BP | ~real_BP, "place", "its row has no token there")
    return target


def _refuse(numbers: Any, wrong: np.ndarray, what: str, rule: str) -> None:
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(f"the target of row {row} names {what} {numbers[row, column]}, and {rule}; take another.")


def in_float32(model: Model) -> Model:
    """The same model, which computes in float32: its parameters are that already."""
    if getattr(model.config, "dtype", "float32") == "float32":
        return model
    config = dataclasses.replace(model.config, dtype="float32")
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))), nnx.state(model))


def given(values: dict[str, Any]) -> Taps:
    """What puts arrays at sites that no layer holds, such as vectors in the stead of the tokens' embeddings."""

    def hook(x: Any) -> Hook:
        return Hook(lambda state, number, value: (state, x.astype(value.dtype), None))

    return Taps({site: hook(x) for site, x in values.items()})


def embedded(model: Model, inputs: dict[str, Any]) -> dict[str, jax.Array]:
    """The vectors of the tokens, (B, n, D) in float32, by their sites: `embedding`, or of pairs `encoder.embedding` and
    `decoder.embedding`; zeros where there is no token, whatever stands there.
    """
    return _embedded(*nnx.split(model), inputs)


@functools.partial(jax.jit, static_argnums=0)
def _embedded(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any]) -> dict[str, jax.Array]:
    model, real = nnx.merge(graphdef, params), places(inputs)
    names = [site for site in sites(model, **inputs) if site.endswith("embedding")]
    found = seen(model, dict.fromkeys(names, lambda x_BTD: x_BTD), **inputs)
    return {site: jnp.where(real[site][..., None], x.astype(jnp.float32), 0) for site, x in found.items()}
