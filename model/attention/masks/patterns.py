"""Sparse patterns, as masks that are known before anything runs: each tells exactly which of its blocks are empty."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from model.attention.masks.band import causal, window
from model.attention.masks.base import BlockState, Index, Mask
from model.attention.values import static, value
from model.errors import UserError

_MOST_BLOCKS = 2048  # of a random layout, each way; it is kept as a whole


@value
class Chunked(Mask):
    """Query and key lie in the same chunk of `size` places (chunked local attention)."""

    size: int = static()

    @property
    def reach(self) -> float:
        """From one end of a chunk to the other."""
        return self.size - 1

    def at(self, i: Index, j: Index) -> Index:
        """i // size == j // size."""
        return i // self.size == j // self.size

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact: it compares the chunks that the block touches."""
        chunks = {i0 // self.size, (i1 - 1) // self.size, j0 // self.size, (j1 - 1) // self.size}
        apart = (i1 - 1) // self.size < j0 // self.size or (j1 - 1) // self.size < i0 // self.size
        return BlockState.FULL if len(chunks) == 1 else BlockState.EMPTY if apart else BlockState.MIXED


@value
class FirstKeys(Mask):
    """The first `count` keys: a prefix, or the sink columns of a window (Xiao et al. 2023, section 3.2)."""

    count: int = static()

    def at(self, i: Index, j: Index) -> Index:
        """j < count, for every query."""
        return (j < self.count) & (i >= 0)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact."""
        return BlockState.FULL if j1 <= self.count else BlockState.EMPTY if j0 >= self.count else BlockState.MIXED


@value
class FirstQueries(Mask):
    """The first `count` queries see every key: with `FirstKeys`, global tokens (Beltagy et al. 2020, section 3.1)."""

    count: int = static()

    def at(self, i: Index, j: Index) -> Index:
        """i < count, for every key."""
        return (i < self.count) & (j >= 0)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact."""
        return BlockState.FULL if i1 <= self.count else BlockState.EMPTY if i0 >= self.count else BlockState.MIXED


@value
class Dilated(Mask):
    """Keys at distances that are multiples of `step` (Beltagy et al. 2020, section 3.1; van den Oord et al. 2016)."""

    step: int = static()

    @property
    def is_relative(self) -> bool:
        """It counts from the query."""
        return True

    def at(self, i: Index, j: Index) -> Index:
        """(i - j) mod step == 0."""
        return (i - j) % self.step == 0

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact: a block holds every distance between its smallest and its largest."""
        least, most = i0 - (j1 - 1), (i1 - 1) - j0
        multiples = most // self.step - (least - 1) // self.step
        if multiples == 0:
            return BlockState.EMPTY
        return BlockState.FULL if multiples == most - least + 1 else BlockState.MIXED


@value
class SummaryColumns(Mask):
    """The last `count` keys of every `stride` (the summaries of Child et al. 2019, section 4.3)."""

    stride: int = static()
    count: int = static()

    def at(self, i: Index, j: Index) -> Index:
        """j mod stride >= stride - count, for every query."""
        return (j % self.stride >= self.stride - self.count) & (i >= 0)

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact: it looks at each of the keys."""
        seen = np.arange(j0, j1) % self.stride >= self.stride - self.count
        return BlockState.FULL if seen.all() else BlockState.MIXED if seen.any() else BlockState.EMPTY


@value
class Blocks(Mask):
    """Whole blocks of `size` queries and `size` keys, as rows of booleans; what is beyond the layout is not seen."""

    layout: tuple[tuple[bool, ...], ...] = static()
    size: int = static()

    def at(self, i: Index, j: Index) -> Index:
        """layout[i // size, j // size]."""
        xp: Any = np if isinstance(i, np.ndarray) and isinstance(j, np.ndarray) else jnp
        layout = self._bordered
        rows, columns = (xp.minimum(x // self.size, n - 1) for x, n in zip((i, j), layout.shape, strict=True))
        return xp.asarray(layout)[rows, columns]

    def state(self, i0: int, i1: int, j0: int, j1: int) -> BlockState:
        """Exact: it looks at the blocks that are touched."""
        rows, columns = (slice(a // self.size, (b - 1) // self.size + 1) for a, b in ((i0, i1), (j0, j1)))
        layout = self._bordered
        rows = slice(min(rows.start, layout.shape[0] - 1), rows.stop)
        columns = slice(min(columns.start, layout.shape[1] - 1), columns.stop)
        touched = layout[rows, columns]
        return BlockState.FULL if touched.all() else BlockState.MIXED if touched.any() else BlockState.EMPTY

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """A layout for fewer queries or keys."""
        made = len(self.layout) * self.size, len(self.layout[0]) * self.size
        if T <= made[0] and S <= made[1]:
            return None
        return f"a mask made for {made[0]} x {made[1]} (queries and keys) cannot serve {T} x {S}"

    @functools.cached_property
    def _bordered(self) -> np.ndarray:
        return np.pad(np.array(self.layout, bool), ((0, 1), (0, 1)))


def chunked(size: int) -> Mask:
    """Chunks of `size` places see only themselves."""
    return Chunked(_at_least_1("chunked", size))


def prefix(count: int) -> Mask:
    """The first `count` keys are seen by all: `causal | prefix(count)` is a prefix language model."""
    return FirstKeys(_at_least_1("prefix", count))


def sink_columns(count: int) -> Mask:
    """The first `count` keys stay visible beside a window: `causal & (window(1024, 0) | sink_columns(4))`."""
    return FirstKeys(_at_least_1("sink_columns", count))


def global_tokens(count: int) -> Mask:
    """The first `count` tokens see all and are seen by all: `window(256) | global_tokens(1)` is a Longformer."""
    return FirstKeys(_at_least_1("global_tokens", count)) | FirstQueries(count)


def dilated(step: int) -> Mask:
    """Every `step`-th key, counted from the query: `causal & window(512, 0) & dilated(4)` is a dilated window."""
    return Dilated(_at_least_1("dilated", step))


def strided(stride: int) -> Mask:
    """The strided pattern of the Sparse Transformer: the last `stride` keys, and every `stride`-th before (Child et al.
    2019, section 4.3)."""
    return causal() & (window(_at_least_1("strided", stride), 0) | Dilated(stride))


def fixed(stride: int, count: int) -> Mask:
    """The fixed pattern of the Sparse Transformer: one's own chunk of `stride` keys, and the last `count` keys of each
    chunk before (Child et al. 2019, section 4.3).

    Raises:
        UserError: count is not between 1 and stride.
    """
    if not 1 <= count <= stride:
        raise UserError(f"fixed({stride}, {count}): give --config.model.mask a count from 1 to the stride.")
    return causal() & (Chunked(stride) | SummaryColumns(stride, count))


def blocks(layout: np.ndarray, size: int) -> Mask:
    """Whole blocks of `size` x `size`, as a layout of booleans (queries / size, keys / size).

    Raises:
        UserError: the layout is not of rank 2, or has no block.
    """
    layout = np.asarray(layout, bool)
    if layout.ndim != 2 or not layout.size:
        raise UserError(f"blocks(array of shape {layout.shape}, {size}) needs a layout of queries x keys.")
    return Blocks(tuple(map(tuple, layout.tolist())), _at_least_1("blocks", size))


def random_blocks(size: int, count: int, length: int, seed: int = 0) -> Mask:
    """`count` random blocks of `size` keys for each `size` queries of a sequence of `length` (Zaheer et al. 2020,
    section 2).

    `global_tokens(2) | window(96) | random_blocks(64, 3, 4096)` is a BigBird; `causal & ...` one that looks back, for
    which the blocks are drawn all the same among all keys.

    Raises:
        UserError: there are fewer than `count` blocks.
    """
    n = -(-_at_least_1("random_blocks", length) // _at_least_1("random_blocks", size))
    if n > _MOST_BLOCKS:
        raise UserError(
            f"random_blocks({size}, {count}, {length}) has {n} x {n} blocks; give --config.model.mask a size of at "
            f"least {-(-length // _MOST_BLOCKS)}."
        )
    if seed < 0:
        raise UserError(f"random_blocks(seed={seed}): give --config.model.mask a seed of at least 0.")
    if not 1 <= count <= n:
        raise UserError(
            f"random_blocks({size}, {count}, {length}): there are {n} blocks; give --config.model.mask a count from 1 "
            f"to {n}."
        )
    rng, layout = np.random.default_rng(seed), np.zeros((n, n), bool)
    for row in layout:
        row[rng.choice(n, count, replace=False)] = True
    return blocks(layout, size)


def _at_least_1(name: str, number: int) -> int:
    if number < 1:
        raise UserError(f"{name}({number}): give --config.model.mask a number of at least 1.")
    return number
