"""Which keys a query may look at, as values: `causal() & window(128) & segments(ids)`.

A mask is asked about blocks: `block(i0, i1, j0, j1)` is the part for queries i0 <= i < i1 and keys j0 <= j < j1, and
`state(...)` tells from shapes alone whether that part is empty, full or mixed. Nothing T x S exists until somebody
asks for it."""

import dataclasses
import enum
import math
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import UserError


class BlockState(enum.Enum):
    """What is known of a block before anything runs; MIXED is always a safe answer."""

    EMPTY = "empty"
    FULL = "full"
    MIXED = "mixed"


class Mask:
    """The base of all masks: `&` and `|` combine them."""

    def at(self, i: jax.Array | np.ndarray, j: jax.Array | np.ndarray) -> jax.Array:
        """Whether query i may see key j, for index arrays of rank 4 that broadcast to (B, H, T, S)."""
        raise NotImplementedError

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """EMPTY or FULL only where that holds for every batch row and head."""
        return BlockState.MIXED

    def block(self, i0: int, i1: int, j0: int, j1: int) -> jax.Array:
        """Booleans that broadcast to (B, H, i1 - i0, j1 - j0)."""
        return self.at(np.arange(i0, i1)[None, None, :, None], np.arange(j0, j1)[None, None, None, :])

    def __and__(self, other: "Mask") -> "Mask":
        return _both(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)


Kind = TypeVar("Kind", bound=type[Mask])


def _value(kind: Kind) -> Kind:
    """Registers a dataclass as a pytree: its fields are children, those marked static are not.

    Not by `jax.tree_util.register_dataclass`: in jax 0.10 and 0.12 the structures of two such classes are equal when
    their fields agree, so that jit, where hashes collide, runs what it compiled for `a | b` on `a & b`.
    """
    fields = dataclasses.fields(cast(Any, kind))
    static = [field.name for field in fields if field.metadata.get("static")]
    arrays = [field.name for field in fields if field.name not in static]

    def flatten(mask: Mask) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(mask, name) for name in arrays), tuple(getattr(mask, name) for name in static)

    def unflatten(values: tuple[Any, ...], children: tuple[Any, ...]) -> Mask:
        return kind(**dict(zip([*arrays, *static], [*children, *values], strict=True)))

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)
    return kind


@_value
@dataclasses.dataclass(frozen=True)
class Band(Mask):
    """Keys from i - left to i + right, both included: full, causal and window masks are bands."""

    left: float = dataclasses.field(metadata={"static": True})
    right: float = dataclasses.field(metadata={"static": True})

    def at(self, i: jax.Array | np.ndarray, j: jax.Array | np.ndarray) -> jax.Array:
        """-right <= i - j <= left; an unbounded side is not compared."""
        distance = i - j
        allowed = jnp.ones(distance.shape, bool)
        if self.left < math.inf:
            allowed &= distance <= self.left
        if self.right < math.inf:
            allowed &= distance >= -self.right
        return allowed

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact: it compares the smallest and the largest distance i - j of the block with the band."""
        least, most = i0 - (j1 - 1), (i1 - 1) - j0
        if -self.right <= least and most <= self.left:
            return BlockState.FULL
        return BlockState.EMPTY if most < -self.right or least > self.left else BlockState.MIXED


@_value
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Query and key must carry the same id: ids_BT of the queries, ids_BS of the keys (packing)."""

    queries_BT: jax.Array
    keys_BS: jax.Array

    def at(self, i: jax.Array | np.ndarray, j: jax.Array | np.ndarray) -> jax.Array:
        """Gathers both ids; `i` and `j` must not vary over heads."""
        return _gather(self.queries_BT, i) == _gather(self.keys_BS, j)

    def block(self, i0: int, i1: int, j0: int, j1: int) -> jax.Array:
        """Compares two slices, without a gather."""
        _fits("queries", self.queries_BT, i1)
        _fits("keys", self.keys_BS, j1)
        return self.queries_BT[:, None, i0:i1, None] == self.keys_BS[:, None, None, j0:j1]


@_value
@dataclasses.dataclass(frozen=True)
class Padding(Mask):
    """Only keys that are real may be seen: valid_BS."""

    valid_BS: jax.Array

    def at(self, i: jax.Array | np.ndarray, j: jax.Array | np.ndarray) -> jax.Array:
        """Gathers the keys' flags; all queries see the same keys."""
        return jnp.broadcast_to(
            _gather(self.valid_BS, j), np.broadcast_shapes((len(self.valid_BS), 1, 1, 1), i.shape, j.shape)
        )

    def block(self, i0: int, i1: int, j0: int, j1: int) -> jax.Array:
        """A slice of the flags, one row for all queries."""
        _fits("keys", self.valid_BS, j1)
        return self.valid_BS[:, None, None, j0:j1]


@_value
@dataclasses.dataclass(frozen=True)
class And(Mask):
    """Both masks allow it."""

    first: Mask
    second: Mask

    def at(self, i: jax.Array | np.ndarray, j: jax.Array | np.ndarray) -> jax.Array:
        """Elementwise and."""
        return self.first.at(i, j) & self.second.at(i, j)

    def block(self, i0: int, i1: int, j0: int, j1: int) -> jax.Array:
        """Elementwise and of the two blocks."""
        return self.first.block(i0, i1, j0, j1) & self.second.block(i0, i1, j0, j1)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Empty if one is, full if both are."""
        states = {self.first.state(i0, i1, j0, j1), self.second.state(i0, i1, j0, j1)}
        if BlockState.EMPTY in states:
            return BlockState.EMPTY
        return states.pop() if len(states) == 1 else BlockState.MIXED


@_value
@dataclasses.dataclass(frozen=True)
class Or(Mask):
    """At least one of the masks allows it."""

    first: Mask
    second: Mask

    def at(self, i: jax.Array | np.ndarray, j: jax.Array | np.ndarray) -> jax.Array:
        """Elementwise or."""
        return self.first.at(i, j) | self.second.at(i, j)

    def block(self, i0: int, i1: int, j0: int, j1: int) -> jax.Array:
        """Elementwise or of the two blocks."""
        return self.first.block(i0, i1, j0, j1) | self.second.block(i0, i1, j0, j1)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Full if one is, empty if both are."""
        states = {self.first.state(i0, i1, j0, j1), self.second.state(i0, i1, j0, j1)}
        if BlockState.FULL in states:
            return BlockState.FULL
        return states.pop() if len(states) == 1 else BlockState.MIXED


@_value
@dataclasses.dataclass(frozen=True)
class AtPositions(Mask):
    """The same mask for queries that stand at positions_BT of the keys' axis instead of at 0, 1, ... (cached
    decoding).
    """

    mask: Mask
    positions_BT: jax.Array

    def at(self, i: jax.Array | np.ndarray, j: jax.Array | np.ndarray) -> jax.Array:
        """The mask at the positions of queries i."""
        return self.mask.at(_gather(self.positions_BT, i), j)


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


def segments(queries_BT: jax.Array, keys_BS: jax.Array | None = None) -> Mask:
    """Tokens see only tokens of the same id (the keys' ids default to the queries')."""
    return Segments(queries_BT, queries_BT if keys_BS is None else keys_BS)


def padding(valid_BS: jax.Array) -> Mask:
    """Keys whose flag is False are seen by nobody."""
    return Padding(valid_BS)


def _both(first: Mask, second: Mask) -> Mask:
    if isinstance(first, Band) and isinstance(
        second, Band
    ):  # an intersection of bands is a band: its states stay exact
        return Band(min(first.left, second.left), min(first.right, second.right))
    return And(first, second)


def _gather(values_BS: jax.Array, index: jax.Array | np.ndarray) -> jax.Array:
    rows = np.arange(values_BS.shape[0])[:, None, None, None]
    return jnp.asarray(values_BS)[rows, index]


def _fits(what: str, array: jax.Array, length: int) -> None:
    if length > array.shape[1]:
        raise UserError(
            f"a mask made for {array.shape[1]} {what} cannot serve {length}; make it from arrays of that length."
        )
