"""What a search for the fastest plan may try: how much memory and time it needs at least, and a guess of both."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import jax.numpy as jnp
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from launch.planning import rates
from launch.planning.chips import Slice
from model.errors import UserError
from model.families.family import Family
from train.devices.memory import inputs_bytes
from train.devices.mesh import AXES, check_fit, make_rules, sizes

REMATS = "none", "dots", "full"  # from the one that keeps most
ACCUMULATE = 1, 2, 4, 8, 16
Mesh = dict[str, int]
Allowed = tuple[ConfigDict, dict[str, Any], Mesh]  # a config, what is changed in it, and its mesh


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A config with some keys changed, on a mesh. Of a device at least `least_bytes` are needed; of time at least
    `least` seconds a token. `guess_bytes` and `guess`, the seconds of a token and all terms of them together, say in
    which order candidates are tried.
    """

    config: ConfigDict
    changes: dict[str, Any]
    mesh: Mesh
    least_bytes: float
    least: float
    guess_bytes: float
    guess: tuple[float, float]

    def keeps_more(self, other: Self) -> bool:
        """Whether it is the same on the same mesh, but keeps as much of as many tokens, or more, and the sum of the
        gradients of several micro-batches where the other does.
        """
        pairs = zip(self._kept, other._kept, strict=True)
        return self.mesh == other.mesh and all(more >= less for more, less in pairs)

    @property
    def _kept(self) -> tuple[float, int, bool]:
        train, remat = self.config.train, self.config.model.get("remat", "full")
        return self.config.data.batch_size / train.accumulate, -REMATS.index(remat), train.accumulate > 1


def meshes(where: Slice) -> Iterator[Mesh]:
    """Every factoring of all devices into the axes; between slices goes replica alone."""

    def factors(count: int, axes: int) -> Iterator[tuple[int, ...]]:
        if axes == 1:
            yield (count,)
            return
        for size in range(1, count + 1):
            if count % size == 0:
                yield from ((size, *rest) for rest in factors(count // size, axes - 1))

    for found in factors(where.devices, len(AXES)):
        if found[0] % where.slices == 0:
            yield dict(zip(AXES, found, strict=True))


def allowed(config: ConfigDict, where: Slice, model: Family, batches: Sequence[int]) -> list[Allowed]:
    """All that the limits of family and task allow, from what changes least on."""
    remats = REMATS if "remat" in config.model else (None,)
    parts, found = sorted({*ACCUMULATE, config.train.accumulate}), list[Allowed]()
    for mesh, batch, accumulate, remat in itertools.product(meshes(where), batches, parts, remats):
        keys = {f"mesh.{axis}": size for axis, size in mesh.items() if config.mesh[axis] != -1}
        keys |= {"data.batch_size": batch, "train.accumulate": accumulate} | ({"model.remat": remat} if remat else {})
        flat = config.to_dict()
        changes = {key: value for key, value in keys.items() if _at(flat, key) != value}
        other = ConfigDict(flat)
        other.update_from_flattened_dict(changes)
        if _fits(other, model, mesh):
            found.append((other, changes, mesh))
    return sorted(found, key=lambda one: (len(one[1]), one[2]["context"], one[2]["tensor"]))


def _at(flat: dict[str, Any], key: str) -> Any:
    section, _, name = key.partition(".")
    return flat[section][name]


def _fits(config: ConfigDict, model: Family, mesh: Mesh) -> bool:
    grid = AbstractMesh(tuple(mesh.values()), tuple(mesh))
    if config.data.batch_size % config.train.accumulate:
        return False
    try:
        check_fit(
            grid, make_rules(config.train.seeds, config.mesh.rules), sizes(config, model, grid), config.train.seeds
        )
    except UserError:
        return False
    return True


def candidate(one: Allowed, where: Slice, known: dict[str, Any], model: Family) -> Candidate:
    """What it needs at least, and is guessed to. known: what is said of a config before anything is compiled."""
    config, changes, mesh = one
    remat, tokens = config.model.get("remat", "none"), config.train.seeds * config.data.batch_size * config.data.length
    state = sum(
        size / math.prod(mesh[axis] for axis in axes.split("+") if axis) for axes, size in known["state_bytes"].items()
    )
    inputs = inputs_bytes(config, model, mesh)
    # What a policy does again is known at most, and not at least: a bound is of what is done once.
    facts = known | {"tokens_per_step": tokens, "devices": where.devices, "needed_bytes": state}
    kept = _kept(known, model, remat) * tokens / config.train.accumulate / where.devices
    guessed = {"needed_bytes": state * 4 / 3 + inputs + kept, "wire_bytes": _wire(config, mesh, known, model, tokens)}
    guessed["slow_wire_bytes"] = 2 * (1 - 1 / where.slices) * state / 3
    step = rates.step(facts | guessed, where, remat)
    return Candidate(
        config=config,
        changes=changes,
        mesh=mesh,
        least_bytes=state + inputs,
        least=rates.step(facts, where, "none").seconds / tokens,
        guess_bytes=guessed["needed_bytes"],
        guess=(step.seconds / tokens, sum(step[: len(rates.PARTS)]) / tokens),
    )


def _kept(known: dict[str, Any], model: Family, remat: str) -> float:
    """A guess of the bytes of a token that are kept besides the layers' inputs: one side of each matrix product, and
    four times as much of what lies between them (as llama_8b needs on v5e).
    """
    times = {"none": 5.0, "dots": 1.0, "full": 0.0}[remat]
    return times * known["parameters"] / model.width * jnp.dtype(model.dtype).itemsize


def _wire(config: ConfigDict, mesh: Mesh, known: dict[str, Any], model: Family, tokens: int) -> float:
    """A guess of the bytes that a device sends: parameters of each micro-batch twice and their gradients in a sum, all
    in the dtype of computation; of each layer four sums of activations over tensor, keys and values over context.
    """
    item, replica, fsdp, tensor, context = jnp.dtype(model.dtype).itemsize, *mesh.values()
    whole = known["parameters"] * config.train.seeds * item / tensor
    own = tokens / (replica * fsdp * context) * model.num_layers * model.width * item
    found = (2 * config.train.accumulate + 2) * whole * (fsdp - 1) / fsdp
    found += 2 * whole / fsdp * (1 - 1 / (replica * context))
    return found + 8 * own * (tensor - 1) / tensor + 4 * own / tensor * (context - 1) / context
