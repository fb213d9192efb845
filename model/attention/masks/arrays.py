"""Masks that hold arrays: packing, padding, and any pattern at all."""

import jax
import jax.numpy as jnp
import numpy as np

from model.attention.masks.base import Array, Index, Mask
from model.attention.values import array, value
from model.errors import UserError

_FIRST = np.zeros((1, 1, 1, 1), np.int32)


@value
class Segments(Mask):
    """Query and key must carry the same id: ids_BT of the queries, ids_BS of the keys if they are others (packing)."""

    queries_BT: Array = array("batch", None)
    keys_BS: Array | None = array("batch", None, default=None)

    def at(self, i: Index, j: Index) -> Index:
        """Gathers both ids; `i` and `j` must not vary over heads."""
        return gather(self.queries_BT, i) == gather(self.of_keys_BS, j)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """Ids of other lengths."""
        return misfit(self.queries_BT, (B, T), "queries") or misfit(self.of_keys_BS, (B, S), "keys")

    @property
    def of_keys_BS(self) -> Array:
        """The ids of the keys."""
        return self.queries_BT if self.keys_BS is None else self.keys_BS


@value
class Padding(Mask):
    """Only keys that are real may be seen: valid_BS."""

    valid_BS: Array = array("batch", None)

    def at(self, i: Index, j: Index) -> Index:
        """Gathers the keys' flags; all queries see the same keys."""
        return gather(self.valid_BS, j) & (i >= 0)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """Flags of another length."""
        return misfit(self.valid_BS, (B, S), "keys")


@value
class Explicit(Mask):
    """An array of booleans (B, H, T, S), any axis of which may be 1: any pattern, also one for each head."""

    allowed_BHTS: Array = array("batch", "heads", None, None)

    def at(self, i: Index, j: Index) -> Index:
        """Gathers entries; indices beyond the array answer as its last one does."""
        return gather_BHTS(self.allowed_BHTS, i, j)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """An array that does not broadcast to (B, H, T, S)."""
        return misfit(self.allowed_BHTS, (B, H, T, S), "rows, heads, queries and keys")


def segments(queries_BT: Array, keys_BS: Array | None = None) -> Mask:
    """Tokens see only tokens of the same id (the keys' ids default to the queries')."""
    return Segments(queries_BT, keys_BS)


def padding(valid_BS: Array) -> Mask:
    """Keys whose flag is False, or 0, are seen by nobody."""
    return Padding(_flags(valid_BS))


def explicit(allowed_BHTS: Array) -> Mask:
    """Any pattern, as flags (B, H, T, S), hidden where False or 0; an axis of 1 stands for any length, as in jax.nn.

    Raises:
        UserError: the array is not of rank 4.
    """
    if np.ndim(allowed_BHTS) != 4:
        raise UserError(
            f"explicit(array of shape {np.shape(allowed_BHTS)}) needs four axes (B, H, T, S), each may be 1: reshape."
        )
    return Explicit(_flags(allowed_BHTS))


def gather(values_BS: Array, index: Index) -> jax.Array:
    """Row b's values at its indices (B or 1, 1, rows or 1, columns or 1); an index beyond the end is the last one."""
    if len(index) > 1:
        rows = np.arange(values_BS.shape[0])[:, None, None, None]
        return jnp.asarray(values_BS).at[rows, index].get(mode="clip")
    # The same for all rows: told so, the compiler keeps rows that are split over devices where they are.
    return jnp.asarray(values_BS).at[:, index[0]].get(mode="clip")


def gather_BHTS(values_BHTS: Array, i: Index, j: Index) -> jax.Array:
    """Entries of an array (B, H, T, S) at queries i and keys j, as `gather`; axes of 1 are left to broadcasting."""
    i, j = (index if length > 1 else _FIRST for index, length in zip((i, j), values_BHTS.shape[2:], strict=True))
    if len(i) == len(j) == 1:
        return jnp.asarray(values_BHTS).at[:, :, i[0, 0], j[0, 0]].get(mode="clip")
    (B, H), (rows, heads) = values_BHTS.shape[:2], np.indices(values_BHTS.shape[:2])
    places = rows.reshape(B, H, 1, 1), heads.reshape(B, H, 1, 1), i, j
    return jnp.asarray(values_BHTS).at[places].get(mode="clip")


def misfit(content: Array, sizes: tuple[int, ...], what: str) -> str | None:
    """The part of a sentence that says so if an array does not broadcast to those sizes."""
    shape = tuple(content.shape)
    if len(shape) == len(sizes) and all(one in (1, size) for one, size in zip(shape, sizes, strict=True)):
        return None
    made, asked = (" x ".join(map(str, numbers)) for numbers in (shape, sizes))
    return f"a mask made for {made} ({what}) cannot serve {asked}"


def _flags(array: Array) -> Array:
    # `~` and `&` of numbers would work on their bits.
    return array if array.dtype == bool else array != 0
