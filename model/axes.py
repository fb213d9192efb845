"""Logical names for array axes: the model names them, `train.sharding` says which mesh axis each one goes to."""

from typing import Any

import jax
import numpy as np
from flax.core import spmd
from jax.sharding import PartitionSpec

from model.errors import UserError


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


def platform() -> str:
    """Where the ambient mesh lies, or jax's default: 'cpu', 'gpu' or 'tpu'."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    found = jax.default_backend() if device is None else device.platform
    return "gpu" if found in ("cuda", "rocm") else found


def on_one_cpu() -> bool:
    """Whether what is traced is for one CPU device alone."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def check_axes(what: str, x: Any, axes: str) -> None:
    """Lets an array pass that has one axis for each of these letters, before it is computed with.

    Raises:
        UserError: it has another number of axes.
    """
    if np.ndim(x) != len(axes):
        raise UserError(f"{what} of shape {np.shape(x)} must have the axes ({', '.join(axes)}): reshape them.")
