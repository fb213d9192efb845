"""A bidirectional encoder (Devlin et al. 2019) with the head that its task needs."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from model import sums
from model.axes import pin
from model.bounds import rows_of, without_padding
from model.cycles import Cycle
from model.errors import Range, check_range
from model.families.family import TrunkConfig
from model.families.trunk import Trunk
from model.layers import ACTIVATIONS, Linear, choose, dropout
from model.norms import parse_norm
from model.parameters import Module, parameter
from model.stack.context import Context, folded
from model.use_bias import parse_use_bias
from model.vocabulary import Head, Readout

_POOLED_SITE = 2**31 + 1  # the layer number under which the pooled vector draws its dropout


def _first(x_BTD: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    """The vector of the first place, (B, D)."""
    return x_BTD[:, 0]


def _mean(x_BTD: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    """The mean of the vectors of all places that hold a token, (B, D); 0 where none does."""
    if valid_BT is None:
        return jnp.mean(x_BTD, axis=1)
    count_B1 = jnp.maximum(jnp.sum(valid_BT.astype(bool), axis=1, keepdims=True), 1)
    return jnp.sum(without_padding(x_BTD, valid_BT), axis=1) / count_B1.astype(x_BTD.dtype)


POOLS: dict[str, Callable[[jax.Array, jax.Array | None], jax.Array]] = {"first": _first, "mean": _mean}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BERTConfig(TrunkConfig):
    """A trunk that sees both sides, and the `head` that its task asks for, with so many `labels`.

    `token`: logits of the tokens; `pair`: these, and whether the second segment follows the first; `class`: of labels
    for the whole row; `tag`: of labels for each token; `span`: whether a token begins, and ends, the answer.

    Raises:
        UserError: as TrunkConfig.
    """

    HEADS: ClassVar = ("token", "pair", "class", "tag", "span")

    head: str
    labels: int
    position: Any = "learned"
    mask: Any = "full"
    norm: Any = "layer(1e-12)"
    norm_place: str = "post"
    embedding: str = "normed"
    mlp: str = "gelu_exact"
    use_bias: bool | str = "qkv & output & mlp & norm & head"
    tied: bool = True  # the output head is the embedding, transposed
    pool: str = "first"  # what tells of a row, for its class: first (the vector of its first token) or mean (of all)
    types: int = 0  # kinds of segments, each with a vector that is added to those of its tokens (BERT: 2); 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.model.types", self.types, Range(0, 2**10))
        choose(POOLS, self.pool, "model.pool")
        choose(dict.fromkeys(self.HEADS), self.head, "task")

    def build(self, rngs: nnx.Rngs) -> "BERT":
        """The model of these sizes and choices."""
        return BERT(self, rngs=rngs)


class Transform(Module):
    """norm(activation(x @ kernel + bias)), which stands before the logits of tokens."""

    def __init__(self, config: BERTConfig, *, rngs: nnx.Rngs):
        use_bias, self.activation = parse_use_bias(config.use_bias), ACTIVATIONS[config.mlp]
        self.dense = _square(config, rngs)
        self.norm = parse_norm(config.norm)(config.width, bias=use_bias.norm, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) to (B, T, D)."""
        return self.norm(self.activation(self.dense(x_BTD)))


class Types(Module):
    """A table (types, D), whose row is added to the vector of each token of that type."""

    def __init__(self, types: int, width: int, *, rngs: nnx.Rngs):
        self.table = parameter(rngs, nnx.initializers.normal(1 / math.sqrt(width)), (types, width), ("types", "embed"))

    def __call__(self, x_BTD: jax.Array, types_BT: jax.Array) -> jax.Array:
        """(B, T, D) to (B, T, D); NaN for a type that there is not."""
        table = sums.cast(self.table[...], x_BTD.dtype, lambda table: pin(table, None, None))
        return x_BTD + rows_of(table, types_BT).astype(x_BTD.dtype)


class BERT(Trunk):
    """Tokens in, what the head makes of them out.

    Raises:
        UserError: as a trunk.
    """

    config: BERTConfig

    def __init__(self, config: BERTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        width, use_bias, on_tokens = config.width, parse_use_bias(config.use_bias), config.head in ("token", "pair")
        self.types = Types(config.types, width, rngs=rngs) if config.types else None
        self.transform = Transform(config, rngs=rngs) if on_tokens else None
        head = Head(width, config.vocab_size, tied=config.tied, bias=use_bias.head, rngs=rngs) if on_tokens else None
        self.head = head
        self.pooler = _square(config, rngs) if config.head in ("pair", "class") else None
        labels = {"pair": 2, "class": config.labels, "tag": config.labels, "span": 2}.get(config.head)
        ends, dtype = ({"embed": width}, {"label": labels or 0}), jnp.dtype(config.dtype)
        self.answer = Linear(*ends, bias=use_bias.head, dtype=dtype, rngs=rngs) if labels is not None else None

    def vectors(self, *inputs: Any, **named: Any) -> jax.Array:
        """What the model knows at each place, (B, T, D), as `readout` takes it: see `Trunk.vectors`.

        `types_BT` says of which segment each token is, from 0 on.
        """
        x_BTD = super().vectors(*inputs, **named)
        return x_BTD if self.transform is None else self.transform(x_BTD)

    def readout(self) -> Readout:
        """What turns vectors into logits of tokens."""
        assert self.head is not None, self.config.head
        return self.head.readout(self.embed, 0.0)

    def __call__(self, *inputs: Any, **named: Any) -> jax.Array:
        """What the head says, in float32: logits (B, T, V) of tokens, (B, labels) of the row, (B, T, labels) of each
        token, or (B, T, 2) of where the answer begins and ends. It takes what `vectors` takes.
        """
        x_BTD = self.vectors(*inputs, **named)
        return self.readout()(x_BTD) if self.head is not None else self.answers(x_BTD, *_given(named))

    def answers(
        self, x_BTD: jax.Array, dropout_keys_B: jax.Array | None = None, valid_BT: jax.Array | None = None
    ) -> jax.Array:
        """The logits of labels, in float32, from what the trunk knows: of the row where there is a pooler
        (tanh(x @ kernel + bias) of its first place, or of the mean), of each place where there is none.
        """
        assert self.answer is not None, self.config.head
        if self.pooler is not None:
            x_BTD = jnp.tanh(self.pooler(POOLS[self.config.pool](x_BTD, valid_BT)[:, None]))
        x_BTD = dropout(x_BTD, self.config.dropout, folded(dropout_keys_B, _POOLED_SITE), 0)
        logits = self.answer(x_BTD, result=jnp.float32)
        return logits[:, 0] if self.pooler is not None else logits

    def both(self, *inputs: Any, **named: Any) -> tuple[jax.Array, jax.Array]:
        """Of the head `pair`: (vectors as `readout` takes them, logits (B, 2): the second segment follows, or not)."""
        x_BTD = super().vectors(*inputs, **named)
        assert self.transform is not None
        return self.transform(x_BTD), self.answers(x_BTD, *_given(named))

    def _start(self, *inputs: Any, types_BT: jax.Array | None = None, **named: Any) -> tuple[jax.Array, Cycle[Context]]:
        def embed(tokens_BT: jax.Array) -> jax.Array:
            x_BTD = self.embed(tokens_BT)
            if self.types is None:
                return x_BTD
            return self.types(x_BTD, jnp.zeros_like(tokens_BT) if types_BT is None else types_BT)

        return self.start(embed, self.config.vocab_size, *inputs, **named)


def _given(named: dict[str, Any]) -> tuple[jax.Array | None, jax.Array | None]:
    """What `answers` takes of what `vectors` takes."""
    return named.get("dropout_keys_B"), named.get("valid_BT")


def _square(config: BERTConfig, rngs: nnx.Rngs) -> Linear:
    ends, bias = ({"embed": config.width}, {"mlp": config.width}), parse_use_bias(config.use_bias).mlp
    return Linear(*ends, bias=bias, dtype=jnp.dtype(config.dtype), rngs=rngs)
