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
import jax.numpy as jnp
import numpy as np

from model.attention.values import array, static, value
from model.errors import UserError

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

    def __and__(self, other: "Mask") -> "Mask":
        return _both(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)

    def __invert__(self) -> "Mask":
        return Not(self)


def indices(i0: Start, j0: Start, rows: int, columns: int) -> tuple[Index, Index]:
    """The queries (1, 1, rows, 1) and the keys (1, 1, 1, columns) of a block."""
    return (i0 + np.arange(rows))[None, None, :, None], (j0 + np.arange(columns))[None, None, None, :]


@value
class Band(Mask):
    """Keys from i - left to i + right, both included: full, causal and window masks are bands."""

    left: float = static()
    right: float = static()

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


@value
class Segments(Mask):
    """Query and key must carry the same id: ids_BT of the queries, ids_BS of the keys (packing)."""

    queries_BT: Array = array("batch", None)
    keys_BS: Array = array("batch", None)

    def at(self, i: Index, j: Index) -> Index:
        """Gathers both ids; `i` and `j` must not vary over heads."""
        return gather(self.queries_BT, i) == gather(self.keys_BS, j)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """Ids of other lengths."""
        return misfit(self.queries_BT, (B, T), "queries") or misfit(self.keys_BS, (B, S), "keys")


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
    """An array of booleans (B or 1, H or 1, T, S): any pattern, also a different one for each head."""

    allowed_BHTS: Array = array("batch", "heads", None, None)

    def at(self, i: Index, j: Index) -> Index:
        """Gathers entries; indices beyond the array answer as its last one does."""
        return gather_BHTS(self.allowed_BHTS, i, j)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """An array that does not broadcast to (B, H, T, S)."""
        return misfit(self.allowed_BHTS, (B, H, T, S), "rows, heads, queries and keys")


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


def full() -> Mask:
    """Every query sees every key."""
    return Band(math.inf, math.inf)


def causal() -> Mask:
    """A query sees the keys up to its own index."""
    return Band(math.inf, 0)


def window(left: int, right: int | None = None) -> Mask:
    """A query sees itself, `left` keys before it and `right` after it (`right` defaults to `left`).

    Raises:
        UserError: a side is negative, or both are 0, which leaves each query alone with itself.
    """
    right = left if right is None else right
    if left < 0 or right < 0 or left + right == 0:
        raise UserError(
            f"window({left}, {right}) sees no neighbour; give --config.model.mask sides >= 0 that are not both 0."
        )
    return Band(left, right)


def segments(queries_BT: Array, keys_BS: Array | None = None) -> Mask:
    """Tokens see only tokens of the same id (the keys' ids default to the queries')."""
    return Segments(queries_BT, queries_BT if keys_BS is None else keys_BS)


def padding(valid_BS: Array) -> Mask:
    """Keys whose flag is False, or 0, are seen by nobody."""
    return Padding(_flags(valid_BS))


def explicit(allowed_BHTS: Array) -> Mask:
    """Any pattern, as flags (B or 1, H or 1, T, S), hidden where False or 0; with H > 1, one for each head.

    Raises:
        UserError: the array is not of rank 4.
    """
    if np.ndim(allowed_BHTS) != 4:
        raise UserError(
            f"explicit(array of shape {np.shape(allowed_BHTS)}) needs four axes (B or 1, H or 1, T, S): reshape it."
        )
    return Explicit(_flags(allowed_BHTS))


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


def gather(values_BS: Array, index: Index) -> jax.Array:
    """Row b's values at its indices (B or 1, 1, rows or 1, columns or 1); an index beyond the end is the last one."""
    if len(index) > 1:
        rows = np.arange(values_BS.shape[0])[:, None, None, None]
        return jnp.asarray(values_BS).at[rows, index].get(mode="clip")
    # The same for all rows: told so, the compiler keeps rows that are split over devices where they are.
    return jnp.asarray(values_BS).at[:, index[0]].get(mode="clip")


def gather_BHTS(values_BHTS: Array, i: Index, j: Index) -> jax.Array:
    """Entries of an array (B or 1, H or 1, T, S) at queries i and keys j, as `gather`."""
    if len(i) == len(j) == 1:
        return jnp.asarray(values_BHTS).at[:, :, i[0, 0], j[0, 0]].get(mode="clip")
    (B, H), (rows, heads) = values_BHTS.shape[:2], np.indices(values_BHTS.shape[:2])
    places = rows.reshape(B, H, 1, 1), heads.reshape(B, H, 1, 1), i, j
    return jnp.asarray(values_BHTS).at[places].get(mode="clip")


def misfit(content: Array, sizes: tuple[int, ...], what: str) -> str | None:
    """The part of a sentence that says so if an array does not broadcast to those sizes."""
    shape = tuple(content.shape)
    if len(shape) == len(sizes) and shape[-1] == sizes[-1]:
        if all(one in (1, size) for one, size in zip(shape, sizes, strict=True)):
            return None
    made, asked = (" x ".join(map(str, numbers)) for numbers in (shape, sizes))
    return f"a mask made for {made} ({what}) cannot serve {asked}"


def _flags(array: Array) -> Array:
    # `~` and `&` of numbers would work on their bits.
    return array if array.dtype == bool else array != 0


def _both(first: Mask, second: Mask) -> Mask:
    # An intersection of bands is a band, so that its states stay exact.
    if isinstance(first, Band) and isinstance(second, Band):
        return Band(min(first.left, second.left), min(first.right, second.right))
    return And(first, second)
