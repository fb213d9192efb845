"""What cached decoding keeps: keys and values of all positions, or of as many as a mask looks back, or a state."""

from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class Seen(NamedTuple):
    """Keys and values that new tokens attend to, both (B, S, G, K), and where each stands.

    Without positions, key s stands at position s; at a negative position there is none.
    """

    k_BSGK: jax.Array
    v_BSGK: jax.Array
    positions_BS: jax.Array | None = None


class Cache(Protocol):
    """What a layer keeps between two calls of its decoding; a pytree."""

    def write(self, k_BTGK: jax.Array, v_BTGK: jax.Array, positions_BT: jax.Array) -> tuple[Self, Seen]:
        """The cache with the new tokens at their positions, and what these attend to, themselves included.

        Positions may differ from row to row; a token outside of the cache, or at a negative position, leaves nothing.
        """


class KVCache(NamedTuple):
    """Keys and values seen so far, both (B, S, G, K); slot s holds the token at position s."""

    k_BSGK: jax.Array
    v_BSGK: jax.Array

    def write(self, k_BTGK: jax.Array, v_BTGK: jax.Array, positions_BT: jax.Array) -> tuple["KVCache", Seen]:
        """The new tokens go to the slots of their positions, and see all slots."""
        cache = KVCache(_put(self.k_BSGK, k_BTGK, positions_BT), _put(self.v_BSGK, v_BTGK, positions_BT))
        return cache, Seen(*cache)


class RollingCache(NamedTuple):
    """Keys and values of the newest R positions, both (B, R, G, K), for a mask that looks back at most R - 1 places.

    Slot s holds the token at positions_BR[:, s], which is s modulo R, or -1: nothing yet.
    """

    k_BRGK: jax.Array
    v_BRGK: jax.Array
    positions_BR: jax.Array

    def write(self, k_BTGK: jax.Array, v_BTGK: jax.Array, positions_BT: jax.Array) -> tuple["RollingCache", Seen]:
        """The new tokens see what was there and each other, whatever of it the newest of them then replace.

        Going back to before the newest position is answered by NaN, once the cache has rolled over what lies before:
        so padding must stand at a negative position.
        """
        R = self.k_BRGK.shape[1]
        # What stands at or behind a new token is written anew, or is no past of it.
        first_B1 = jnp.min(jnp.where(positions_BT < 0, jnp.iinfo(jnp.int32).max, positions_BT), axis=1, keepdims=True)
        before_BR = jnp.where(self.positions_BR < first_B1, self.positions_BR, -1)
        newest_B1 = jnp.max(self.positions_BR, axis=1, keepdims=True)
        lost_B1 = (first_B1 < newest_B1) & (newest_B1 >= R)
        v_BTGK = jnp.where(lost_B1[..., None, None], jnp.nan, v_BTGK)
        k_BSGK, v_BSGK = (jnp.concatenate(parts, axis=1) for parts in ((self.k_BRGK, k_BTGK), (self.v_BRGK, v_BTGK)))
        seen = Seen(k_BSGK, v_BSGK, jnp.concatenate([before_BR, positions_BT], axis=1))
        last_B1 = jnp.max(positions_BT, axis=1, keepdims=True)
        kept_BT = (positions_BT >= 0) & (positions_BT > last_B1 - R)
        slots_BT = jnp.where(kept_BT, positions_BT % R, R)  # R is outside, and is dropped
        pairs = ((self.k_BRGK, k_BTGK), (self.v_BRGK, v_BTGK), (self.positions_BR, positions_BT))
        return RollingCache(*(_put(x, new, slots_BT) for x, new in pairs)), seen


class StateCache(NamedTuple):
    """What a core with a state goes on from, and at which position each row's newest token stands (-1: none yet)."""

    state: Any
    newest_B: jax.Array


def in_order(newest_B: jax.Array, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether each new token is the next of its row, or a first one, or padding, (B, T); and the newest ones then."""

    def one(newest_B: jax.Array, position_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        fits_B = (position_B <= 0) | (position_B == newest_B + 1)
        return jnp.where(position_B < 0, newest_B, position_B), fits_B

    newest_B, fits_TB = jax.lax.scan(one, newest_B, positions_BT.astype(newest_B.dtype).T)
    return fits_TB.T, newest_B


def empty_cache(shape: tuple[int, int, int, int, int], length: int, dtype: DTypeLike) -> Any:
    """Empty caches of n layers for `length` positions, by shape (n, B, S, G, K): rolling where S is less than that."""
    zeros = jnp.zeros(shape, dtype)
    if shape[2] >= length:
        return KVCache(zeros, zeros)
    return RollingCache(zeros, zeros, jnp.full(shape[:3], -1, jnp.int32))


def _put(x_BS: jax.Array, new_BT: jax.Array, slots_BT: jax.Array) -> jax.Array:
    rows_B1 = jnp.arange(len(slots_BT))[:, None]
    return x_BS.at[rows_B1, slots_BT].set(new_BT, mode="drop", wrap_negative_indices=False)
