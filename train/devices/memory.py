"""Whether a run fits the memory of the machine on which it begins: known from shapes, before any array is made."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from model.errors import UserError
from model.families.family import Family
from train.devices.machine import device_memory, host_memory
from train.experiment import Experiment

_TOKEN = 20  # bytes of one token of a batch: four int32, one float32
_STATE = "model.width", "model.num_layers", "model.mlp_width", "data.vocab_size", "data.length", "train.seeds"
_KEPT = "data.batch_size", "data.length", "model.width", "model.num_layers", "train.seeds"
_BATCHES = "data.prefetch", "data.batch_size", "data.length"


def check_memory(experiment: Experiment) -> None:
    """Refuses a run of which it is certain that it does not fit: other activations than layers' inputs are not counted.

    A device holds its part of parameters, optimizer state and gradients, and, for the backward pass, the input of each
    layer for its part of a micro-batch; the host holds the batches that are read ahead.

    Raises:
        UserError: either is more than there is; with both numbers.
    """
    data, device = experiment.config.data, jax.local_devices()[0]
    state, kept = device_bytes(experiment)
    batches = _TOKEN * len(experiment.rows) * data.length * (1 + data.prefetch)
    needs = f"{_gib(state)} for parameters, optimizer and gradients, and {_gib(kept)} for the layers' inputs"
    _check(state + kept, device_memory(device), needs, device.device_kind, _STATE if state > kept else _KEPT)
    _check(batches, host_memory(), f"{_gib(batches)} for batches that are read ahead", "host", _BATCHES)


def device_bytes(experiment: Experiment) -> tuple[int, int]:
    """What it certainly takes of a device's memory: (parameters, optimizer and gradients; the layers' inputs)."""
    mesh = experiment.mesh
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    sharers = mesh.local_mesh.size if on_cpu else 1  # the devices of a CPU lie in one memory
    state = sharers * (_bytes(experiment.abstract) + _bytes(experiment.abstract.params))
    return state, sharers * inputs_bytes(experiment.config, experiment.model_config, dict(mesh.shape))


def inputs_bytes(config: ConfigDict, model: Family, mesh: Mapping[str, int]) -> int:
    """What the layers' inputs for a micro-batch take on a device of such a mesh."""
    tokens = config.train.seeds * config.data.batch_size // config.train.accumulate * config.data.length
    ways = math.prod(size for axis, size in mesh.items() if axis != "tensor")  # which share the tokens
    return int(tokens * model.num_layers * model.width * jnp.dtype(model.dtype).itemsize // ways)


def state_bytes(experiment: Experiment) -> dict[str, int]:
    """The bytes of the whole state, by the axes of the mesh that share them: 'fsdp+tensor'; '' of what none shares."""
    found: Counter[str] = Counter()
    for leaf in jax.tree.leaves(experiment.abstract):
        axes = [axis for entry in leaf.sharding.spec for axis in ([entry] if isinstance(entry, str) else entry or ())]
        found["+".join(sorted(axes))] += leaf.size * leaf.dtype.itemsize
    return dict(found)


class Placement(NamedTuple):
    """A parameter of a run: where it lies, the bytes of it that one device holds, what its axes are, and where its
    moments lie: as it, where the optimizer keeps none of its shape.
    """

    name: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes: int
    axes: tuple[str, ...]
    moments: PartitionSpec


def placements(experiment: Experiment) -> list[Placement]:
    """Each parameter; with several seeds, `seeds` is in front."""
    model = nnx.eval_shape(lambda: experiment.model_config.build(nnx.Rngs(0)))
    lead = ("seeds",) * (experiment.config.train.seeds > 1)
    leaves = nnx.traversals.flatten_mapping(experiment.abstract.params)
    kept = {
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape): leaf.sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(experiment.abstract.opt_state)
    }
    found = []
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, here = ".".join(map(str, path)), leaves[path]
        moments = [spec for (of, shape), spec in kept.items() if of.endswith(f".{name}") and shape == here.shape]
        spec, axes = here.sharding.spec, (*lead, *leaf.axes)
        found.append(Placement(name, here.shape, spec, _bytes(here), axes, (moments or [spec])[0]))
    return found


def _check(needed: int, there: int, needs: str, place: str, keys: tuple[str, ...]) -> None:
    if needed > there:
        flags = ", ".join(f"--config.{key}" for key in keys)
        raise UserError(
            f"the run needs {needs}, and the memory of this {place} is {_gib(there)}; lower one of {flags}."
        )


def _bytes(tree: object) -> int:
    """What one device holds of abstract arrays."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _gib(number: int) -> str:
    return f"{number / 2**30:.3g} GiB"
