"""Logical names for array axes: the model names them, `train.sharding` says which mesh axis each one goes to."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import spmd
from jax.sharding import PartitionSpec

from model.errors import UserError

Names = tuple[tuple[str | None, ...], ...]


def partition_spec(names: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of the named array axes, by the ambient rules; a name without a rule is not sharded."""
    rules = dict(spmd.get_logical_axis_rules())
    return PartitionSpec(*(rules.get(name) if name else None for name in names))


def pin(x: jax.Array, *names: str | None) -> jax.Array:
    """Fixes the sharding of an activation, one name per axis; outside of a mesh it returns x unchanged.

    Without pins XLA is free to choose, and has been measured to take nine times the memory.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names))


@contextlib.contextmanager
def unsplit(*names: str) -> Iterator[None]:
    """Inside, no device has a part of these axes alone, whatever the rules say outside."""
    with spmd.logical_axis_rules([(name, axes) for name, axes in spmd.get_logical_axis_rules() if name not in names]):
        yield


def platform() -> str:
    """Where the ambient mesh lies, or jax's default: 'cpu', 'gpu' or 'tpu'."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.default_backend() if device is None else device.platform
    return "gpu" if found in ("cuda", "rocm") else found


def on_one_cpu() -> bool:
    """Whether what is traced is for one CPU device alone."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def mesh_axes(*names: str) -> tuple[tuple[str, ...], int]:
    """The axes of the ambient mesh over which the rules split logical axes together, and the number of their parts."""
    found: list[str] = []
    for name in names:
        axes = partition_spec((name,))[0]
        found += [axes] if isinstance(axes, str) else axes or ()
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(found), math.prod(mesh.shape[axis] for axis in found)


def on_each_device(function: Callable[..., Any], inputs: Names, outputs: Names, **options: Any) -> Callable[..., Any]:
    """`function` of each device's parts of its arguments, whose axes have these names; so have those of its results, a
    tuple.

    Sizes that the mesh does not divide are filled up with zeros, and results are as large as that makes them. Outside
    of a mesh it is called as it is; `mesh_axes` tells it over which axes of the mesh it may communicate.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function
    in_specs, out_specs = (tuple(map(partition_spec, names)) for names in (inputs, outputs))
    split = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options)

    def filled(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        ways = [mesh_axes(name)[1] if name else 1 for name in names]
        return jnp.pad(x, [(0, -size % way) for size, way in zip(x.shape, ways, strict=True)])

    return lambda *arguments: split(*map(filled, arguments, inputs))


def check_axes(what: str, x: Any, axes: str) -> None:
    """Lets an array pass that has one axis for each of these letters, before it is computed with.

    Raises:
        UserError: it has another number of axes.
    """
    if np.ndim(x) != len(axes):
        raise UserError(f"{what} of shape {np.shape(x)} must have the axes ({', '.join(axes)}): reshape them.")
