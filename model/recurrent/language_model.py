"""A causal language model without attention: layers of LSTM or GRU (Mikolov et al. 2010; Zaremba et al. 2014)."""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.cache import in_order
from model.axes import pin
from model.bounds import check_tokens, without_padding
from model.layers import dropout
from model.parameters import Module
from model.recurrent.cells import Cell
from model.recurrent.config import RecurrentKeys, cell_keys
from model.recurrent.documents import Documents, find_documents
from model.recurrent.layers import Layers
from model.stack.context import folded
from model.taps import Tap, Taps, untouched
from model.vocabulary import Embedding, Head, Readout

_OUTPUT_SITE = 2**31  # the layer number under which the last states draw their dropout: no network is that deep


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentConfig(RecurrentKeys):
    """Layers of cells, each of which reads the states of the one below, and a head for the next token."""

    HEADS: ClassVar = ("next_token", "continued")

    def build(self, rngs: nnx.Rngs) -> "Recurrent":
        """The model of these sizes and choices."""
        return Recurrent(self, rngs=rngs)


class CarryCache(NamedTuple):
    """What decoding goes on from: the carry of all layers, (L, B, H) each, and the position of each row's newest token
    (-1: none yet).
    """

    carry: Any
    newest_B: jax.Array

    def taken(self, rows_B: jax.Array) -> "CarryCache":
        """The cache of these rows, in their order; a row may be taken several times, as when a beam splits."""
        return CarryCache(jax.tree.map(lambda x: x[:, rows_B], self.carry), self.newest_B[rows_B])


class Recurrent(Module):
    """Tokens in, next-token logits out.

    Raises:
        UserError: see RecurrentConfig; when called, token ids outside of the vocabulary. Where they are only known on
            the device, the outputs are NaN from there to the end of the document.
    """

    def __init__(self, config: RecurrentConfig, *, rngs: nnx.Rngs):
        self.config = config
        D, V = config.width, config.vocab_size
        # Scaled, so that cells get inputs of variance one, and the tied head logits of it.
        self.embed = Embedding(V, D, dtype=jnp.dtype(config.dtype), rngs=rngs, scaled=True)
        self.stack = Layers(
            config.num_layers, lambda: Cell(config.cell, D, D, **cell_keys(config, rngs)), config.dropout
        )
        self.head = Head(D, V, tied=config.tied, bias=False, rngs=rngs)

    def __call__(self, *inputs: Any, **named: Any) -> jax.Array:
        """Logits of the next token at each place, (B, T, V) in float32: what `readout` makes of the `vectors`, which
        take the same.
        """
        return self.readout()(self.vectors(*inputs, **named))

    def vectors(
        self,
        tokens_BT: jax.Array,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        *,
        valid_BT: jax.Array | None = None,
        taps: Taps | None = None,
    ) -> jax.Array:
        """What the model knows at each place, (B, T, D).

        Where `segment_ids_BT` change, a document begins, which knows nothing of those before; `positions_BT` tell a
        network that goes step by step nothing. `dropout_keys_B` (one key per row) turns dropout on. Where `valid_BT`
        is False is padding, whatever its token: nothing of it is known to any token, and what is returned there is
        finite and means nothing.
        """
        check_tokens(tokens_BT, segment_ids_BT, positions_BT, self.config.vocab_size, None, valid_BT)
        documents, empty = find_documents(tokens_BT.shape, segment_ids_BT, valid_BT), self.stack.empty(len(tokens_BT))
        taps = taps or Taps()
        return taps("vectors", self._run(tokens_BT, documents, empty, dropout_keys_B, tap=taps)[0])

    def continued(
        self,
        tokens_BT: jax.Array,
        carry: Any,
        segment_ids_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        dropout_keys_B: jax.Array | None = None,
        *,
        valid_BT: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        """The `vectors` of rows that go on from a carry, and the carry after them, to go on from in the next window.

        Its arrays are (B, L, H), as those of `empty_carry`. A row whose first token has position 0 begins a document,
        whatever is carried to it; without positions all rows go on. Inside of rows, segment ids tell.
        """
        check_tokens(tokens_BT, segment_ids_BT, positions_BT, self.config.vocab_size, None, valid_BT)
        first = False if positions_BT is None else positions_BT == 0
        documents = find_documents(tokens_BT.shape, segment_ids_BT, valid_BT, first)
        x_BTD, carry = self._run(tokens_BT, documents, _turned(carry), dropout_keys_B)
        return x_BTD, _turned(carry)

    def empty_carry(self, rows: int) -> Any:
        """The carry of so many rows before their first token: zeros (B, L, H)."""
        return _turned(self.stack.empty(rows))

    def readout(self) -> Readout:
        """What turns vectors into logits."""
        return self.head.readout(self.embed, 0.0)

    def decode(self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: CarryCache) -> tuple[jax.Array, CarryCache]:
        """Logits (B, T, V) of new tokens at absolute positions, and the cache with them in it.

        Each row takes its tokens in order, from 0 on; what is out of order it answers by NaN. A token at position -1
        is padding: nothing of it is kept, and its logits are NaN.
        """
        check_tokens(tokens_BT, None, positions_BT, self.config.vocab_size, None)
        fits_BT, newest_B = in_order(cache.newest_B, positions_BT)
        documents = Documents(positions_BT == 0, jnp.zeros_like(fits_BT), positions_BT >= 0)
        x_BTD, carry = self._run(tokens_BT, documents, cache.carry, None, jnp.where(fits_BT, 0, jnp.nan))
        x_BTD = jnp.where(documents.valid_BT[..., None], x_BTD, jnp.nan)
        return self.readout()(x_BTD), CarryCache(carry, newest_B)

    def init_cache(self, batch_size: int, length: int) -> CarryCache:
        """An empty cache for `batch_size` sequences; it is as large for every `length`."""
        return CarryCache(self.stack.empty(batch_size), jnp.full(batch_size, -1, jnp.int32))

    def _run(
        self,
        tokens_BT: jax.Array,
        documents: Documents,
        carry: Any,
        keys_B: jax.Array | None,
        error_BT: jax.Array | None = None,
        tap: Tap = untouched,
    ) -> tuple[jax.Array, Any]:
        x_BTD = tap("embedding", self.embed(tokens_BT))
        x_BTD = x_BTD if error_BT is None else x_BTD + error_BT[..., None].astype(x_BTD.dtype)
        x_BTD, carry = self.stack(without_padding(x_BTD, documents.valid_BT), documents, carry, keys_B)
        x_BTD = dropout(x_BTD, self.config.dropout, folded(keys_B, _OUTPUT_SITE), 0)
        return pin(x_BTD, "batch", "length", None), carry


def _turned(carry: Any) -> Any:
    """From (B, L, H) to (L, B, H), and back."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1), carry)
