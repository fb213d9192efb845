"""A stack, and how its tokens know where they are and what they see: a whole model, or a side of an encoder-decoder."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Mask, by_place, padding, parse_bias, parse_mask, segments
from model.attention.cross import Memory
from model.axes import pin
from model.bounds import check_tokens, without_padding
from model.cycles import Cycle
from model.layers import dropout
from model.norms import parse_norm
from model.parameters import Module, keep_in_turn
from model.positions import NoPosition, positions_in_turn
from model.stack.config import SideConfig
from model.stack.context import NO_MEMORY, Context, folded
from model.stack.residuals import NORM_PLACES
from model.stack.stack import Stack
from model.taps import Tap, Taps, untouched, within
from model.use_bias import parse_use_bias
from model.vocabulary import EMBEDDINGS

_EMBEDDING_SITE = 2**31  # what its dropout keys are folded with, as with the number of a layer


class Side(Module):
    """A stack between vectors of tokens and vectors that know their context: positions, biases, norms."""

    position: NoPosition

    def __init__(self, config: SideConfig, rngs: nnx.Rngs):
        norm = partial(parse_norm(config.norm), config.width, bias=parse_use_bias(config.use_bias).norm, rngs=rngs)
        self.config = config
        self.embedding_norm = norm() if EMBEDDINGS[config.embedding].normed else None
        sizes = config.width, config.K, config.max_length, rngs
        self.positions = keep_in_turn(self, "position", positions_in_turn(config.cycles["position"], *sizes))
        biases = config.cycles["bias"].map(lambda one: parse_bias(one)(config.num_heads, rngs))
        self.biases = keep_in_turn(self, "attention_bias", biases)
        self.stack = Stack(config, rngs)
        self.norm = norm() if NORM_PLACES[config.norm_place].last else None

    def start(
        self,
        embed: Callable[[jax.Array], jax.Array],
        vocab_size: int,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
        *,
        memory: Memory = NO_MEMORY,
        decoding: bool = False,
        tap: Tap = untouched,
    ) -> tuple[jax.Array, Cycle[Context]]:
        """What the first layer gets, (B, T, D), and the contexts of all layers: see `Trunk.vectors`."""
        limit = self.config.max_length if self.position.limited else None
        check_tokens(tokens_BT, segment_ids_BT, positions_BT, vocab_size, limit, valid_BT)
        B, T = tokens_BT.shape
        # In a cache a token stands at its position; elsewhere at its index, whatever its position.
        places_BT = None if decoding else positions_BT
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        # So nothing that stands at padding, be it NaN, reaches a sum over all places, such as a kernel's gradient.
        x_BTD = self.position.add(tap("embedding", embed(tokens_BT)), positions_BT)
        x_BTD = without_padding(x_BTD, valid_BT)
        if self.embedding_norm is not None:
            x_BTD = self.embedding_norm(tap("embedding_norm.input", x_BTD))
        x_BTD = dropout(x_BTD, self.config.dropout, folded(dropout_keys_B, _EMBEDDING_SITE), 0)

        def mask(text: Any) -> Mask:
            mask = parse_mask(text) if places_BT is None else by_place(parse_mask(text), places_BT)
            mask = mask if segment_ids_BT is None else mask & segments(segment_ids_BT)
            return mask if valid_BT is None else mask & padding(valid_BT)

        masks = self.config.cycles["mask"].map(mask)
        biases = self.biases.map(lambda name: getattr(self, name)(places_BT))
        rotations = self.positions.map(lambda name: getattr(self, name).rotation(positions_BT))
        of_places = [(masks[n], biases[n], rotations[n]) for n in range(self.config.unit)]
        contexts = (Context(*one, dropout_keys_B, memory) for one in of_places)
        return pin(x_BTD, "batch", "length", None), Cycle(tuple(contexts))

    def run(self, x_BTD: jax.Array, contexts: Cycle[Context], taps: Taps, name: str = "stack") -> jax.Array:
        """What is known at each place behind all layers and the norm that may follow them, (B, T, D)."""
        tap: Tap = taps if name == "stack" else within(taps, name)
        return self.normed(self.stack(x_BTD, contexts, taps, name), tap)

    def normed(self, x_BTD: jax.Array, tap: Tap) -> jax.Array:
        """What the last layer gives, normalised where a norm follows it."""
        return x_BTD if self.norm is None else self.norm(tap("norm.input", x_BTD))
