"""Masks as the splash kernel wants them: a static part, block by block, and ids of queries and keys for the rest."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as kernel_masks

from model.attention.masks.arrays import Padding, Segments
from model.attention.masks.band import Band, full
from model.attention.masks.base import BlockState, Mask, conjuncts


class Parts(NamedTuple):
    """A mask as an intersection: what is known before the arrays are, packing, padding, and all else."""

    static: Mask
    segments: list[Segments]
    paddings: list[Padding]
    other: list[Mask]


def split(mask: Mask) -> Parts:
    """The parts of a mask; the kernel computes those that have no `other` and at most one of `segments`."""
    parts = Parts(full(), [], [], [])
    for one in conjuncts(mask):
        if one.is_static:
            parts = parts._replace(static=parts.static & one)
        elif isinstance(one, Segments):
            parts.segments.append(one)
        elif isinstance(one, Padding):
            parts.paddings.append(one)
        else:
            parts.other.append(one)
    return parts


def looks_back(mask: Mask) -> bool:
    """Whether a band in the mask hides all keys ahead of their query."""
    return any(isinstance(one, Band) and one.right <= 0 for one in conjuncts(mask))


class BlockMask(kernel_masks.Mask):
    """A static mask of T queries and S keys, padded to `shape`, that is evaluated where the kernel's planner asks.

    Queries from T on are copies of query T - 1, so that they need no block of their own; keys from S on are hidden.
    """

    def __init__(self, mask: Mask, T: int, S: int, shape: tuple[int, int]):
        self._key = mask, T, S, shape

    @property
    def shape(self) -> tuple[int, int]:
        """The padded lengths."""
        return self._key[3]

    def __getitem__(self, where: Any) -> np.ndarray:
        (mask, T, S, _), (rows, columns) = self._key, where
        size = rows.stop - rows.start, columns.stop - columns.start
        i0, i1, j0, j1 = min(rows.start, T - 1), min(rows.stop, T), columns.start, min(columns.stop, S)
        state = mask.state(i0, i1, j0, j1) if j0 < S else BlockState.EMPTY
        if state is BlockState.EMPTY:
            return np.zeros(size, bool)
        if state is BlockState.FULL and j1 == columns.stop:
            return np.ones(size, bool)
        block = np.broadcast_to(np.asarray(mask.block(i0, j0, i1 - i0, j1 - j0)), (1, 1, i1 - i0, j1 - j0))[0, 0]
        block = np.pad(block, ((0, size[0] - (i1 - i0)), (0, 0)), mode="edge")
        return np.pad(block, ((0, 0), (0, size[1] - (j1 - j0))))

    # The planner keeps what it found by these.
    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockMask) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


def segment_ids(parts: Parts, B: int, T: int, S: int, shape: tuple[int, int]) -> kernels.SegmentIds | None:
    """Ids (B, padded T) and (B, padded S) that agree where packing and padding allow it; None if they always do.

    A key that is no token gets one more than the largest id of a query, so ids must be below 2^31 - 1.
    """
    if not parts.segments and not parts.paddings:
        return None
    queries, keys = jnp.zeros((1, T), jnp.int32), jnp.zeros((1, S), jnp.int32)
    if parts.segments:
        queries, keys = (
            jnp.asarray(x, jnp.int32) for x in (parts.segments[0].queries_BT, parts.segments[0].of_keys_BS)
        )
    nobody = jnp.max(queries, axis=1, keepdims=True) + 1
    for padding in parts.paddings:
        keys = jnp.where(padding.valid_BS, keys, nobody)

    def spread(ids: jax.Array, length: int, padded: int) -> jax.Array:
        return jnp.pad(jnp.broadcast_to(ids, (B, length)), ((0, 0), (0, padded - length)))

    return kernels.SegmentIds(spread(queries, T, shape[0]), spread(keys, S, shape[1]))


def computed_blocks(info: Any, dkv: bool = False) -> Iterator[tuple[int, int]]:
    """The (block row, block column) pairs that a kernel with this plan computes."""
    for i, j in np.argwhere(np.asarray(info.block_mask[0]) > 0):
        following = int(info.data_next[0, i, j])
        yield (following, int(j)) if dkv else (int(i), following)
