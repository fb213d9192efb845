"""What an arm costs, counted in the programs that it would run."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from launch.ablation.gates.products import products
from launch.configs import load
from model.families.family import Family
from model.parameters import flat_params
from train.data.finding import find_files
from train.data.opening import data_folder
from train.devices.memory import device_bytes
from train.devices.together import compiled_together
from train.experiment import Experiment, make_experiment, make_model_config
from train.run.files.learned import flatten
from train.sharding import placed
from train.tasks.base import Task
from train.tasks.table import make_task

_TABLES = {"vocab", "position"}  # the axes of what is looked up by a token, or by a place, and of the output head
_STEPS = 3  # that are timed, after one that is not
_NOT_COUNTED = {"train.steps": 2, "optimizer.learning_rate": 1e-3}  # what is no matter of a step's products
_OF_ORDER = {"seed": 0, "order": "own", "batch_size": 1, "prefetch": 0}  # of config.data, what is no matter of the text


@dataclasses.dataclass(frozen=True)
class Budget:
    """What one seed of an arm costs.

    parameters: with embeddings and output head; `matrices` is without them, and without tables of positions.
    flops_per_token: of all matrix products of a training step, those that are computed again included, per token that
    is read. tokens: read in the whole run. memory: bytes of a device for the program, at least. seconds: of a step, the
    program's shared by its seeds; None where none was measured.
    """

    parameters: int
    matrices: int
    flops_per_token: float
    tokens: int
    steps: int
    memory: int
    seconds: float | None = None

    @property
    def flops(self) -> float:
        """Of the whole run."""
        return self.flops_per_token * self.tokens

    @property
    def shown(self) -> dict[str, object]:
        """What a page shows of it: no time, which is the machine's."""
        return {
            "parameters": self.parameters,
            "without embeddings": self.matrices,
            "FLOPs per token": self.flops_per_token,
            "flops": self.flops,
            "tokens": self.tokens,
            "memory": self.memory,
        }

    @property
    def minutes(self) -> float | None:
        """Predicted for all steps, without compilation and evaluations."""
        return None if self.seconds is None else self.seconds * self.steps / 60


def budget_of(config: ConfigDict, *, measured: bool = False) -> Budget:
    """The budget of a config, on the text that it names; with `measured`, a few steps are trained and timed.

    Raises:
        UserError: the config or its text cannot be used, or a kernel does not show what it multiplies.
    """
    experiment, seeds = opened(config), config.train.seeds
    every, matrices = parameters_of(experiment.model_config)
    return Budget(
        parameters=every,
        matrices=matrices,
        flops_per_token=_flops_per_token(tuple(sorted((flatten(config) | _NOT_COUNTED).items())), data_of(config)),
        tokens=_tokens(config),
        steps=config.train.steps,
        memory=sum(device_bytes(experiment)),
        seconds=_seconds(experiment) / seeds if measured else None,
    )


def opened(config: ConfigDict) -> Experiment:
    """The experiment of a config, with the vocabulary and the labels of its data."""
    return _opened(config, data_of(config))


def _opened(config: ConfigDict, data: Any) -> Experiment:
    return make_experiment(config, data.tokenizer.vocab_size, labels=len(data.names))


def data_of(config: ConfigDict) -> Any:
    """The data that a config names, as its task opens them, once, and again where a file of them was written since."""
    keys = tuple(sorted({**config.data, **_OF_ORDER}.items()))
    return _data(keys, make_task(config), _written(config.data))


@functools.lru_cache(maxsize=8)
def _data(keys: tuple[tuple[str, int | str], ...], task: Task, written: tuple[tuple[str, int, int], ...]) -> Any:
    return task.open(ConfigDict({"data": dict(keys)}))


def _written(data: ConfigDict) -> tuple[tuple[str, int, int], ...]:
    """Of each file of one's own text its name, when it was written, and its size; a prepared data set rests."""
    if not data.path:
        return ()
    files, _ = find_files(data.path, data_folder(data.dir) / "heed")
    seen = {name: file.stat() for name, file in files.items()}
    return tuple((name, one.st_mtime_ns, one.st_size) for name, one in seen.items())


def parameters_of(config: Family) -> tuple[int, int]:
    """(all parameters, those that are no table over the vocabulary or over positions)."""
    params = flat_params(nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))).values()
    sizes = [(math.prod(one.shape), bool(_TABLES & {*one.axes})) for one in params]
    return sum(size for size, _ in sizes), sum(size for size, is_table in sizes if not is_table)


@functools.lru_cache(maxsize=64)
def _flops_per_token(keys: tuple[tuple[str, int | float | str], ...], data: Any) -> float:
    """Of the config of these keys on this text, counted once however long it is trained."""
    config = load("base", **dict(keys))
    experiment = _opened(config, data)
    with placed(experiment.mesh, experiment.rules):
        first = next(experiment.batches(experiment.task.rows(data), 0))
        flops = products(experiment.step, experiment.abstract, given=(first,))
    return flops / math.prod((config.train.seeds, config.data.batch_size, config.data.length))


def _seconds(experiment: Experiment) -> float:
    """Of the median of a few steps, by the program that the run would run."""
    with placed(experiment.mesh, experiment.rules):
        first, step = experiment.make_state, compiled_together(experiment.step)
        batch = next(experiment.batches(experiment.task.rows(data_of(experiment.config)), 0))
        state = compiled_together(first.func)(*first.args)
        times = []
        for _ in range(1 + _STEPS):
            began = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


# What a plan can match, each from a config alone, for a search that asks often.
AMOUNTS: Mapping[str, Callable[[ConfigDict], float]] = {
    "parameters": lambda config: float(_parameters(config)),
    "flops": lambda config: budget_of(config).flops,
    "tokens": lambda config: float(_tokens(config)),
}


def _tokens(config: ConfigDict) -> int:
    return int(config.train.steps * config.data.batch_size * config.data.length)


def _parameters(config: ConfigDict) -> int:
    return parameters_of(make_model_config(config, data_of(config).tokenizer.vocab_size))[0]


def amount(budget: Budget, matched: str) -> float:
    """What a plan matches, 'parameters', 'flops' (of the whole run) or 'tokens', of a budget."""
    return float(getattr(budget, matched))
