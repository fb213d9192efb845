"""Trunks that write: cached decoding, token by token."""

import jax
import jax.numpy as jnp

from model.attention import parse_mask
from model.bounds import check_within
from model.cycles import Cycle
from model.families.trunk import Trunk
from model.stack.caches import Caches, empty_caches
from model.taps import untouched
from model.vocabulary import Readout


class Writer(Trunk):
    """A trunk whose `readout` gives logits of the next token.

    Raises:
        UserError: as a trunk, and for positions outside of the cache.
    """

    def readout(self) -> Readout:
        """What turns vectors into logits."""
        raise NotImplementedError

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
        return self.readout()(self.normed(x_BTD, untouched)), cache

    def init_cache(self, batch_size: int, length: int) -> Caches:
        """An empty cache for `batch_size` sequences of at most `length` tokens; a layer that looks back less keeps
        less.
        """
        reaches = self.config.cycles["mask"].map(lambda one: parse_mask(one).reach)
        return empty_caches(self.config, batch_size, length, reaches)

    def cache_bytes(self, length: int) -> dict[str, Cycle[int]]:
        """As that of other trunks: what `init_cache` makes."""
        return {"self": jax.eval_shape(lambda: self.init_cache(1, length)).layer_bytes}
