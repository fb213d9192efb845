"""One side of an encoder-decoder: a stack, and how its tokens know where they are and what they see."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Mask, by_place, padding, parse_bias, parse_mask, segments
from model.attention.cross import Memory
from model.axes import pin
from model.bounds import check_tokens, without_padding
from model.cycles import Cycle
from model.errors import Range, check_range
from model.layers import choose, dropout
from model.norms import parse_norm
from model.parameters import Module, keep_in_turn
from model.positions import NoPosition, parse_position, positions_in_turn
from model.stack.config import StackConfig
from model.stack.context import NO_MEMORY, Context, folded
from model.stack.residuals import NORM_PLACES, Watch
from model.stack.stack import Stack
from model.use_bias import parse_use_bias
from model.vocabulary import EMBEDDINGS, Embedding

_EMBEDDING_SITE = 2**31  # what its dropout keys are folded with, as with the number of a layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SideConfig(StackConfig):
    """A stack of an encoder-decoder, and how its tokens, at most `max_length`, know where they are and what they see.

    Raises:
        UserError: as StackConfig, and for an unknown position, bias or mask.
    """

    LAYERED: ClassVar = StackConfig.LAYERED | {"position": str, "bias": str, "mask": str}

    max_length: int
    position: Any = "rope"  # rope, rope_linear, rope_ntk, rope_yarn(4, 2048), rope_llama3, learned, sinusoidal or none
    bias: Any = "none"  # added to scores by distance: none, alibi, t5, t5_causal, kerple, kerple_power or fire
    mask: Any = "causal"  # which keys a query sees: causal & window(128), strided(64), ... joined by &, | and ~
    embedding: str = "plain"  # plain, scaled (times sqrt(width)) or normed (normalised before the first layer)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.data.length", self.max_length, Range(1, 2**24))
        choose(EMBEDDINGS, self.embedding, "model.embedding")
        for key, parse in (("position", parse_position), ("bias", parse_bias), ("mask", parse_mask)):
            self.cycles[key].map(parse)


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
        embed: Embedding,
        tokens_BT: jax.Array,
        ids_BT: jax.Array | None,
        positions_BT: jax.Array | None,
        dropout_keys_B: jax.Array | None = None,
        memory: Memory = NO_MEMORY,
        decoding: bool = False,
        watch: Watch = lambda x_BTD: None,
    ) -> tuple[jax.Array, Cycle[Context]]:
        """What the first layer gets, (B, T, D), and the contexts of all layers; ids of 0 are padding."""
        limit, valid_BT = (
            self.config.max_length if self.position.limited else None,
            None if ids_BT is None else ids_BT != 0,
        )
        check_tokens(tokens_BT, ids_BT, positions_BT, len(embed.embedding), limit, valid_BT)
        B, T = tokens_BT.shape
        # In a cache a token stands at its position; elsewhere at its index, whatever its position.
        places_BT = None if decoding else positions_BT
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        x_BTD = without_padding(self.position.add(embed(tokens_BT), positions_BT), valid_BT)
        if self.embedding_norm is not None:
            watch(x_BTD)
            x_BTD = self.embedding_norm(x_BTD)
        x_BTD = dropout(x_BTD, self.config.dropout, folded(dropout_keys_B, _EMBEDDING_SITE), 0)

        def mask(text: Any) -> Mask:
            mask = parse_mask(text) if places_BT is None else by_place(parse_mask(text), places_BT)
            return mask if ids_BT is None else mask & segments(ids_BT) & padding(ids_BT)

        masks = self.config.cycles["mask"].map(mask)
        biases = self.biases.map(lambda name: getattr(self, name)(places_BT))
        rotations = self.positions.map(lambda name: getattr(self, name).rotation(positions_BT))
        of_places = [(masks[n], biases[n], rotations[n]) for n in range(self.config.unit)]
        contexts = Cycle(tuple(Context(*one, dropout_keys_B, memory) for one in of_places))
        return pin(x_BTD, "batch", "length", None), contexts

    def normed(self, x_BTD: jax.Array) -> jax.Array:
        """What the last layer gives, normalised where a norm follows it."""
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def of_norms(
        self, measure: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, contexts: Cycle[Context]
    ) -> tuple[jax.Array, list[jax.Array]]:
        """What `normed` gives of the stack's output, and what `measure` says of the input of each norm from here on."""
        x_BTD, seen_LNX = self.stack.of_norms(measure, x_BTD, contexts)
        last = [] if self.norm is None else [measure(x_BTD)]
        return self.normed(x_BTD), [*seen_LNX.reshape(-1, *seen_LNX.shape[2:]), *last]
