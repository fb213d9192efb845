"""Ids and positions: their shapes, and that they point into their tables, refused where values are known, else NaN."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.axes import check_axes
from model.errors import UserError


def rows_of(table_ND: jax.Array, index_BT: jax.Array, missing: float = jnp.nan) -> jax.Array:
    """Rows of a table, (B, T, D); `missing` for an index below 0 or beyond it, which XLA would move to the nearest."""
    return jnp.asarray(table_ND).at[index_BT].get(mode="fill", fill_value=missing, wrap_negative_indices=False)


def without_padding(x: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
    """x (B, T, ...), and 0 where a place holds no token; all hold one if `valid_BT` is None."""
    if valid_BT is None:
        return x
    return jnp.where(valid_BT.astype(bool).reshape(*valid_BT.shape, *(1,) * (x.ndim - 2)), x, 0)


def check_within(index_BT: Any, size: int, what: str, rule: str, valid_BT: Any = None) -> None:
    """Refuses an index that is known to lie outside of [0, size); traced arrays, those of other processes, and what
    stands where `valid_BT` is False, pass.

    Raises:
        UserError: the first such index and its place, as `{what} {index} at row {b}, place {t} {rule}`.
    """
    if not _is_known(index_BT) or not _is_known(valid_BT):
        return
    known_BT = np.asarray(jax.device_get(index_BT))
    known_BT = known_BT if valid_BT is None else np.where(np.asarray(jax.device_get(valid_BT)), known_BT, 0)
    if not np.issubdtype(known_BT.dtype, np.integer) or known_BT.size == 0:
        return
    if known_BT.min() >= 0 and known_BT.max() < size:
        return
    place = tuple(np.argwhere((known_BT < 0) | (known_BT >= size))[0].tolist())
    raise UserError(f"{what} {known_BT[place]} at {place} (row, place) {rule}.")


def _is_known(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)


def check_tokens(
    tokens_BT: jax.Array,
    segment_ids_BT: jax.Array | None,
    positions_BT: jax.Array | None,
    vocab_size: int,
    limit: int | None,
    valid_BT: jax.Array | None = None,
) -> None:
    """Refuses the inputs of a model that do not fit each other, its vocabulary, or its `limit` learned positions.

    Raises:
        UserError: arrays of other shapes, more tokens than positions, or an id or position that is outside.
    """
    _check_shapes(tokens_BT, {"segment ids": segment_ids_BT, "positions": positions_BT, "valid places": valid_BT})
    T = tokens_BT.shape[1]
    if limit is not None and limit < T:
        raise UserError(f"{T} tokens are more than the {limit} learned positions; raise --config.data.length.")
    rule = f"is outside of the vocabulary of {vocab_size}; take tokenizer and model from one run"
    check_within(tokens_BT, vocab_size, "token", rule, valid_BT)
    if limit is not None and positions_BT is not None:
        rule = f"has none of the {limit} learned; raise --config.data.length"
        check_within(positions_BT, limit, "position", rule, valid_BT)


def _check_shapes(tokens_BT: jax.Array, others: dict[str, jax.Array | None]) -> None:
    check_axes("tokens", tokens_BT, "BT")
    (B, T), given = jnp.shape(tokens_BT), {name: x for name, x in others.items() if x is not None}
    for name, x_BT in given.items():
        check_axes(name, x_BT, "BT")
        if jnp.shape(x_BT) not in ((B, T), (1, T)):
            raise UserError(
                f"{name} of shape {jnp.shape(x_BT)} do not fit tokens of shape {(B, T)}: give one for each."
            )
