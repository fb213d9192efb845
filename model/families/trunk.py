"""Tokens in, vectors out: what every family that reads tokens is built on."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import MultiHeadAttention, Scores
from model.cycles import Cycle
from model.families.family import TrunkConfig
from model.families.side import Side
from model.stack.context import Context
from model.taps import Taps
from model.vocabulary import EMBEDDINGS, Embedding, Head


class Trunk(Side):
    """Tokens in, what is known at each place out.

    Raises:
        UserError: see TrunkConfig; when called, a sequence longer than learned positions, and token ids or positions
            outside of their tables. Where they are only known on the device, the outputs are NaN.
    """

    config: TrunkConfig
    head: Head | None  # for logits of tokens

    def __init__(self, config: TrunkConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        sizes, scaled = (config.vocab_size, config.width), EMBEDDINGS[config.embedding].scaled
        self.embed = Embedding(*sizes, dtype=jnp.dtype(config.dtype), rngs=rngs, scaled=scaled)

    def vectors(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
        taps: Taps | None = None,
        **more: Any,
    ) -> jax.Array:
        """What the model knows at each place, (B, T, D).

        `segment_ids_BT` keeps packed documents apart, `positions_BT` restarts their positions, of which masks and
        biases speak too, and `dropout_keys_B` (one key per row) turns dropout on. Where `valid_BT` is False is padding,
        whatever its token and position: no token sees it, and what is returned there is finite and means nothing.
        `more` is what a family embeds besides.
        """
        given, taps = (tokens_BT, segment_ids_BT, positions_BT, dropout_keys_B, valid_BT), taps or Taps()
        x_BTD, contexts = self._start(*given, tap=taps, **more)
        return taps("vectors", self.run(x_BTD, contexts, taps))

    def _start(self, *inputs: Any, **named: Any) -> tuple[jax.Array, Cycle[Context]]:
        return self.start(self.embed, self.config.vocab_size, *inputs, **named)

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
