"""Masks that speak of places, in windows of packed documents: a place is where a token stands in its document."""

import math

from model.attention.masks.arrays import gather, misfit
from model.attention.masks.band import Band
from model.attention.masks.base import And, Array, Index, Mask, Not, Or
from model.attention.values import array, value


@value
class Placed(Mask):
    """A mask asked for places: queries_BT are those of the queries, keys_BS those of the keys if they are others.

    Nothing is known of a block before anything runs: a document may begin anywhere.
    """

    mask: Mask
    queries_BT: Array = array("batch", None)
    keys_BS: Array | None = array("batch", None, default=None)

    def at(self, i: Index, j: Index) -> Index:
        """Gathers both places; `i` and `j` must not vary over heads."""
        return self.mask.at(gather(self.queries_BT, i), gather(self.of_keys_BS, j))

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """Places of other lengths, or a mask that was made for less than a window."""
        wrong = misfit(self.queries_BT, (B, T), "queries") or misfit(self.of_keys_BS, (B, S), "keys")
        return wrong or self.mask.misfit(B, H, T, S)

    @property
    def of_keys_BS(self) -> Array:
        """The places of the keys."""
        return self.queries_BT if self.keys_BS is None else self.keys_BS


def by_place(mask: Mask, queries_BT: Array, keys_BS: Array | None = None) -> Mask:
    """The mask for tokens that stand at these places of their documents (the keys' default to the queries').

    Only what speaks of places is changed. Within a document a distance is the same in places and in indices, so that a
    band keeps what is known of its blocks, and what a mask of arrays says is said of indices. Across documents the
    result means nothing: join it with `segments`.
    """
    if isinstance(mask, And):
        return by_place(mask.first, queries_BT, keys_BS) & by_place(mask.second, queries_BT, keys_BS)
    if isinstance(mask, Or):
        return by_place(mask.first, queries_BT, keys_BS) | by_place(mask.second, queries_BT, keys_BS)
    if isinstance(mask, Not):
        return ~by_place(mask.mask, queries_BT, keys_BS)
    if mask.is_relative or not mask.is_static:
        return mask
    placed = Placed(mask, queries_BT, keys_BS)
    return placed if mask.reach == math.inf else Band(mask.reach, mask.reach) & placed


def speaks_of_places(mask: Mask) -> bool:
    """Whether any part of the mask is asked for places."""
    if isinstance(mask, And | Or):
        return speaks_of_places(mask.first) or speaks_of_places(mask.second)
    return speaks_of_places(mask.mask) if isinstance(mask, Not) else isinstance(mask, Placed)
