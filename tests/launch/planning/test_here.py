"""The model of time beside steps of this machine, whose eight devices are parts of it."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.bench import random_batch
from launch.configs import load
from launch.planning import rates
from launch.planning.chips import parse_topology
from launch.planning.compiled.facts import abstract_batch, known, of_program
from train.devices.machine import compiler_options
from train.experiment import make_experiment
from train.sharding import placed

WHERE = parse_topology("cpu:8", here=True)
PLAIN = {"data.tokenizer": "bytes", "model.num_heads": 8, "optimizer.warmup_steps": 0}
FSDP, REPLICA, TENSOR = {"mesh.fsdp": 8}, {"mesh.fsdp": 1, "mesh.replica": 8}, {"mesh.fsdp": 1, "mesh.tensor": 8}
BOTH, CONTEXT = {"mesh.fsdp": 4, "mesh.tensor": 2}, {"mesh.fsdp": 2, "mesh.context": 4}
FULL, DOTS = {"model.remat": "full"}, {"model.remat": "dots"}


def parts(number: int) -> dict[str, Any]:
    """That many micro-batches."""
    return {"train.accumulate": number}


def sized(layers: int, width: int, length: int, rows: int) -> dict[str, Any]:
    """A group's model and batch."""
    return PLAIN | {
        "model.num_layers": layers, "model.width": width, "data.length": length, "data.batch_size": rows,
    }  # fmt: skip


GROUPS = [
    (sized(4, 128, 128, 32), [TENSOR, FSDP, FSDP | FULL, FSDP | parts(4)]),
    (sized(2, 256, 64, 64), [TENSOR, TENSOR | FULL, REPLICA, CONTEXT | FULL]),
    (sized(6, 64, 256, 32), [TENSOR | parts(2), FSDP, BOTH | DOTS, REPLICA | parts(4)]),
]
OTHERS = [
    (sized(3, 192, 64, 64), [TENSOR, FSDP, REPLICA | FULL, FSDP | parts(4)]),
    (sized(5, 96, 192, 32), [REPLICA, TENSOR | FULL, CONTEXT, BOTH | parts(2)]),
]


class Measured(NamedTuple):
    """A step: what its program says, and its seconds."""

    found: dict[str, Any]
    seconds: float


def prepared(config: ConfigDict) -> tuple[dict[str, Any], Callable[[], None]]:
    """The facts of a config's step, and the step, with random tokens, to its end."""
    experiment = make_experiment(config)
    with placed(experiment.mesh, experiment.rules):
        lowered: Any = experiment.step.lower(experiment.abstract, abstract_batch(experiment))
        program = lowered.compile(compiler_options("cpu"))
        state, batch = experiment.make_state(), experiment.place(random_batch(config, 256))

    def run() -> None:
        nonlocal state
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)

    return known(experiment, WHERE) | of_program(program, experiment), run


def measured(configs: list[dict[str, Any]], rounds: int) -> list[Measured]:
    """Each step's median over rounds, in which they take turns, after one that is not timed."""
    steps = [prepared(load("base", **keys)) for keys in configs]
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds + 1):
        for one, (_, run) in zip(times, steps, strict=True):
            began = time.perf_counter()
            run()
            one.append(time.perf_counter() - began)
    return [Measured(found, statistics.median(one[1:])) for one, (found, _) in zip(times, steps, strict=True)]


@pytest.mark.rest
def test_the_model_orders_steps_of_equal_work() -> None:
    """Kendall's tau inside of groups whose tokens cost the same, over pairs that differ by a tenth; fitted on others.

    That of executed FLOPs beside it, where a tie is neither right nor wrong.
    """
    configs = [size | keys for size, some in (*GROUPS, *OTHERS) for keys in some]
    steps = measured(configs, 5)
    tested, chip = steps[:12], rates.fitted(steps[12:], WHERE)
    modelled = [rates.step(one.found, WHERE, "none", chip) for one in tested]
    flops = [one.found["executed_flops_per_token"] for one in tested]
    seconds = [one.seconds for one in tested]
    print(f"\n{chip}")
    for keys, one, model in zip(configs, tested, modelled, strict=False):
        print({name: value for name, value in keys.items() if name not in PLAIN}, f"{one.seconds:.3f}", model)
    pairs = [
        (i, j)
        for first in (0, 4, 8)
        for i, j in itertools.combinations(range(first, first + 4), 2)
        if max(seconds[i], seconds[j]) >= 1.1 * min(seconds[i], seconds[j])
    ]
    taus = [_tau(pairs, seconds, some) for some in ([one.seconds for one in modelled], flops)]
    errors = [abs(model.seconds / one.seconds - 1) for model, one in zip(modelled, tested, strict=True)]
    print(f"tau {taus[0]:.2f}, of executed FLOPs {taus[1]:.2f}; {18 - len(pairs)} of 18 pairs left out")
    print(f"median error {np.median(errors):.2f}")
    for first in (0, 4, 8):
        assert len({one.found["flops_per_token"] for one in tested[first : first + 4]}) == 1
    assert len(pairs) >= 10
    assert taus[0] >= 0.6
    assert taus[0] > taus[1]


def _tau(pairs: list[tuple[int, int]], seconds: list[float], said: list[float]) -> float:
    return float(np.mean([np.sign((seconds[i] - seconds[j]) * (said[i] - said[j])) for i, j in pairs]))
