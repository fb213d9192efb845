"""What is explained: a number that a model says of each example."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import UserError
from model.families.family import Model
from model.inspection import seen, sites
from model.taps import Hook, Taps

WRITES = ("next_token", "target", "token", "pair")  # heads that answer by a token of the vocabulary at a place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Target:
    """Which answers, one or several (P): at these places the tokens (or labels) `answers_BP`.

    The value of an example is the sum of their logits; `against_BP`: less those of other answers; `of_all`: of the
    logarithms of their probabilities, as for a continuation. Where a model answers for a whole row, places say nothing.
    Gradients and completeness are of the value, faithfulness is of the `probability`.
    """

    places_BP: jax.Array
    answers_BP: jax.Array
    against_BP: jax.Array | None = None
    of_all: bool = dataclasses.field(default=False, metadata={"static": True})

    def logits(self, model: Model, inputs: dict[str, Any], taps: Taps | None = None) -> jax.Array:
        """Those of all answers at the places, (B, P, V or labels), in float32."""
        if _head(model) in WRITES:
            x_BTD = model.vectors(**inputs, taps=taps)
            return model.readout()(jnp.take_along_axis(x_BTD, self.places_BP[..., None], axis=1))
        logits = model(**inputs, taps=taps)
        if logits.ndim == 2:  # of the whole row
            return jnp.broadcast_to(logits[:, None], (*self.places_BP.shape, logits.shape[-1]))
        return jnp.take_along_axis(logits, self.places_BP[..., None], axis=1)

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
        return jnp.exp(jnp.sum(_picked(jax.nn.log_softmax(logits_BPV), self.answers_BP), axis=1))


def _picked(logits_BPV: jax.Array, answers_BP: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_BPV, answers_BP[..., None], axis=2)[..., 0]


def _head(model: Model) -> str:
    head: str = getattr(model.config, "head", "") or model.config.HEADS[0]
    return head


def lengths(inputs: dict[str, Any]) -> jax.Array:
    """How many tokens each row has that the model answers at, (B,): of pairs, those of the second text."""
    if "pairs" in inputs:
        pairs = inputs["pairs"]
        ids = pairs.segment_ids_BT
        return jnp.full(len(pairs.tokens_BT), pairs.tokens_BT.shape[1]) if ids is None else jnp.sum(ids != 0, axis=1)
    valid_BT, tokens_BT = inputs.get("valid_BT"), inputs["tokens_BT"]
    return jnp.full(len(tokens_BT), tokens_BT.shape[1]) if valid_BT is None else jnp.sum(valid_BT.astype(bool), axis=1)


def predicted(model: Model, inputs: dict[str, Any], places_B: Any = None) -> Target:
    """The likeliest answer of each row: its class, or the token at its place, by default the last one that is known."""
    places_B = lengths(inputs) - 1 if places_B is None else jnp.asarray(places_B)
    places_BP = places_B[:, None].astype(jnp.int32)
    target = Target(places_BP, jnp.zeros_like(places_BP))
    return dataclasses.replace(target, answers_BP=jnp.argmax(target.logits(model, inputs), axis=-1).astype(jnp.int32))


def checked(target: Target, model: Model, inputs: dict[str, Any]) -> Target:
    """The same target, of these inputs.

    Raises:
        UserError: an answer that the model does not have, or a place that is not in its row.
    """
    count = jax.eval_shape(lambda: target.logits(model, inputs)).shape[-1]
    for name in ("answers_BP", "against_BP"):
        _check(getattr(target, name), count, "an answer", "the model has")
    _check(target.places_BP, np.asarray(lengths(inputs))[:, None], "a place", "the row has")
    return target


def _check(numbers: Any, most: Any, what: str, whose: str) -> None:
    if numbers is None:
        return
    numbers, most = np.asarray(numbers), np.broadcast_to(np.asarray(most), np.shape(numbers))
    if (bad := (numbers < 0) | (numbers >= most)).any():
        row, column = np.argwhere(bad)[0]
        raise UserError(
            f"the target of row {row} names {what} {numbers[row, column]}, and {whose} {most[row, column]}, from 0 on; "
            "take one of these."
        )


def given(values: dict[str, Any]) -> Taps:
    """What puts arrays at sites that no layer holds, such as vectors in the stead of the tokens' embeddings."""

    def hook(x: Any) -> Hook:
        return Hook(lambda state, number, value: (state, x.astype(value.dtype), None))

    return Taps({site: hook(x) for site, x in values.items()})


def embedded(model: Model, inputs: dict[str, Any]) -> dict[str, jax.Array]:
    """The vectors of the tokens, (B, n, D), by their sites: `embedding`, or of pairs `encoder.embedding` and
    `decoder.embedding`.
    """
    names = [site for site in sites(model, **inputs) if site.endswith("embedding")]
    return seen(model, dict.fromkeys(names, lambda x_BTD: x_BTD), **inputs)
