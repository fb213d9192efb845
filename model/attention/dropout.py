"""Dropout of attention weights, which any block can draw for itself."""

import jax
import jax.numpy as jnp
import numpy as np

from model.attention.masks.base import Index
from model.attention.values import array, static, value


@value
class Dropout:
    """Drops weights with probability `rate`, entry by entry from (key of row and head, query, key) alone.

    So the draw of a block needs no other block, and is the same in every core, on every mesh and for every split of
    the batch. Each entry gets 32 bits: a multiply and xor-shift hash (the finaliser of MurmurHash3, thrice) of its
    indices and the 64 random bits of its row and head.
    """

    rate: float = static()
    keys_BH2: jax.Array = array("batch", "heads", None)

    def keep(self, i: Index, j: Index) -> jax.Array:
        """Which weights are kept, (B, H, rows, columns), for query indices (.., rows, 1) and key indices (.., 1,
        columns).
        """
        first_BH11, second_BH11 = (self.keys_BH2[:, :, None, None, n] for n in (0, 1))
        rows = _mixed(jnp.asarray(i).astype(jnp.uint32) * np.uint32(0x9E3779B1) + first_BH11)
        bits = _mixed(_mixed(rows ^ (jnp.asarray(j).astype(jnp.uint32) + second_BH11)) + second_BH11)
        return bits >= np.uint32(min(round(self.rate * 2**32), 2**32 - 1))


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def dropout(rate: float, keys_B: jax.Array | None, num_heads: int) -> Dropout | None:
    """The draw for rows with one random key each; None without keys or at rate 0."""
    if keys_B is None or rate == 0.0:
        return None
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    keys_BH = fold(keys_B, np.arange(num_heads))
    return Dropout(rate, jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (2,))))(keys_BH))
