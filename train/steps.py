"""The kinds of steps: which one is read once, when an experiment is made."""

from collections.abc import Callable
from typing import NamedTuple

import optax
from jax.sharding import Mesh

from model import sums
from model.layers import choose
from train.explicit import check_explicit, make_explicit_step
from train.state import State
from train.step import Step, make_step
from train.tasks.base import Carried

Maker = Callable[[Carried, optax.GradientTransformation, int], Step]


class Kind(NamedTuple):
    """What makes a step of (loss, optimizer, micro-batches), and what refuses a mesh, a state on it or many seeds."""

    make: Maker
    check: Callable[[Mesh, State, int], None] = lambda mesh, abstract, seeds: None


def make_wide_step(loss: Carried, optimizer: optax.GradientTransformation, accumulate: int = 1) -> Step:
    """`make_step`, whose gradients devices add in float32 though they compute in bfloat16: sums of twice the bytes."""
    return sums.in_float32()(make_step(loss, optimizer, accumulate))


STEPS = {
    "partitioned": Kind(make_step),
    "partitioned_float32": Kind(make_wide_step),
    "explicit": Kind(make_explicit_step, check_explicit),
}


def choose_step(name: str, mesh: Mesh, abstract: State, seeds: int) -> Maker:
    """What makes steps of this kind.

    Raises:
        UserError: there is no such kind, or it does not serve this mesh, this state on it or so many seeds.
    """
    kind = choose(STEPS, name, "train.step")
    kind.check(mesh, abstract, seeds)
    return kind.make
