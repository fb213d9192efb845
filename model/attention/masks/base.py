"""Which keys a query may look at, as values: `causal() & window(128) & segments(ids)`.

A mask is asked about blocks: `block(i0, j0, rows, columns)` is the part that begins at query i0 and key j0, and
`state(...)` tells from shapes alone whether a part is empty, full or mixed. Nothing T x S exists until somebody asks
for it. Index arithmetic is written with operators, so that NumPy indices give NumPy answers, before anything is traced.
"""

import enum
import functools
import math
from collections.abc import Iterator

import jax
import numpy as np

from model.attention.values import value

Array = jax.Array | np.ndarray
Index = Array
Start = int | jax.Array


class BlockState(enum.Enum):
    """What is known of a block before anything runs; MIXED is always a safe answer."""

    EMPTY = "empty"
    FULL = "full"
    MIXED = "mixed"


class Mask:
    """The base of all masks: `&`, `|` and `~` combine them."""

    def at(self, i: Index, j: Index) -> Index:
        """Whether query i may see key j, for index arrays of rank 4 that broadcast to (B, H, T, S)."""
        raise NotImplementedError

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """EMPTY or FULL for queries i0 <= i < i1 and keys j0 <= j < j1 only where that holds for every row and head."""
        return BlockState.MIXED

    def block(self, i0: Start, j0: Start, rows: int, columns: int) -> Index:
        """Booleans that broadcast to (B, H, rows, columns); the starts may be traced."""
        return self.at(*indices(i0, j0, rows, columns))

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """What, if anything, is wrong with these sizes: 'a mask made for 2 x 5 (keys) cannot serve 2 x 7'."""
        return None

    @property
    def is_static(self) -> bool:
        """Whether the mask is known before the arrays are."""
        return not jax.tree.leaves(self)

    @property
    def is_relative(self) -> bool:
        """Whether it depends on the distance i - j alone, and not on where query and key stand."""
        return False

    @property
    def reach(self) -> float:
        """No key is seen from farther away than this."""
        return math.inf

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)

    def __invert__(self) -> "Mask":
        return Not(self)


def indices(i0: Start, j0: Start, rows: int, columns: int) -> tuple[Index, Index]:
    """The queries (1, 1, rows, 1) and the keys (1, 1, 1, columns) of a block."""
    return (i0 + np.arange(rows))[None, None, :, None], (j0 + np.arange(columns))[None, None, None, :]


@value
class And(Mask):
    """Both masks allow it."""

    first: Mask
    second: Mask

    def at(self, i: Index, j: Index) -> Index:
        """Elementwise and."""
        return self.first.at(i, j) & self.second.at(i, j)

    def block(self, i0: Start, j0: Start, rows: int, columns: int) -> Index:
        """Elementwise and of the two blocks."""
        return self.first.block(i0, j0, rows, columns) & self.second.block(i0, j0, rows, columns)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Empty if one is, full if both are."""
        states = {self.first.state(i0, i1, j0, j1), self.second.state(i0, i1, j0, j1)}
        if BlockState.EMPTY in states:
            return BlockState.EMPTY
        return states.pop() if len(states) == 1 else BlockState.MIXED

    @property
    def reach(self) -> float:
        """The shorter one."""
        return min(self.first.reach, self.second.reach)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """That of either."""
        return self.first.misfit(B, H, T, S) or self.second.misfit(B, H, T, S)


@value
class Or(Mask):
    """At least one of the masks allows it."""

    first: Mask
    second: Mask

    def at(self, i: Index, j: Index) -> Index:
        """Elementwise or."""
        return self.first.at(i, j) | self.second.at(i, j)

    def block(self, i0: Start, j0: Start, rows: int, columns: int) -> Index:
        """Elementwise or of the two blocks."""
        return self.first.block(i0, j0, rows, columns) | self.second.block(i0, j0, rows, columns)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Full if one is, empty if both are."""
        states = {self.first.state(i0, i1, j0, j1), self.second.state(i0, i1, j0, j1)}
        if BlockState.FULL in states:
            return BlockState.FULL
        return states.pop() if len(states) == 1 else BlockState.MIXED

    @property
    def reach(self) -> float:
        """The longer one."""
        return max(self.first.reach, self.second.reach)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """That of either."""
        return self.first.misfit(B, H, T, S) or self.second.misfit(B, H, T, S)


@value
class Not(Mask):
    """What the other mask forbids."""

    mask: Mask

    def at(self, i: Index, j: Index) -> Index:
        """Elementwise not."""
        return ~self.mask.at(i, j)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Full where the other is empty, and the other way round."""
        turned = {BlockState.EMPTY: BlockState.FULL, BlockState.FULL: BlockState.EMPTY}
        state = self.mask.state(i0, i1, j0, j1)
        return turned.get(state, state)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """That of the other."""
        return self.mask.misfit(B, H, T, S)


def exact_state(mask: Mask, i0: int, i1: int, j0: int, j1: int) -> BlockState:
    """The state of a block; of a static mask the true one, counted in NumPy where the mask itself cannot tell."""
    state = mask.state(i0, i1, j0, j1)
    if state is not BlockState.MIXED or not mask.is_static:
        return state
    return _counted(mask, i0, i1, j0, j1)


@functools.lru_cache(maxsize=2**17)
def _counted(mask: Mask, i0: int, i1: int, j0: int, j1: int) -> BlockState:
    block = np.asarray(mask.block(i0, j0, i1 - i0, j1 - j0))
    return BlockState.FULL if block.all() else BlockState.MIXED if block.any() else BlockState.EMPTY


def conjuncts(mask: Mask) -> Iterator[Mask]:
    """The parts that are joined by `&` at the top of a mask."""
    if isinstance(mask, And):
        yield from conjuncts(mask.first)
        yield from conjuncts(mask.second)
    else:
        yield mask
