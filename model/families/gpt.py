"""A causal language model (Radford et al. 2019)."""

import dataclasses
from typing import Any, ClassVar

import jax
from flax import nnx

from model.errors import Range, check_range
from model.families.family import TrunkConfig
from model.families.writing import Writer
from model.use_bias import parse_use_bias
from model.vocabulary import Head, Readout


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(TrunkConfig):
    """A trunk that sees what is behind, and a head for the next token."""

    HEADS: ClassVar = ("next_token",)

    tied: bool = True  # the output head is the embedding, transposed
    logits_soft_cap: float = 0.0  # c of c tanh(logit / c), which bounds the logits; 0: none

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.model.logits_soft_cap", self.logits_soft_cap, Range(1e-6, 1e6, zero="none"))

    def build(self, rngs: nnx.Rngs) -> "GPT":
        """The model of these sizes and choices."""
        return GPT(self, rngs=rngs)


class GPT(Writer):
    """Tokens in, next-token logits out.

    Raises:
        UserError: as a trunk, and for positions outside of the cache.
    """

    config: GPTConfig
    head: Head

    def __init__(self, config: GPTConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        sizes, bias = (config.width, config.vocab_size), parse_use_bias(config.use_bias).head
        self.head = Head(*sizes, tied=config.tied, bias=bias, rngs=rngs)

    def __call__(self, tokens_BT: jax.Array, *inputs: Any, **named: Any) -> jax.Array:
        """Logits of the next token at each place, (B, T, V) in float32: what `readout` makes of the `vectors`, which
        take the same.
        """
        return self.readout()(self.vectors(tokens_BT, *inputs, **named))

    def readout(self) -> Readout:
        """What turns vectors into logits."""
        return self.head.readout(self.embed, self.config.logits_soft_cap)
