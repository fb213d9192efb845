"""Keys that no query may see: what they hold, be it NaN, is nobody's business."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np

from model.attention.masks.arrays import Padding, Segments
from model.attention.masks.base import And, BlockState, Index, Mask, Or, conjuncts
from model.attention.masks.places import Placed

_ROWS = 128  # queries that are asked at a time
_COLUMNS = 256


def seen_keys(mask: Mask, T: int, S: int) -> Index | None:
    """Which keys any of the queries 0 to T - 1 may see, (B or 1, H or 1, S or 1); None: all, known before tracing.

    What a padding hides, it hides from every query, and where each query sees itself, all keys are seen. Only what is
    left is asked block by block, in memory linear in T.
    """
    parts = list(conjuncts(mask))
    found: list[Index] = [one.valid_BS[:, None] for one in parts if isinstance(one, Padding)]
    rest = [one for one in parts if not isinstance(one, Padding)]
    if rest and not (T == S and all(_sees_itself(one, T) for one in rest)):
        both = functools.reduce(operator.and_, rest)
        seen = _counted(both, T, S) if both.is_static else _asked(both, T, S)
        found += [] if isinstance(seen, np.ndarray) and seen.all() else [seen]
    return functools.reduce(operator.and_, found) if found else None


def _sees_itself(mask: Mask, T: int) -> bool:
    """Whether it is certain that each query sees the key at its own index."""
    if mask.is_static:
        return _diagonal(mask, T)
    if isinstance(mask, And):
        return _sees_itself(mask.first, T) and _sees_itself(mask.second, T)
    if isinstance(mask, Or):
        return _sees_itself(mask.first, T) or _sees_itself(mask.second, T)
    if isinstance(mask, Placed):
        return mask.keys_BS is None and mask.mask.is_static and _diagonal(mask.mask, T)
    return isinstance(mask, Segments) and mask.keys_BS is None


@functools.lru_cache(maxsize=2**10)
def _diagonal(mask: Mask, T: int) -> bool:
    i = np.arange(T)[None, None, None]
    return bool(np.all(np.asarray(mask.at(i, i))))


@functools.lru_cache(maxsize=2**10)
def _counted(mask: Mask, T: int, S: int) -> np.ndarray:
    """The answer of a static mask, in NumPy, (1, 1, S)."""
    seen_S = np.zeros(S, bool)
    for j0 in range(0, S, _COLUMNS):
        strip = seen_S[j0 : j0 + _COLUMNS]
        # From the last queries on, which see most keys where queries look back.
        for i0 in range((T - 1) // _ROWS * _ROWS, -1, -_ROWS):
            rows = min(_ROWS, T - i0)
            state = mask.state(i0, i0 + rows, j0, j0 + len(strip))
            if state is BlockState.MIXED:
                strip |= np.asarray(mask.block(i0, j0, rows, len(strip))).any(axis=(0, 1, 2))
            strip |= state is BlockState.FULL
            if strip.all():
                break
    return seen_S[None, None]


def _asked(mask: Mask, T: int, S: int) -> jax.Array:
    """The answer of a mask of arrays, when the program runs."""
    rows = min(T, _ROWS)
    starts = [*range(0, T - rows, rows), T - rows]

    def one(i0: jax.Array) -> jax.Array:
        return jnp.any(mask.block(i0, 0, rows, S), axis=2)

    return jnp.any(jax.lax.map(one, jnp.asarray(starts, jnp.int32)), axis=0)


def seen_from(mask: Mask, positions_BT: Index, j: Index) -> jax.Array:
    """`seen_keys` for queries at given positions, which are few, and keys j (B or 1, 1, 1, S): (B, H or 1, S)."""
    return jnp.any(mask.at(positions_BT[:, None, :, None], j) & (j >= 0), axis=2)
