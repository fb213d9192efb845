"""Bands: full, causal and window masks, whose blocks tell by their distances what they hide."""

import math

from model.attention.masks.base import BlockState, Index, Mask
from model.attention.values import static, value
from model.errors import UserError


@value
class Band(Mask):
    """Keys from i - left to i + right, both included: full, causal and window masks are bands."""

    left: float = static()
    right: float = static()

    def __and__(self, other: Mask) -> Mask:
        # An intersection of bands is a band, so that its states stay exact.
        if isinstance(other, Band):
            return Band(min(self.left, other.left), min(self.right, other.right))
        return super().__and__(other)

    @property
    def is_relative(self) -> bool:
        """A band is one of distances."""
        return True

    @property
    def reach(self) -> float:
        """The longer side."""
        return max(self.left, self.right)

    def at(self, i: Index, j: Index) -> Index:
        """-right <= i - j <= left; an unbounded side is not compared."""
        distance = i - j
        if self.left == math.inf:
            return distance >= -self.right
        if self.right == math.inf:
            return distance <= self.left
        return (distance >= -self.right) & (distance <= self.left)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact: it compares the smallest and the largest distance i - j of the block with the band."""
        least, most = i0 - (j1 - 1), (i1 - 1) - j0
        if -self.right <= least and most <= self.left:
            return BlockState.FULL
        return BlockState.EMPTY if most < -self.right or least > self.left else BlockState.MIXED


def full() -> Mask:
    """Every query sees every key."""
    return Band(math.inf, math.inf)


def causal() -> Mask:
    """A query sees the keys up to its own index: where T and S differ, the first query stands at the first key."""
    return Band(math.inf, 0)


def causal_at_end(num_queries: int, num_keys: int) -> Mask:
    """Causal, with the last query at the last key, as for T queries that go on where S - T keys were before.

    With more queries than keys, the first T - S see nothing. (flash-attention from 2.1 on aligns so; jax.nn and
    `causal` align the first.)
    """
    return Band(math.inf, num_keys - num_queries)


def window(left: int, right: int | None = None) -> Mask:
    """A query sees itself, `left` keys before it and `right` after it (`right` defaults to `left`).

    Raises:
        UserError: a side is negative, or both are 0, which leaves each query alone with itself.
    """
    after = left if right is None else right
    if left < 0 or after < 0 or left + after == 0:
        asked = f"window({left})" if right is None else f"window({left}, {right})"
        raise UserError(f"{asked} sees no neighbour; give --config.model.mask sides >= 0 that are not both 0.")
    return Band(left, after)
