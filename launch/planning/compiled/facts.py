"""What a step needs on devices that are not here, as the compiler for them says."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from launch.planning.chips import Slice, parse_topology
from launch.planning.compiled.devices import GIB, limit, peak_bytes, slice_devices
from launch.planning.compiled.flops import attention_passes, executed_flops
from launch.planning.compiled.memory import at_peak, main_memory
from launch.planning.compiled.traffic import Collective, collectives, has_whole_logits
from model.errors import UserError
from model.vocabulary import num_slices
from train.devices.memory import placements, state_bytes
from train.experiment import Experiment, make_experiment
from train.flops import attention_flops_per_token, flops_per_token
from train.sharding import placed

LABELS = 2  # of a task whose classes only its data know
LARGE = 2**20  # bytes of what is whole on each device, above which it is told


def facts(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """What is known of a step of `job["config"]` on `topology` and `slices`, by names, in bytes of a device; with
    "effort": "low" what the compiler says in half the time.

    No data set is opened. Where the program does not fit, `peak_bytes` is null and `needed_bytes` what the compiler
    asks for.

    Raises:
        UserError: a config that cannot be trained on these devices.
    """
    config, where = ConfigDict(job["config"]), parse_topology(job["topology"], job["slices"], here=True)
    devices = slice_devices(where)
    if config.mesh.replica % where.slices:
        raise UserError(
            f"--slices={where.slices}: between slices only replica goes, and --config.mesh.replica="
            f"{config.mesh.replica} does not divide over them; set it to {where.slices}."
        )
    experiment = make_experiment(config, devices=devices, labels=LABELS)
    found = known(experiment, where) | {"hbm_bytes": limit(devices[0])}
    if not job.get("compile", True):
        return found
    quick = job.get("effort") == "low"
    found |= {"effort": "low"} if quick else {}
    step: Any = experiment.step
    with placed(experiment.mesh, experiment.rules):
        lowered = step.lower(experiment.abstract, abstract_batch(experiment))
    try:
        program = lowered.compile(compiler_options={"exec_time_optimization_effort": -1.0} if quick else None)
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if needed is None:
            raise
        return found | {"fits": False, "peak_bytes": None, "needed_bytes": needed}
    found |= of_program(program, experiment)
    if not where.chip.shared:
        # The compiler's peak is of the memory where most lies, which of a tiny step is not the device's main one.
        found["peak_bytes"] = found["needed_bytes"] = min(found["peak_bytes"], main_memory(Path(folder)))
        classes = at_peak(Path(folder), experiment.model_config.vocab_size, _shapes(experiment), _others(experiment))
        found["classes"] = classes.classes | {"unattributed": found["peak_bytes"] - classes.bytes}
    return found | {"fits": found["peak_bytes"] <= found["hbm_bytes"]}


def of_program(program: Any, experiment: Experiment) -> dict[str, Any]:
    """What a compiled step says of itself."""
    memory, text = program.memory_analysis(), program.as_text()
    peak = peak_bytes(memory, experiment.mesh.devices.flat[0])
    return {
        "peak_bytes": peak,
        "needed_bytes": peak,
        "argument_bytes": memory.argument_size_in_bytes,
        "replicated_batches": _whole_batches(text, experiment),
        "whole_logits": has_whole_logits(text, _targets(experiment), experiment.model_config.vocab_size),
        **_sent(text),
        **_executed(text, experiment),
    }


def known(experiment: Experiment, where: Slice) -> dict[str, Any]:
    """What is known before anything is compiled."""
    config = experiment.config
    return {
        "topology": where.topology,
        "slices": where.slices,
        "chips": where.chips,
        "devices": experiment.mesh.size,
        "device_kind": experiment.mesh.devices.flat[0].device_kind,
        "mesh": dict(experiment.mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(experiment.abstract.params)) // config.train.seeds,
        "tokens_per_step": config.data.batch_size * config.data.length * config.train.seeds,
        "labels": LABELS
        if any("C" in axes.split()[0] or name == "labels" for name, axes in experiment.task.ARRAYS.items())
        else 0,
        "steps": config.train.steps,
        "flops_per_token": flops_per_token(experiment.model_config),
        "attention_flops_per_token": attention_flops_per_token(experiment.model_config),
        "logits_again_flops_per_token": _logits_again(experiment),
        "cores": {name: [one.choice.name for one in of_layers] for name, of_layers in experiment.attention.items()},
        "replicated_bytes": _replicated(experiment),
        "state_bytes": state_bytes(experiment),
        "placements": [
            one._asdict() | {name: _places(getattr(one, name), experiment.mesh.shape) for name in ("spec", "moments")}
            for one in placements(experiment)
        ],
    }


def _needed(text: str) -> int | None:
    """What a program needs that does not fit, as the compiler says; None where it says something else."""
    used = re.search(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", text)
    used = used or re.search(r"required for .*?\(([\d.]+)([KMGT])\) exceeds", text)
    return int(float(used[1]) * GIB[used[2]]) if used else None


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a training batch, as they are placed, without a data set."""
    lead, sharding = len(experiment.shape) - 1, experiment.sharding
    length = experiment.shape[-1]
    sizes = {"T": experiment.task.target_length(length), "S": length, "C": LABELS, "2": 2}
    found = {}
    for name, said in experiment.task.ARRAYS.items():
        axes, dtype = said.split()
        more = tuple(sizes[axis] for axis in axes[1:])
        specs = sharding.spec if more[:1] == (length,) else sharding.spec[:lead]
        where = NamedSharding(sharding.mesh, PartitionSpec(*specs))
        found[name] = jax.ShapeDtypeStruct((*experiment.shape[:-1], *more), jnp.dtype(dtype), sharding=where)
    return found


def _places(spec: PartitionSpec, mesh: Mapping[str, int]) -> list[str]:
    """The axes of a mesh that split each axis of an array: 'fsdp+tensor', or 'whole'."""
    parts = [[entry] if isinstance(entry, str) else entry or [] for entry in spec]
    return ["+".join(axis for axis in part if mesh[axis] > 1) or "whole" for part in parts]


def _replicated(experiment: Experiment) -> dict[str, int]:
    """What of the state is whole on each device, above a mebibyte, by name."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(experiment.abstract):
        size = leaf.size * leaf.dtype.itemsize
        if leaf.sharding.is_fully_replicated and size > LARGE and experiment.mesh.size > 1:
            found[jax.tree_util.keystr(path, simple=True, separator=".")] = size
    return found


def _shapes(experiment: Experiment) -> list[tuple[int, ...]]:
    """In which a gradient of a parameter may be there: as the parameter, whole or a device's part, or a layer of it."""
    found = []
    for leaf in jax.tree.leaves(experiment.abstract.params):
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape)):
            found += [shape, shape[1:], (1, *shape[1:])]
    return [shape for shape in found if len(shape) > 1]


def _others(experiment: Experiment) -> set[int]:
    """Sizes of axes that are none of the vocabulary: of parameters, and of rows and places."""
    V = experiment.model_config.vocab_size
    found = {size for leaf in jax.tree.leaves(experiment.abstract.params) if V not in leaf.shape for size in leaf.shape}
    own = experiment.sharding.shard_shape(experiment.shape)
    return found | {*experiment.shape, *own, own[-1] * own[-2], own[-1] * own[-2] // experiment.config.train.accumulate}


def _whole_batches(text: str, experiment: Experiment) -> dict[str, int]:
    """Floating-point arrays of a device that have all rows and places of a batch, above a mebibyte, by their shapes."""
    rows, length = experiment.shape[-2] // experiment.config.train.accumulate, experiment.shape[-1]
    found = {}
    if experiment.mesh.size == 1:
        return {}
    for kind, bits, sizes in set(re.findall(r"\b(bf16|f(\d+))\[([\d,]+)\]", text)):
        shape = [int(one) for one in sizes.split(",")]
        size = int(np.prod(shape)) * int(bits or 16) // 8
        if size > LARGE and (shape[:2] == [rows, length] or shape[:1] == [rows * length]):
            found[f"{kind}[{sizes}]"] = size
    return found


def _targets(experiment: Experiment) -> int:
    """How many places a device scores at once, of those that its task writes."""
    rows, length = experiment.sharding.shard_shape(experiment.shape)[-2:]
    return rows // experiment.config.train.accumulate * experiment.task.target_length(length)


def _logits_again(experiment: Experiment) -> float:
    """Of products that make logits a second time, for their gradients, where they are made in slices."""
    model, (rows, length) = experiment.model_config, experiment.shape[-2:]
    if "targets" not in experiment.task.ARRAYS:
        return 0.0
    with placed(experiment.mesh, experiment.rules):
        rows //= experiment.config.train.accumulate
        if num_slices(rows, experiment.task.target_length(length), model.vocab_size) == 1:
            return 0.0
    return 2.0 * model.vocab_size * model.width * model.uses(("head",))


def _executed(text: str, experiment: Experiment) -> dict[str, Any]:
    """What is multiplied in a step, per token, with all that is done again; in kernels as many pairs as are seen."""
    model, config = experiment.model_config, experiment.config
    layers = sum(site.stack.num_layers for site in model.sites.values()) * config.train.accumulate
    tokens = config.data.batch_size * config.data.length * config.train.seeds
    try:
        flops = executed_flops(text) * experiment.mesh.size / tokens
        flops += attention_passes(text, layers) * attention_flops_per_token(model)
    except ValueError as error:
        return {"executed_flops_per_token": None, "executed_note": str(error)}
    return {"executed_flops_per_token": flops}


def _sent(text: str) -> dict[str, Any]:
    """All that is sent in a step, by kind; as bytes on the wire; what goes on beside other work; between slices."""
    try:
        every = collectives(text)
    except ValueError as error:
        return {"collective_bytes": None, "collective_note": str(error)}
    near, far = ([one for one in every if one.slow is slow] for slow in (False, True))

    def by_kind(some: list[Collective]) -> dict[str, int]:
        return {kind: sum(one.bytes for one in some if one.kind == kind) for kind in sorted({one.kind for one in some})}

    return {
        "collective_bytes": sum(one.bytes for one in near),
        "collective_bytes_by_kind": by_kind(near),
        "collective_calls": sum(one.times for one in near),
        "wire_bytes": round(sum(one.wire for one in near)),
        "asynchronous_bytes": sum(one.bytes for one in near if one.together),
        "slow_bytes": sum(one.bytes for one in far),
        "slow_bytes_by_kind": by_kind(far),
        "slow_wire_bytes": round(sum(one.wire for one in far)),
    }
