"""Whether seed i is the same in every arm, and another one than seed j: shown by hashes, before anything is spent."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from launch.ablation.gates.budget import data_of, opened
from launch.ablation.plan import Plan, config_of, packs
from train.data import Rows, batches
from train.devices.placing import on_host
from train.devices.together import compiled_together
from train.sharding import placed
from train.tasks.table import make_task

_CHUNK = 256  # windows that are read at once


@dataclass(frozen=True)
class Evidence:
    """What the seeds of an arm begin with and read, as hashes.

    leaves: path and shape of each parameter to {seed: hash of its first value}. batches: number to {seed: hash of that
    batch}. draws: {seed: hash of the key from which dropout is drawn by (seed, step, row)}. evaluation: of all items
    that are measured, which all seeds share.
    """

    leaves: Mapping[tuple[str, tuple[int, ...]], Mapping[int, str]] = field(default_factory=dict)
    batches: Mapping[int, Mapping[int, str]] = field(default_factory=dict)
    draws: Mapping[int, str] = field(default_factory=dict)
    evaluation: str = ""


def evidence_of(plan: Plan, seeds: Sequence[int]) -> dict[str, Evidence]:
    """Of each arm, what its programs of these seeds would begin with and read: their first batch, and the last one that
    each two arms both read.

    Raises:
        UserError: a config or its text cannot be used.
    """
    steps = {arm: config_of(plan, arm).train.steps for arm in plan.arms}
    numbers = {0, *(min(steps[one], steps[other]) - 1 for one, other in itertools.combinations(plan.arms, 2))}
    return {arm: _evidence(plan, arm, tuple(seeds), sorted(numbers)) for arm in plan.arms}


def _evidence(plan: Plan, arm: str, seeds: tuple[int, ...], numbers: Iterable[int]) -> Evidence:
    leaves: dict[tuple[str, tuple[int, ...]], dict[int, str]] = {}
    draws: dict[int, str] = {}
    makers: dict[int, Any] = {}  # by the number of seeds: compiled once
    for pack in packs(plan, seeds):
        experiment = opened(config_of(plan, arm, None, len(pack), pack[0]))
        with placed(experiment.mesh, experiment.rules):
            make = makers.setdefault(len(pack), compiled_together(experiment.make_state.func))
            state = make(*experiment.make_state.args)
        for place, seed in enumerate(pack):
            draws[seed] = hashed(_of_seed(jax.random.key_data(state.rng), place, pack))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shape = leaf.shape[1:] if len(pack) > 1 else leaf.shape
            for place, seed in enumerate(pack):
                leaves.setdefault((name, shape), {})[seed] = hashed(_of_seed(leaf, place, pack))
    config = config_of(plan, arm)
    task, data = make_task(config), data_of(config)
    read = {number: _batch(plan, arm, task.rows(data), seeds, number) for number in numbers}
    return Evidence(leaves, read, draws, _items(task.measured(data, config.train.evaluate_windows)))


def _of_seed(x: Any, place: int, pack: tuple[int, ...]) -> np.ndarray:
    return np.asarray(on_host(x[place] if len(pack) > 1 else x))


def _batch(plan: Plan, arm: str, windows: Rows, seeds: tuple[int, ...], number: int) -> dict[int, str]:
    found = {}
    for seed in seeds:
        data = config_of(plan, arm, None, 1, seed).data
        rows = next(batches(windows, data.batch_size, data.seed, start=number, prefetch=0))
        found[seed] = hashed(*(rows[name] for name in sorted(rows)))
    return found


def _items(windows: Rows) -> str:
    places = np.array_split(np.arange(len(windows)), -(-len(windows) // _CHUNK))
    rows = [windows.rows(some) for some in places]
    return hashed(*(one[name] for one in rows for name in sorted(one)))


def hashed(*arrays: np.ndarray) -> str:
    """16 hexadecimal digits of the SHA-256 of arrays, their types and their shapes."""
    known = hashlib.sha256()
    for array in arrays:
        known.update(f"{array.dtype} {array.shape} ".encode())
        known.update(np.ascontiguousarray(array).tobytes())
    return known.hexdigest()[:16]


def differences(one: Evidence, other: Evidence) -> dict[str, str]:
    """What two arms do not share that pairs do share, by gate: init, batches, dropout, evaluation; {} of true pairs."""
    found = {}
    wrong = [name for name, hashes in one.leaves.items() if name in other.leaves and hashes != other.leaves[name]]
    if wrong:
        found["init"] = f"the first values of {_names(path for path, _ in wrong)} are others"
    last = [number for number in one.batches if one.batches[number] != other.batches.get(number)]
    if last:
        found["batches"] = f"batch {', '.join(str(number + 1) for number in last)} is another"
    if one.draws != other.draws:
        found["dropout"] = "dropout is drawn from other keys"
    if one.evaluation != other.evaluation:
        found["evaluation"] = "they are measured on other items"
    return found


def alike(one: Evidence, other: Evidence) -> dict[str, str]:
    """What two arms of true pairs share, and the hash of it, by gate."""
    leaves = {name: hashes for name, hashes in sorted(one.leaves.items()) if name in other.leaves}
    read = [f"batch {number + 1} {_short(hashes)}" for number, hashes in one.batches.items() if number in other.batches]
    return {
        "init": f"{len(leaves)} shared parameters {_short(leaves)}" if leaves else "no parameter is shared",
        "batches": ", ".join(read),
        "dropout": f"keys {_short(one.draws)}",
        "evaluation": f"items {one.evaluation[:8]}",
    }


def _short(hashes: object) -> str:
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:8]


def constant(evidence: Evidence) -> list[str]:
    """What two seeds of an arm have in common that is to vary: its first values, its order of batches, its dropout."""
    seeds = [*evidence.draws]
    first = [tuple(hashes[seed] for hashes in evidence.leaves.values()) for seed in seeds]
    kinds: dict[str, list[Any]] = {
        "first values": first,
        "order of batches": [evidence.batches[0][seed] for seed in seeds],
        "dropout": [evidence.draws[seed] for seed in seeds],
    }
    return [name for name, values in kinds.items() if len({*values}) < len(seeds)]


def _names(paths: Iterable[str]) -> str:
    some = [*paths]
    return ", ".join(some[:3]) + (f" and {len(some) - 3} others" if len(some) > 3 else "")
