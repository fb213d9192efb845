"""The loop around the step: when to log, evaluate, save and stop."""

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import Diverged
from train.devices.placing import on_host
from train.state import Params, State, groups
from train.step import Metrics
from train.tasks.base import Batch

Values = dict[str, Any]


class Hooks(Protocol):
    """What the loop calls; a step number is the number of updates that the state has seen."""

    def evaluate(self, step: int, state: State) -> Values:
        """Measures the state; returns names and values, empty when it was told to stop."""

    def save(self, step: int, state: State, values: Values) -> None:
        """Starts to write a checkpoint."""

    def record(self, step: int, values: Values, waited: float) -> None:
        """Takes a step's metrics, and the seconds for which the step waited for its batch."""


def train(
    step: Callable[[State, Batch], tuple[State, Metrics]],
    state: State,
    batches: Iterator[Batch],
    hooks: Hooks,
    *,
    start: int,
    steps: int,
    evaluate_every: int,
    saves: Callable[[int], bool],
    should_stop: Callable[[int], bool],
    owes_evaluation: bool = False,
) -> State:
    """Runs updates start + 1 to `steps`, or fewer when it is told to stop; the last state is always saved.

    `saves(n)` says whether the state of n updates is saved on the way. A run that was told to stop at a step whose
    evaluation was due owes it: it is made up for before the next update, or at the end.

    Raises:
        Diverged: a loss, a gradient or a parameter is not finite; nothing of it has been saved.
    """
    finite = jax.jit(_finite)
    pending: tuple[int, Metrics, float] | None = None

    def flush() -> None:
        nonlocal pending
        if pending is not None:
            number, metrics, waited = pending
            pending = None
            values = on_host(metrics)
            check_finite(number, values)
            hooks.record(number, values, waited)

    def save(number: int, state: State, values: Values) -> None:
        flush()
        check_finite(number, on_host(finite(state.params)))
        hooks.save(number, state, values)

    n = start
    while n < steps and not should_stop(n):
        # The order matters. What is due for the state of n updates comes before batch n is taken, so the data is
        # never ahead of the weights. Metrics of update n - 1 are read while update n runs, so the device never waits
        # for the host.
        values = {}
        if n % evaluate_every == 0 and (n > start or owes_evaluation):
            flush()  # a step that is not finite is told by its parts, before time is spent on it
            values = hooks.evaluate(n, state)
            if not values:  # told to stop meanwhile: the evaluation is owed
                break
        if saves(n) and n > start:
            save(n, state, values)
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        state, metrics = step(state, batch)
        flush()
        n += 1
        pending = (n, metrics, waited)
    flush()
    values = hooks.evaluate(n, state) if n == steps and (n > start or owes_evaluation) else {}
    if n > start:
        save(n, state, values)
    return state


def check_finite(step: int, values: Values) -> None:
    """Refuses values that are not finite, by the names of their parts of the model.

    Raises:
        Diverged: names the parts and the step.
    """
    bad = [name.removeprefix("grad_norm/") for name, value in values.items() if not np.all(np.isfinite(value))]
    if bad:
        raise Diverged(
            f"step {step} is not finite in {', '.join(bad)}: nothing of it was saved, earlier checkpoints are intact;"
            " lower --config.optimizer.learning_rate, keep ids of your own batches within the vocabulary, or set"
            " --config.optimizer.clip_norm."
        )


def _finite(params: Params) -> Metrics:
    """By group, 0 where every parameter is finite, else not finite."""
    leaves = {name: jax.tree.leaves(part) for name, part in groups(params).items()}
    return {name: sum((jnp.sum(leaf * 0) for leaf in part), jnp.zeros(())) for name, part in leaves.items()}
