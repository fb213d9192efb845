"""What is seen of a model from outside beside its outputs: weights and scores of attention, and inputs of norms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.attention import MultiHeadAttention, Scores
from model.cycles import Cycle
from model.norms import Norm
from model.parameters import Module
from model.stack.context import Context
from model.stack.stack import Stack


class Inspected(Module):
    """A stack and the norm behind it, and what `_start` gives it, which tells `watch` of each norm before it."""

    stack: Stack
    norm: Norm | None
    _start: Callable[..., tuple[jax.Array, Cycle[Context]]]

    def normed(self, x_BTD: jax.Array) -> jax.Array:
        """What the last layer gives, normalised where a norm follows it."""
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def attention_weights(self, tokens_BT: jax.Array, *inputs: Any) -> jax.Array:
        """The weights that each layer and head gives to each token, (L, B, H, T, S); those of a softmax sum to 1.

        `inputs` are segment ids and positions, as for `vectors`.
        """
        return self.stack.weights(*self._start(tokens_BT, *inputs))

    def of_norms(self, measure: Callable[[jax.Array], jax.Array], *inputs: Any, **named: Any) -> jax.Array:
        """What `measure`, from (B, T, D) to any shape, says of the input of each norm: (number of norms, ...).

        It takes what `vectors` takes.
        """
        seen: list[jax.Array] = []
        start = self._start(*inputs, **named, watch=lambda x: seen.append(measure(x)))
        return jnp.stack([*seen, *self.norms_from(measure, *start)[1]])

    def attention_scores(
        self, batch: tuple[jax.Array, jax.Array, jax.Array], keys_B: jax.Array | None
    ) -> dict[str, list[Scores]]:
        """What turns products into weights at each site, in the first layer at each place of the unit of its stack, for
        (tokens, segment ids, positions), all (B, T), and keys of dropout.

        In later units only learned numbers are others.
        """
        return {"self": self.stack.scores(self._start(*batch, keys_B)[1])}

    def attention(self, site: str, place: int) -> MultiHeadAttention:
        """The attention of a site in the first layer at a place of the unit of its stack."""
        return self.stack.attention(place)

    def cache_bytes(self, length: int) -> dict[str, Cycle[int]]:
        """The bytes that one layer keeps of a row of `length` tokens while the model writes, at each place of the unit
        of each site that keeps any.
        """
        return {}

    def norms_from(
        self, measure: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, contexts: Cycle[Context]
    ) -> tuple[jax.Array, list[jax.Array]]:
        """What `normed` gives of the stack's output, and what `measure` says of the input of each norm from here on."""
        x_BTD, seen_LNX = self.stack.of_norms(measure, x_BTD, contexts)
        last = [] if self.norm is None else [measure(x_BTD)]
        return self.normed(x_BTD), [*seen_LNX.reshape(-1, *seen_LNX.shape[2:]), *last]
