"""Ids and positions outside of the table that they point into: refused where their values are known, NaN elsewhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import UserError


def rows_of(table_ND: jax.Array, index_BT: jax.Array) -> jax.Array:
    """Rows of a table, (B, T, D); NaN for an index below 0 or beyond it, which XLA would move to the nearest row."""
    return table_ND.at[index_BT].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def check_within(index_BT: Any, size: int, what: str, rule: str) -> None:
    """Refuses an index that is known to lie outside of [0, size); traced arrays, and those of other processes, pass.

    Raises:
        UserError: the first such index and its place, as `{what} {index} at row {b}, place {t} {rule}`.
    """
    if isinstance(index_BT, jax.core.Tracer) or not getattr(index_BT, "is_fully_addressable", True):
        return
    known_BT = np.asarray(jax.device_get(index_BT))
    if not np.issubdtype(known_BT.dtype, np.integer) or known_BT.size == 0:
        return
    if known_BT.min() >= 0 and known_BT.max() < size:
        return
    place = tuple(np.argwhere((known_BT < 0) | (known_BT >= size))[0].tolist())
    raise UserError(f"{what} {known_BT[place]} at {place} (row, place) {rule}.")
