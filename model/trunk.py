"""Tokens in, vectors out: what every family that reads tokens is built on."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.cycles import Cycle
from model.family import TrunkConfig
from model.side import Side
from model.stack.context import Context
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
        head_gate_LH: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
        **more: Any,
    ) -> jax.Array:
        """What the model knows at each place, (B, T, D).

        `segment_ids_BT` keeps packed documents apart, `positions_BT` restarts their positions, of which masks and
        biases speak too, `dropout_keys_B` (one key per row) turns dropout on, and `head_gate_LH` weighs each head's
        output. Where `valid_BT` is False is padding, whatever its token and position: no token sees it, and what is
        returned there is finite and means nothing. `more` is what a family embeds besides.
        """
        x_BTD, contexts = self._start(tokens_BT, segment_ids_BT, positions_BT, dropout_keys_B, valid_BT, **more)
        return self.normed(self.stack(x_BTD, contexts, head_gate_LH))

    def _start(self, *inputs: Any, **named: Any) -> tuple[jax.Array, Cycle[Context]]:
        return self.start(self.embed, self.config.vocab_size, *inputs, **named)
