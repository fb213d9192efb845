"""Batches on the mesh, of which each process loads its part, and results that come back from it."""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.axes import partition_spec


def batch_sharding(mesh: Mesh, axes: int) -> NamedSharding:
    """How a batch (B, T), or (N, B, T) where each seed has its own, is spread, by the ambient rules."""
    return NamedSharding(mesh, PartitionSpec(*("replica",) * (axes - 2), *partition_spec(("batch", "length"))))


def place_batch(
    batch: dict[str, np.ndarray], sharding: NamedSharding, shape: tuple[int, ...], local: tuple[np.ndarray, ...]
) -> dict[str, jax.Array]:
    """A global batch of this shape on the mesh, of whose leading axes this process has loaded the numbers `local`.

    A batch without the axis of seeds is one that they share.
    """
    axes = next(iter(batch.values())).ndim
    shape, local = shape[-axes:], local[1 - axes :]
    sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[-axes:]))
    where = [np.full(size, -1) for size in shape[:-1]]
    for place, numbers in zip(where, local, strict=True):
        place[numbers] = np.arange(len(numbers))

    def put(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return x[np.ix_(*(place[one] for place, one in zip(where, index[:-1], strict=True)))][..., index[-1]]

        return jax.make_array_from_callback(shape, sharding, part)

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
