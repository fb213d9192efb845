"""Where documents begin and end in rows of tokens, and where there is none."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Documents(NamedTuple):
    """Which tokens are the first of a document, which the last, and which places hold a token at all, all (B, T)."""

    begins_BT: jax.Array
    ends_BT: jax.Array
    valid_BT: jax.Array

    def backwards(self) -> "Documents":
        """Of the rows read from the last place to the first."""
        return Documents(*(x_BT[:, ::-1] for x_BT in (self.ends_BT, self.begins_BT, self.valid_BT)))

    def steps(self) -> tuple[jax.Array, jax.Array]:
        """(begins, valid), step by step: both (T, B, 1)."""
        return self.begins_BT.T[..., None], self.valid_BT.T[..., None]


def find_documents(
    shape: tuple[int, ...],
    segment_ids_BT: jax.Array | None,
    valid_BT: jax.Array | None,
    first: jax.Array | bool = True,
) -> Documents:
    """The documents of rows of this shape: neighbours of one segment id, over padding too; without ids, whole rows.

    `first`: whether a row's first token begins one; where it is (B, T), what stands at that token says so.
    """
    ids_BT = jnp.zeros(shape, jnp.int32) if segment_ids_BT is None else jnp.broadcast_to(segment_ids_BT, shape)
    all_BT = jnp.ones(shape, bool) if valid_BT is None else jnp.broadcast_to(valid_BT, shape).astype(bool)
    ends_BT = _begins(ids_BT[:, ::-1], all_BT[:, ::-1], True)[:, ::-1]
    return Documents(_begins(ids_BT, all_BT, first), ends_BT, all_BT)


def _begins(ids_BT: jax.Array, valid_BT: jax.Array, first: jax.Array | bool) -> jax.Array:
    """The tokens before which there is one of another segment, and, as `first` says, those before which is none."""
    newest_BT = jax.lax.cummax(jnp.where(valid_BT, jnp.arange(ids_BT.shape[1])[None], -1), axis=1)
    before_BT = jnp.pad(newest_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    other_BT = jnp.take_along_axis(ids_BT, jnp.maximum(before_BT, 0), axis=1) != ids_BT
    return valid_BT & jnp.where(before_BT < 0, first, other_BT)
