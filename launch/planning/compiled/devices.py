"""The devices for which a step is compiled: of chips that are not here, or of this machine."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from launch.planning.chips import Slice
from model.errors import UserError
from train.devices.machine import host_memory

GIB = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def slice_devices(where: Slice) -> list[Any]:
    """The devices of a slice that is not here, in the order of its slices, or of this machine.

    Raises:
        UserError: the compiler knows no such slice.
    """
    if where.chip.shared:
        return jax.devices()[: where.devices]
    more: dict[str, Any] = {"num_slices": where.slices} if where.slices > 1 else {}
    if where.name == "v4":
        more["chip_config_name"] = "megacore"  # as jobs use it: both cores of a chip are one device
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=where.topology, **more).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise UserError(f"--topology={where.topology} is no slice that the compiler knows ({reason}).") from None
    return sorted(devices, key=lambda one: one.slice_index) if where.slices > 1 else list(devices)


def limit(device: Any) -> int:
    """The bytes of a device that the compiler lets a program use: it says so of one that takes far too many; of
    this machine an equal part.
    """
    if device.platform == "cpu":
        return host_memory() // jax.device_count()
    far = jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x + 1).lower(far).compile()
    except jax.errors.JaxRuntimeError as error:
        found = re.search(r"available HBM \(([\d.]+)([KMGT])\)", str(error)) or re.search(
            r"of ([\d.]+)([KMGT]) hbm", str(error)
        )
        if found:
            return int(float(found[1]) * GIB[found[2]])
        raise
    raise AssertionError("a terabyte fits")


def peak_bytes(memory: Any, device: Any) -> int:
    """The most bytes of a device that are taken at a time, of a program's `memory_analysis()`; of a CPU all that are
    taken, as its compiler leaves temporaries out of the peak.
    """
    if device.platform != "cpu":
        return int(memory.peak_memory_in_bytes)
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(memory.argument_size_in_bytes + results + memory.temp_size_in_bytes)
