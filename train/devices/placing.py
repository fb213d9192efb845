"""Batches on the mesh, of which each process loads its part, and results that come back from it."""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.axes import partition_spec


def batch_sharding(mesh: Mesh, axes: int) -> NamedSharding:
    """How tokens (B, T), or (N, B, T) where each seed has its own, are spread, by the ambient rules."""
    return NamedSharding(mesh, PartitionSpec(*("replica",) * (axes - 2), *partition_spec(("batch", "length"))))


def place_batch(
    batch: dict[str, np.ndarray], sharding: NamedSharding, shape: tuple[int, ...], local: tuple[np.ndarray, ...]
) -> dict[str, jax.Array]:
    """A global batch on the mesh, whose rows have this shape, and of whose leading axes this process has loaded the
    numbers `local`.

    A batch without the axis of seeds is one that they share. Other arrays have the same leading axes; one with an axis
    of the tokens' length behind them is spread along it too.
    """
    lead = batch["tokens"].ndim - 1
    length, leading, local, specs = shape[-1], shape[-lead - 1 : -1], local[-lead:], sharding.spec[-lead - 1 :]
    where = [np.full(size, -1) for size in leading]
    for place, numbers in zip(where, local, strict=True):
        place[numbers] = np.arange(len(numbers))

    def put(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            rows = x[np.ix_(*(place[one] for place, one in zip(where, index[:lead], strict=True)))]
            return rows[(..., *index[lead:])] if index[lead:] else rows

        along = specs if x.shape[lead : lead + 1] == (length,) else specs[:lead]
        whole = (*leading, *x.shape[lead:])
        return jax.make_array_from_callback(whole, NamedSharding(sharding.mesh, PartitionSpec(*along)), part)

    return {name: put(x) for name, x in batch.items()}


def local_numbers(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """For each leading axis of a global batch, ([N,] B, T): the numbers that this process's devices need."""
    # None at all on devices that are only planned for.
    mine = [index for index in sharding.addressable_devices_indices_map(shape).values() if index is not None]

    def needed(axis: int) -> np.ndarray:
        numbers = np.arange(shape[axis])
        return np.unique(np.concatenate([numbers[:0], *(numbers[index[axis]] for index in mine)]))

    return tuple(needed(axis) for axis in range(len(shape) - 1))


def batch_ways() -> int:
    """Over how many parts of the ambient mesh rows are spread, by the ambient rules; 1 without a mesh."""
    (axes,) = partition_spec(("batch",))
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(jax.sharding.get_abstract_mesh().shape.get(name, 1) for name in names)


def on_host(tree: Any) -> Any:
    """The values of arrays as NumPy arrays, also of those that several processes share; then all must ask for them."""

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))
