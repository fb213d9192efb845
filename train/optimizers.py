"""Optimizers over the parameters of a model whose layers are stored stacked.

Parameters are nested dicts. Leaves below a key 'stack' have a leading axis of the layers that have them, and are
updated layer by layer: what an optimizer measures of a matrix (Adafactor's RMS, Muon's orthogonalisation) never mixes
layers. Leaves named 'kernel' are matrices; which leaves are decayed is said by `config.optimizer.decayed`.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from model.errors import Range
from train.decay import parse_decayed
from train.schedules import ScheduleConfig

Params = Any  # a nested dict of arrays


class OptimizerConfig(ScheduleConfig, Protocol):
    """The keys of `config.optimizer`."""

    name: str
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    decayed: str
    clip_norm: float


Maker = Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns clipping by global norm, then the named optimizer with a schedule.

    What the config may hold: see `train.limits.check_config`.
    """
    matrices, others = OPTIMIZERS[config.name]
    groups = {
        "layer matrices": per_layer(matrices(config, schedule)),
        "layer others": per_layer(others(config, schedule)),
        "others": others(config, schedule),
    }
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(clip, optax.partition(groups, group_labels))


def per_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer that treats row l of every leaf (n, ...) as a parameter of its own, with its own count.

    Its state is {n: that of the leaves with n rows}: what only some layers have, has fewer.
    """

    def init(params: Params) -> Any:
        return {str(n): jax.vmap(optimizer.init)(_of_rows(n, params)) for n in _numbers_of_rows(params)}

    def update(updates: Params, state: Any, params: Params = None) -> tuple[Params, Any]:
        new = {}
        for n in _numbers_of_rows(updates):
            some = None if params is None else _of_rows(n, params)
            changed, new[str(n)] = jax.vmap(optimizer.update)(_of_rows(n, updates), state[str(n)], some)
            updates = jax.tree.map(
                lambda one, old: old if _is_masked(one) else one, changed, updates, is_leaf=_is_masked
            )
        return updates, new

    return optax.GradientTransformation(init, update)


def _numbers_of_rows(tree: Params) -> list[int]:
    return sorted({len(leaf) for leaf in jax.tree.leaves(tree)})


def _of_rows(n: int, tree: Params) -> Params:
    """The tree without the leaves that have another number of rows."""
    return jax.tree.map(lambda leaf: leaf if len(leaf) == n else optax.MaskedNode(), tree)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def group_labels(params: Params) -> Params:
    """Returns the group of each leaf: matrices of the stack's layers, their other leaves, or leaves outside of it."""

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        if "stack" not in _names(path):
            return "others"
        return "layer matrices" if _names(path)[-1] == "kernel" else "layer others"

    return jax.tree_util.tree_map_with_path(label, params)


def matrix_axes(params: Params) -> Params:
    """Returns which axes of each kernel are its rows and columns; those of one layer, without the axis L.

    Attention kernels are matrices over all heads: query, key, value (D, H, K) are D x HK, output (H, K, D) is HK x D.
    """

    def axes(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers:
        rows = leaf.ndim - 1 if _names(path)[-2] == "output" else 1
        return MuonDimensionNumbers(tuple(range(rows)), tuple(range(rows, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(axes, params)


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2), epsilon outside of the root."""
    return optax.adamw(schedule, config.beta1, config.beta2, config.epsilon, **_decay(config, "mask"))


def _lion(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, algorithm 2): the learning rate is usually 3 to 10 times smaller than AdamW's."""
    return optax.lion(schedule, config.beta1, config.beta2, **_decay(config, "mask"))


# Of optax's default, Jordan's quintic.
_NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for matrices, with Nesterov momentum beta1.

    An update has root mean square 0.2 x learning rate, whatever the shape (Liu et al. 2025, section 2.2), which is
    about AdamW's: so one learning rate serves the matrices and the rest, and AdamW's is a good first guess.
    """
    return muon(
        schedule,
        # One triple for each step of Newton and Schulz makes a loop of them. Unrolled, as by default, XLA computes what
        # the steps before have made again in each step.
        ns_coeffs=(_NEWTON_SCHULZ,) * 5,
        beta=config.beta1,
        muon_weight_dimension_numbers=matrix_axes,
        consistent_rms=0.2,
        **_decay(config, "weight_decay_mask"),
    )


def _adafactor(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor (Shazeer and Stern 2018, algorithm 5): the learning rate is relative to the RMS of each parameter."""
    return optax.adafactor(
        schedule,
        momentum=config.beta1 or None,
        # optax applies this rate as it is; the other optimizers' decay is times the learning rate.
        weight_decay_rate=lambda step: config.weight_decay * schedule(step),
        weight_decay_mask=parse_decayed(config.decayed).of,
    )


def _decay(config: OptimizerConfig, mask: str) -> dict[str, Any]:
    return {"weight_decay": config.weight_decay, mask: parse_decayed(config.decayed).of}


# For the matrices of the layers, and for everything else.
OPTIMIZERS: dict[str, tuple[Maker, Maker]] = {
    "adamw": (_adamw, _adamw),
    "lion": (_lion, _lion),
    "muon": (_muon, _adamw),
    "adafactor": (_adafactor, _adafactor),
}

RANGES = {
    "beta1": Range(0, 1, below=True),
    "beta2": Range(0, 1, below=True),
    # Below, what has gradients whose squares are 0 in float32 would be divided by little more than 0.
    "epsilon": Range(1e-18, 1),
    "weight_decay": Range(0, math.inf),
    "clip_norm": Range(0, math.inf),
}


def _names(path: tuple[Any, ...]) -> list[str]:
    return [key.key for key in path]
