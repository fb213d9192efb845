"""The mesh: devices as a grid, and which logical axis goes to which axis of it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh
from ml_collections import ConfigDict

from model.errors import UserError
from model.families.family import Family
from model.layers import choose

AXES = ("replica", "fsdp", "tensor", "context")
Rules = Sequence[tuple[str, Any]]
_TOGETHER: Rules = (  # what parameters share with activations
    ("length", "context"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
)
# Of parameters; 'embed' is of them alone, and 'moments' is what the optimizer keeps of that axis.
RULES: dict[str, Rules] = {
    "fsdp": (("embed", "fsdp"), ("moments", "fsdp"), *_TOGETHER),
    "optimizer": (("moments", "fsdp"), *_TOGETHER),
    "replicated": _TOGETHER,
}


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices as a grid of replica x fsdp x tensor x context; one axis may be -1, for all devices that remain.

    Raises:
        UserError: the product does not fit the devices; the sentence gives the arithmetic.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[name] for name in AXES]
    product = " x ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"the mesh {product} needs sizes of at least 1, and at most one -1; change --config.mesh.*.")
    fixed = math.prod(size for size in shape if size != -1)
    if fixed > len(devices) or (-1 in shape and len(devices) % fixed):
        raise UserError(
            f"the mesh {product} = {fixed} devices does not fit the {len(devices)} here; change --config.mesh.*."
        )
    shape = [len(devices) // fixed if size == -1 else size for size in shape]
    used = math.prod(shape)
    if used < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"the mesh {product} uses {used} of {len(devices)} devices, and pods need all; change --config.mesh.*."
        )
    grid = np.array(devices).reshape(shape) if used == len(devices) else np.array(devices[:used]).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_rules(seeds: int, name: str = "fsdp") -> Rules:
    """Logical axis to mesh axis. With a population of seeds `replica` carries the seeds, else it shares the batch.

    Raises:
        UserError: there is no set of rules of that name.
    """
    return (("batch", "fsdp" if seeds > 1 else ("replica", "fsdp")), *choose(RULES, name, "mesh.rules"))


def check_fit(mesh: Mesh | AbstractMesh, rules: Rules, sizes: dict[str, tuple[int, str]], seeds: int) -> None:
    """Refuses sizes that the mesh does not divide; `sizes` maps a logical axis to its size and its config key.

    Raises:
        UserError: an axis that does not divide evenly, or seeds that `replica` does not divide.
    """
    if seeds > 1 and seeds % mesh.shape["replica"]:
        raise UserError(f"--config.mesh.replica={mesh.shape['replica']} does not divide --config.train.seeds={seeds}.")
    for name, target in rules:
        size, key = sizes.get(name, (0, ""))  # what a model does not have
        axes = (target,) if isinstance(target, str) else target
        ways = math.prod(mesh.shape[axis] for axis in axes)
        if size % ways:
            grid = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise UserError(
                f"--config.{key}={size} does not divide evenly over the mesh's {grid}; change it or --config.mesh.*."
            )


def sizes(config: ConfigDict, model: Family, mesh: Mesh | AbstractMesh) -> dict[str, tuple[int, str]]:
    """Logical axis to its size and the key that sets it; a batch must divide also after it is split into micro-
    batches.

    Raises:
        UserError: devices are to share sequences that the model takes token by token.
    """
    if model.IN_TURN and mesh.shape["context"] > 1:
        raise UserError(
            f"--config.mesh.context={mesh.shape['context']} splits sequences, and --config.family={config.family} "
            "takes one token after the other; set it to 1."
        )
    targets = getattr(model, "target_length", 0)  # of pairs whose second texts are shorter
    length = "data.length (what its targets' length divides, too)" if targets else "data.length"
    return {
        "batch": (config.data.batch_size // config.train.accumulate, "data.batch_size / train.accumulate"),
        "length": (math.gcd(model.max_length, targets), length),
        "embed": (model.width, "model.width"),
        "moments": (model.width, "model.width"),
        "vocab": (model.vocab_size, "data.vocab_size"),
        **model.axes,
    }
