"""Learning rates over the steps of a run: a linear warm-up, then one of a table of shapes."""

import math
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from model.errors import Range


class ScheduleConfig(Protocol):
    """The keys of `config.optimizer` that a schedule reads."""

    learning_rate: float
    schedule: str
    warmup_steps: int
    decay_fraction: float
    final_fraction: float


def constant(config: ScheduleConfig, steps: int, decay_steps: int) -> optax.Schedule:
    """The learning rate, unchanged."""
    return optax.constant_schedule(config.learning_rate)


def cosine(config: ScheduleConfig, steps: int, decay_steps: int) -> optax.Schedule:
    """Half a cosine from the learning rate to final_fraction of it (Loshchilov and Hutter 2017, equation 5)."""
    return optax.cosine_decay_schedule(config.learning_rate, steps, config.final_fraction)


def linear(config: ScheduleConfig, steps: int, decay_steps: int) -> optax.Schedule:
    """A straight line from the learning rate to final_fraction of it."""
    return optax.linear_schedule(config.learning_rate, config.learning_rate * config.final_fraction, steps)


def wsd(config: ScheduleConfig, steps: int, decay_steps: int) -> optax.Schedule:
    """Warm-up, stable, decay: constant, and a straight line in the last steps (Hu et al. 2024, section 4)."""
    decay = linear(config, decay_steps, decay_steps)
    return optax.join_schedules([constant(config, steps, decay_steps), decay], [steps - decay_steps])


def inverse_sqrt(config: ScheduleConfig, steps: int, decay_steps: int) -> optax.Schedule:
    """learning_rate x sqrt(W / step) at step >= W = max(warmup_steps, 1) (Vaswani et al. 2017, section 5.3)."""
    start = max(config.warmup_steps, 1)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        return config.learning_rate * jnp.sqrt(start / (start + jnp.maximum(step, 0)))

    return schedule


SCHEDULES: dict[str, Callable[[ScheduleConfig, int, int], optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
    "inverse_sqrt": inverse_sqrt,
}


RANGES = {
    "learning_rate": Range(0, math.inf),
    "warmup_steps": Range(0),
    "decay_fraction": Range(0, 1),
    "final_fraction": Range(0, 1),
}


def make_schedule(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates done, for a run of `steps` updates.

    A run shorter than its warm-up ends inside it, and a WSD decay never begins before the warm-up has ended.

    What the config may hold: see `train.limits.check_config`.
    """
    warmup = config.warmup_steps
    rest = max(steps - warmup, 1)
    shape = SCHEDULES[config.schedule](config, rest, _decay_steps(config, steps))
    if not warmup:
        return shape
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), shape], [warmup])


def decay_start(config: ScheduleConfig, steps: int) -> int | None:
    """The updates of a wsd run before its decay, so far it is also the beginning of a longer one; None for others.

    0 where all of the run is decay.
    """
    return max(steps, config.warmup_steps + 1) - _decay_steps(config, steps) if config.schedule == "wsd" else None


def _decay_steps(config: ScheduleConfig, steps: int) -> int:
    return min(max(round(config.decay_fraction * steps), 1), max(steps - config.warmup_steps, 1))
