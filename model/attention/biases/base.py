"""What is added to the logits by where query and key stand, as values: any block on demand."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from model.attention.masks.arrays import gather_BHTS
from model.attention.masks.base import Index, Start, indices
from model.attention.values import array, leaf_axes, value
from model.axes import partition_spec


class Bias:
    """The base of all biases; all arrays of one are floats, because cores ask for gradients of each."""

    def at(self, i: Index, j: Index) -> jax.Array:
        """What is added for query i and key j, for index arrays of rank 4: it broadcasts to (B, H, T, S)."""
        raise NotImplementedError

    def block(self, i0: Start, j0: Start, rows: int, columns: int) -> jax.Array:
        """The part that begins at query i0 and key j0: it broadcasts to (B, H, rows, columns); the starts may be
        traced.
        """
        return self.at(*indices(i0, j0, rows, columns))

    def no_gradient(self, parts: int) -> Self:
        """Zeros, at least in float32, to which gradients are added: in front stand the parts into which a mesh splits
        the rows, since devices would send what each block adds to one sum for all. One, if arrays have rows themselves.
        """
        split = parts > 1 and not any("batch" in axes for axes in leaf_axes(self))
        batch, free = partition_spec(("batch",)), PartitionSpec.UNCONSTRAINED

        def zeros(x: jax.Array) -> jax.Array:
            zeros = jnp.zeros((parts if split else 1, *x.shape), jnp.promote_types(x.dtype, jnp.float32))
            return jax.lax.with_sharding_constraint(zeros, PartitionSpec(*batch, *[free] * x.ndim)) if split else zeros

        return jax.tree.map(zeros, self)

    def add_gradient(self, totals: Self, i0: Start, j0: Start, dlogits: jax.Array) -> Self:
        """The gradients of this bias's arrays with those of a block in them, which `no_gradient` begins; dlogits is
        (B, H, rows, columns).
        """
        rows, columns = dlogits.shape[2:]
        block, pull = jax.vjp(lambda bias: bias.block(i0, j0, rows, columns), self)

        def add(total: Self, dlogits: jax.Array) -> Self:
            return jax.tree.map(jnp.add, total, pull(summed(dlogits, block.shape).astype(block.dtype))[0])

        parts = jax.tree.leaves(totals)[0].shape[0]
        if parts == 1:  # a batch of one would be summed in another order, and round otherwise
            return jax.tree.map(lambda x: x[None], add(jax.tree.map(lambda x: x[0], totals), dlogits))
        return jax.vmap(add)(totals, dlogits.reshape(parts, -1, *dlogits.shape[1:]))

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """What, if anything, the bias was made for that these sizes are not."""
        return None


def summed(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """x summed over the axes in which `shape` has one entry and x has more."""
    axes = tuple(n for n, (one, size) in enumerate(zip(shape, x.shape, strict=True)) if one == 1 < size)
    return jnp.sum(x, axis=axes, keepdims=True)


class Relative(Bias):
    """A bias that depends on the distance j - i alone."""

    def of(self, distance: Index) -> jax.Array:
        """(H, *shape) for whole distances j - i of any shape."""
        raise NotImplementedError

    def at(self, i: Index, j: Index) -> jax.Array:
        """The bias of each distance."""
        return jnp.moveaxis(self.of((j - i)[:, 0]), 0, 1)

    def block(self, i0: Start, j0: Start, rows: int, columns: int) -> jax.Array:
        """A Toeplitz matrix: the rows + columns - 1 distances are looked up once, and laid out by a reshape."""
        # Entry (a, b) is vector[(b - a) mod n]: n entries repeated, read in rows that are one shorter than n.
        n = rows + columns
        steps = np.arange(n)
        vector_Hn = self.of(j0 - i0 + np.where(steps < columns, steps, steps - n))
        flat = jnp.tile(vector_Hn, (1, rows))[:, : rows * (n - 1)]
        return flat.reshape(-1, rows, n - 1)[None, :, :, :columns]


@value
class ExplicitBias(Bias):
    """An array of numbers (B, H, T, S); an axis of 1 stands for any length, as in jax.nn."""

    bias_BHTS: jax.Array = array("batch", "heads", None, None)

    def at(self, i: Index, j: Index) -> jax.Array:
        """Gathers entries; indices beyond the array answer as its last one does."""
        return gather_BHTS(self.bias_BHTS, i, j)

    def add_gradient(self, totals: Self, i0: Start, j0: Start, dlogits: jax.Array) -> Self:
        """Adds to the entries of the block and touches no other: the array is as large as the whole matrix."""
        B, H, T, S = self.bias_BHTS.shape
        rows, columns = dlogits.shape[2:]
        block = summed(dlogits, (B, H, rows if T > 1 else 1, columns if S > 1 else 1))
        i, j = indices(i0 if T > 1 else 0, j0 if S > 1 else 0, *block.shape[2:])
        total = totals.bias_BHTS[0].at[:, :, i[0, 0], j[0, 0]].add(block, mode="clip")
        return dataclasses.replace(totals, bias_BHTS=total[None])

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """An array that does not broadcast to (B, H, T, S)."""
        shape, sizes = tuple(self.bias_BHTS.shape), (B, H, T, S)
        if len(shape) == 4 and all(one in (1, size) for one, size in zip(shape, sizes, strict=True)):
            return None
        return f"a bias made for {' x '.join(map(str, shape))} (rows, heads, queries, keys) cannot serve {sizes}"
