"""A causal language model (Radford et al. 2019) on the shared stack."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Mask, Scores, by_place, padding, parse_bias, parse_mask, segments
from model.axes import pin
from model.bounds import check_tokens, check_within, without_padding
from model.cycles import Cycle
from model.errors import Range, check_range
from model.layers import choose, dropout
from model.norms import parse_norm
from model.parameters import Module, keep_in_turn
from model.positions import NoPosition, parse_position, positions_in_turn
from model.stack.caches import Caches, empty_caches
from model.stack.config import StackConfig
from model.stack.context import Context
from model.stack.residuals import NORM_PLACES, Watch
from model.stack.stack import Stack
from model.use_bias import parse_use_bias
from model.vocabulary import EMBEDDINGS, Embedding, Head, Readout

_EMBEDDING_SITE = 2**31  # the layer number under which the embeddings draw their dropout: no stack is that deep


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(StackConfig):
    """A stack, a vocabulary of `vocab_size` tokens and sequences of at most `max_length`.

    As in every family, a field with a default is a key of a config; those without one are given by the data.

    Raises:
        UserError: as StackConfig, and for an unknown position, bias or mask.
    """

    LAYERED: ClassVar = StackConfig.LAYERED | {"position": str, "bias": str, "mask": str}

    vocab_size: int
    max_length: int
    position: Any = "rope"  # rope, rope_linear, rope_ntk, rope_yarn(4, 2048), rope_llama3, learned, sinusoidal or none
    bias: Any = "none"  # added to scores by distance: none, alibi, t5, t5_causal, kerple, kerple_power or fire
    mask: Any = "causal"  # which keys a query sees: causal & window(128), strided(64), ... joined by &, | and ~
    tied: bool = True  # the output head is the embedding, transposed
    embedding: str = "plain"  # plain, scaled (times sqrt(width)) or normed (normalised before the first layer)
    logits_soft_cap: float = 0.0  # c of c tanh(logit / c), which bounds the logits; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.data.vocab_size", self.vocab_size, Range(1, 2**24))
        check_range("config.data.length", self.max_length, Range(1, 2**24))
        check_range("config.model.logits_soft_cap", self.logits_soft_cap, Range(1e-6, 1e6, zero="none"))
        choose(EMBEDDINGS, self.embedding, "model.embedding")
        for key, parse in (("position", parse_position), ("bias", parse_bias), ("mask", parse_mask)):
            self.cycles[key].map(parse)

    def build(self, rngs: nnx.Rngs) -> "GPT":
        """The model of these sizes and choices."""
        return GPT(self, rngs=rngs)


class GPT(Module):
    """Tokens in, next-token logits out.

    Raises:
        UserError: see GPTConfig; when called, a sequence longer than learned positions, and token ids or positions
            outside of their tables or the cache. Where they are only known on the device, the outputs are NaN.
    """

    position: NoPosition

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        dtype, start, use_bias = jnp.dtype(config.dtype), EMBEDDINGS[config.embedding], parse_use_bias(config.use_bias)
        norm = partial(parse_norm(config.norm), config.width, bias=use_bias.norm, rngs=rngs)
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width, dtype=dtype, rngs=rngs, scaled=start.scaled)
        self.embedding_norm = norm() if start.normed else None
        sizes = config.width, config.K, config.max_length, rngs
        self.positions = keep_in_turn(self, "position", positions_in_turn(config.cycles["position"], *sizes))
        biases = config.cycles["bias"].map(lambda one: parse_bias(one)(config.num_heads, rngs))
        self.biases = keep_in_turn(self, "attention_bias", biases)
        self.stack = Stack(config, rngs)
        self.norm = norm() if NORM_PLACES[config.norm_place].last else None
        self.head = Head(config.width, config.vocab_size, tied=config.tied, bias=use_bias.head, rngs=rngs)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        head_gate_LH: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the next token at each place, (B, T, V) in float32: what `readout` makes of the `vectors`."""
        arguments = tokens_BT, segment_ids_BT, positions_BT, dropout_keys_B, head_gate_LH, valid_BT
        return self.readout()(self.vectors(*arguments))

    def vectors(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        head_gate_LH: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
    ) -> jax.Array:
        """What the model knows at each place, (B, T, D).

        `segment_ids_BT` keeps packed documents apart, `positions_BT` restarts their positions, of which masks and
        biases speak too, `dropout_keys_B` (one key per row) turns dropout on, and `head_gate_LH` weighs each head's
        output. Where `valid_BT` is False is padding, whatever its token and position: no token sees it, and what is
        returned there is finite and means nothing.
        """
        x_BTD, context = self._start(tokens_BT, segment_ids_BT, positions_BT, dropout_keys_B, valid_BT)
        return self._normed(self.stack(x_BTD, context, head_gate_LH))

    def readout(self) -> Readout:
        """What turns vectors into logits."""
        return self.head.readout(self.embed, self.config.logits_soft_cap)

    def decode(self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Caches) -> tuple[jax.Array, Caches]:
        """Logits (B, T, V) of new tokens at absolute positions, attending to the cache, and the cache with them in
        it. Compiled, a token at position -1 is padding: nothing of it is kept, and its logits are NaN.

        A core with a state takes each row's tokens in order, from 0 on; what is out of order it answers by NaN.
        """
        S = cache.length
        check_within(positions_BT, S, "position", f"is outside of a cache for {S}; make it longer")
        x_BTD, context = self._start(tokens_BT, None, positions_BT, None, decoding=True)
        # What is written outside of the cache is lost, and with it what the token sees of itself.
        x_BTD = jnp.where(((0 <= positions_BT) & (positions_BT < S))[..., None], x_BTD, jnp.nan)
        x_BTD, cache = self.stack.decode(x_BTD, context, cache, positions_BT)
        return self.readout()(self._normed(x_BTD)), cache

    def init_cache(self, batch_size: int, length: int) -> Caches:
        """An empty cache for `batch_size` sequences of at most `length` tokens; a layer that looks back less keeps
        less.
        """
        reaches = self.config.cycles["mask"].map(lambda one: parse_mask(one).reach)
        return empty_caches(self.config, batch_size, length, reaches)

    def attention_weights(
        self, tokens_BT: jax.Array, segment_ids_BT: jax.Array | None = None, positions_BT: jax.Array | None = None
    ) -> jax.Array:
        """The weights that each layer and head gives to each token, (L, B, H, T, S); those of a softmax sum to 1."""
        return self.stack.weights(*self._start(tokens_BT, segment_ids_BT, positions_BT, None))

    def of_norms(
        self,
        measure: Callable[[jax.Array], jax.Array],
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
    ) -> jax.Array:
        """What `measure`, from (B, T, D) to any shape, says of the input of each norm: (number of norms, ...)."""
        seen: list[jax.Array] = []
        start = self._start(
            tokens_BT, segment_ids_BT, positions_BT, None, valid_BT, watch=lambda x: seen.append(measure(x)[None])
        )
        x_BTD, seen_LNX = self.stack.of_norms(measure, *start)
        last = [] if self.norm is None else [measure(x_BTD)[None]]
        return jnp.concatenate([*seen, seen_LNX.reshape(-1, *seen_LNX.shape[2:]), *last])

    def attention_scores(self, batch: tuple[jax.Array, jax.Array, jax.Array], keys_B: jax.Array | None) -> list[Scores]:
        """What turns products into weights in the first layer at each place of the cycles' unit, for (tokens, segment
        ids, positions), all (B, T), and keys of dropout; in later units only learned numbers are others.
        """
        return self.stack.scores(self._start(*batch, keys_B)[1])

    def _start(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None,
        positions_BT: jax.Array | None,
        dropout_keys_B: jax.Array | None,
        valid_BT: jax.Array | None = None,
        decoding: bool = False,
        watch: Watch = lambda x_BTD: None,
    ) -> tuple[jax.Array, Cycle[Context]]:
        limit = self.config.max_length if self.position.limited else None
        check_tokens(tokens_BT, segment_ids_BT, positions_BT, self.config.vocab_size, limit, valid_BT)
        B, T = tokens_BT.shape
        # In a cache a token stands at its position; elsewhere at its index, whatever its position.
        places_BT = None if decoding else positions_BT
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T)[None], (B, T))
        # So nothing that stands at padding, be it NaN, reaches a sum over all places, such as a kernel's gradient.
        x_BTD = without_padding(self.position.add(self.embed(tokens_BT), positions_BT), valid_BT)
        if self.embedding_norm is not None:
            watch(x_BTD)
            x_BTD = self.embedding_norm(x_BTD)
        if dropout_keys_B is not None:
            embedding_keys_B = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys_B, _EMBEDDING_SITE)
            x_BTD = dropout(x_BTD, self.config.dropout, embedding_keys_B, 0)

        def mask(text: Any) -> Mask:
            mask = parse_mask(text) if places_BT is None else by_place(parse_mask(text), places_BT)
            mask = mask if segment_ids_BT is None else mask & segments(segment_ids_BT)
            return mask if valid_BT is None else mask & padding(valid_BT)

        masks = self.config.cycles["mask"].map(mask)
        biases = self.biases.map(lambda name: getattr(self, name)(places_BT))
        rotations = self.positions.map(lambda name: getattr(self, name).rotation(positions_BT))
        contexts = [
            Context(masks[place], biases[place], rotations[place], dropout_keys_B) for place in range(self.config.unit)
        ]
        return pin(x_BTD, "batch", "length", None), Cycle(tuple(contexts))

    def _normed(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD if self.norm is None else self.norm(x_BTD)
