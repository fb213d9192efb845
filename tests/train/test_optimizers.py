"""Optimizers on stacked layers against plain optax on separate ones."""

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import base
from model import GPT, GPTConfig
from model.attention import BIASES
from model.errors import UserError
from tests.tiers import tiered
from train.decay import parse_decayed
from train.limits import check_config
from train.optimizers import OPTIMIZERS, group_labels, make_optimizer
from train.schedules import make_schedule

L, D, H, K, V = 3, 5, 2, 7, 13
STEPS = 7
# Adafactor factors only axes of 128 and more.
WIDE = 131
SHAPES = {
    "embed.embedding": (V, D),
    "attention_bias.table": (11, H),
    "stack.attention.query.kernel": (L, D, H, K),
    "stack.attention.output.kernel": (L, H, K, D),
    "stack.attention.output.bias": (L, D),
    "stack.attention.sinks": (L - 1, H),  # only some layers have them
    "stack.attention.gate.kernel": (L - 1, D, D),
    "stack.mlp.up.kernel": (L, WIDE, WIDE + 6),
    "stack.norm.scale": (L, D),
    "head.kernel": (D, V),
}


def made(config: ConfigDict) -> optax.GradientTransformation:
    return make_optimizer(config, make_schedule(config, STEPS))


def optimizer_config(**changes: object) -> ConfigDict:
    config = base.get_config().optimizer
    config.update({"warmup_steps": 2, "learning_rate": 0.01, "clip_norm": 3.0} | changes)
    return config


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        node = tree
        *parents, last = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flat_leaves(tree: Any) -> dict[str, Any]:
    return {".".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@cache
def arrays(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """One array per name; the layers differ in size, so that statistics mixed across them show."""
    rng = np.random.default_rng(seed)
    found = {name: scale * rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for name in found:
        if name.startswith("stack"):
            found[name] *= np.float32([1, 5, 25][: len(found[name])]).reshape(-1, *[1] * (found[name].ndim - 1))
    return found


def train(optimizer: optax.GradientTransformation, params: Any, gradients: list[Any]) -> Any:
    """Parameters after one update per gradient."""

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), stacked)
    return params


def plain(config: ConfigDict, kernel: bool, stacked: bool) -> optax.GradientTransformation:
    """What optax does to one leaf of one layer (a matrix, if it is one), written down without our code."""
    schedule, decay = make_schedule(config, STEPS), config.weight_decay if kernel else 0.0
    if config.name == "adafactor":
        return optax.adafactor(schedule, momentum=config.beta1, weight_decay_rate=lambda step: decay * schedule(step))
    if config.name == "muon" and kernel and stacked:
        return optax.contrib.muon(schedule, beta=config.beta1, weight_decay=decay, consistent_rms=0.2)
    make = optax.lion if config.name == "lion" else optax.adamw
    return make(schedule, config.beta1, config.beta2, weight_decay=decay)


def layers(name: str, leaf: jax.Array, muon: bool) -> list[jax.Array]:
    """A leaf as one array per layer, attention kernels as the matrices over heads x K that Muon sees."""
    if not name.startswith("stack"):
        return [leaf]
    shapes = {"query.kernel": (D, H * K), "output.kernel": (H * K, D)}
    shape = next((shape for end, shape in shapes.items() if muon and name.endswith(end)), leaf.shape[1:])
    return [leaf[row].reshape(shape) for row in range(len(leaf))]


@pytest.mark.parametrize("name", tiered([(name,) for name in OPTIMIZERS], lambda name: name in ("adamw", "muon")))
def test_stacked_layers_are_trained_as_separate_ones(name: str) -> None:
    config = optimizer_config(name=name)
    flats = [arrays(seed, scale) for seed, scale in ((0, 1.0), (1, 1.0), (2, 0.01), (3, 0.5))]
    norms = [np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in flat.values())) for flat in flats[1:]]
    clips = [np.float32(min(1, config.clip_norm / norm)) for norm in norms]
    assert clips[0] < 1

    def separately(flats: list[dict[str, Any]]) -> dict[str, list[Any]]:
        ends: dict[str, list[Any]] = {}
        for leaf_name in SHAPES:
            optimizer = plain(config, leaf_name.endswith("kernel"), leaf_name.startswith("stack"))
            per_layer = zip(*(layers(leaf_name, flat[leaf_name], name == "muon") for flat in flats), strict=True)
            ends[leaf_name] = [
                train(optimizer, start, [clip * step for clip, step in zip(clips, steps, strict=True)])
                for start, *steps in per_layer
            ]
        return ends

    together = jax.jit(partial(train, made(config)))(nested(flats[0]), [*map(nested, flats[1:])])
    for leaf_name, wanted in jax.jit(separately)(flats).items():
        starts = layers(leaf_name, flats[0][leaf_name], name == "muon")
        found = layers(leaf_name, flat_leaves(together)[leaf_name], name == "muon")
        for start, got, want in zip(starts, found, wanted, strict=True):
            assert np.abs(got - start).max() > 1e-4 * np.abs(start).max()
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6, err_msg=leaf_name)


DECAYED: dict[str, Callable[[str], bool]] = {
    "kernel": lambda name: name.endswith("kernel"),
    "kernel | embedding": lambda name: name.endswith(("kernel", "embedding")),
    "~(bias | scale)": lambda name: not name.endswith(("bias", "scale")),
    "all & ~kernel": lambda name: not name.endswith("kernel"),
    "table": lambda name: name == "attention_bias.table",
    "none": lambda name: False,
}


@pytest.mark.parametrize(
    ("name", "text"),
    [*((one, "all & ~kernel") for one in OPTIMIZERS if one != "adamw"), *(("adamw", one) for one in DECAYED)],
)
def test_what_is_decayed_is_what_was_said(name: str, text: str) -> None:
    zeros = jax.tree.map(jnp.zeros_like, nested(arrays(0)))
    starts = nested(arrays(0))
    optimizer = made(optimizer_config(name=name, decayed=text, warmup_steps=0, schedule="constant"))
    updates, _ = jax.jit(lambda zeros, starts: optimizer.update(zeros, optimizer.init(starts), starts))(zeros, starts)
    for leaf_name, update in flat_leaves(updates).items():
        wanted = -0.1 * 0.01 * arrays(0)[leaf_name] if DECAYED[text](leaf_name) else 0.0
        np.testing.assert_allclose(update, wanted, rtol=1e-5, atol=1e-12, err_msg=leaf_name)


@pytest.mark.parametrize(
    ("name", "epsilon"), [("adamw", 1e-8), ("adamw", 0.3), pytest.param("muon", 0.3, marks=pytest.mark.rest)]
)
def test_adamw_is_that_of_its_paper(name: str, epsilon: float) -> None:
    """In NumPy, with an epsilon that counts; of muon, what is no matrix."""
    betas, rate, decay = (0.7, 0.9), 0.01, 0.2
    chosen = {"beta1": betas[0], "beta2": betas[1], "epsilon": epsilon, "weight_decay": decay, "decayed": "embedding"}
    optimizer = made(optimizer_config(name=name, warmup_steps=0, schedule="constant", clip_norm=0.0, **chosen))
    flats = [arrays(seed) for seed in range(4)]
    together = flat_leaves(jax.jit(partial(train, optimizer))(nested(flats[0]), [*map(nested, flats[1:])]))
    for leaf, start in flats[0].items():
        if name == "muon" and leaf.startswith("stack") and leaf.endswith("kernel"):
            continue
        x, m, v = start.astype(np.float64), 0.0, 0.0
        for t, gradient in enumerate((flat[leaf].astype(np.float64) for flat in flats[1:]), 1):
            m, v = (
                beta * old + (1 - beta) * new
                for beta, old, new in zip(betas, (m, v), (gradient, gradient**2), strict=True)
            )
            step = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + epsilon)
            x = x - rate * (step + (decay * x if leaf.endswith("embedding") else 0))
        np.testing.assert_allclose(together[leaf], x, rtol=1e-5, atol=1e-6, err_msg=leaf)


@pytest.mark.parametrize("bias", BIASES)
def test_of_a_real_model_only_kernels_are_decayed_and_only_those_of_layers_are_matrices(bias: str) -> None:
    """Sinks and the parameters of attention biases, though some of them are matrices, belong to AdamW."""
    sizes = {"vocab_size": V, "max_length": 5, "num_layers": L, "width": 12, "num_heads": 3}
    config = GPTConfig(**sizes, bias=bias, sinks=True, use_bias=True, edits="qk_norm", position="learned", tied=False)
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))), nnx.Param))
    labels, decay = flat_leaves(group_labels(params)), flat_leaves(parse_decayed("kernel").of(params))
    attention = [f"stack.blocks.attention.{part}.kernel" for part in ("query", "key", "value", "output")]
    matrices = {*attention, "stack.blocks.mlp.up.kernel", "stack.blocks.mlp.down.kernel"}
    assert {name for name, label in labels.items() if label == "layer matrices"} == matrices
    assert {name for name, is_decayed in decay.items() if is_decayed} == {*matrices, "head.kernel"}
    assert labels["stack.blocks.attention.sinks"] == "layer others"
    learned = {name: label for name, label in labels.items() if name.startswith("attention_bias")}
    assert set(learned.values()) == (set() if bias in ("none", "alibi") else {"others"})


@pytest.mark.rest
@pytest.mark.parametrize("name", ["muon", "adafactor"])
def test_seeds_are_trained_as_alone(name: str) -> None:
    run = partial(train, made(optimizer_config(name=name)))
    starts, gradients = [nested(arrays(seed)) for seed in (0, 4)], [nested(arrays(seed)) for seed in (5, 6)]
    both, both_gradients = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (starts, gradients))
    together, alone = jax.jit(jax.vmap(run))(both, [both_gradients] * 2), jax.jit(run)
    for seed in range(2):
        wanted = alone(starts[seed], [gradients[seed]] * 2)
        for got, want in zip(jax.tree.leaves(together), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(got[seed], want, rtol=2e-5, atol=2e-6)


def test_a_model_without_a_stack_is_trained() -> None:
    params = {"head": {"kernel": jnp.ones((D, V))}}
    optimizer = made(optimizer_config(name="muon", warmup_steps=0))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert np.all(np.asarray(updates["head"]["kernel"]) < 0)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"name": "adam"}, "optimizer.name='adam'"),
        ({"beta1": 1.0}, "beta1=1.0"),
        ({"beta2": -0.1}, "beta2=-0.1"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"epsilon": 0.0}, "epsilon=0.0 must be at least 1e-18 and at most 1"),
        ({"decayed": "kernels"}, "optimizer.decayed='kernels': there is no kernels; the nearest is kernel."),
        ({"decayed": "kernel & embedding"}, "optimizer.decayed='kernel & embedding' is no parameter; write '|'"),
        ({"decayed": "~all"}, "optimizer.decayed='~all' is no parameter"),
    ],
)
def test_impossible_choices_are_refused_by_flag(changes: dict[str, object], flag: str) -> None:
    config = base.get_config()
    config.optimizer.update(changes)
    with pytest.raises(UserError, match=re.escape(flag)):
        check_config(config)
