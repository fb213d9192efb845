"""Linear maps: what one CPU is given to multiply, what a mesh is, and that derivatives of both modes pass through."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPT, GPTConfig
from model.layers import Linear
from model.stack.block import Block
from model.stack.config import REMAT
from tests.small import random_batch, run
from train.devices.mesh import make_mesh, make_rules
from train.sharding import placed
from train.tasks.language_model import language_model

B, T, V, N = 3, 5, 31, 2
SIZES = {"vocab_size": V, "max_length": T, "num_layers": 2, "width": 24, "num_heads": 6, "mlp_width": 37}
MODELS = [{"tied": False, "use_bias": True}, {"mlp": "swiglu", "num_kv_heads": 2}]
Pull = Callable[[Any, jax.Array, jax.Array], Any]


def linear_maps() -> list[tuple[Pull, nnx.State, jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]]:
    """Of each linear map of the models: value and gradients, and the shapes of its parameters, input and output."""
    found = []
    for changes in MODELS:
        config = GPTConfig(**SIZES, **changes)
        for _, module in nnx.iter_modules(nnx.eval_shape(lambda config=config: Block(config, nnx.Rngs(0)))):
            if isinstance(module, Linear):
                graphdef, params = nnx.split(module)
                f = lambda params, x, graphdef=graphdef: nnx.merge(graphdef, params)(x)  # noqa: E731
                x = jax.ShapeDtypeStruct((B, T, *module.kernel.shape[: module.num_inputs]), jnp.float32)
                found.append((pulled(f), params, x, jax.eval_shape(f, params, x)))
    return found


def pulled(f: Callable[[Any, jax.Array], jax.Array]) -> Pull:
    def both(params: Any, x: jax.Array, dy: jax.Array) -> Any:
        y, pull = jax.vjp(f, params, x)
        return y, pull(dy)

    return both


MAPS = linear_maps()


def lowered() -> Any:
    """All linear maps, forward and backward, in one program."""
    pulls, *arguments = zip(*MAPS, strict=True)
    return jax.jit(lambda *all_of: [pull(*each) for pull, *each in zip(pulls, *all_of, strict=True)]).lower(*arguments)


def test_one_cpu_multiplies_and_moves_nothing() -> None:
    """Three products for each linear map, none of which waits for an array that is written out transposed."""
    assert len(MAPS) == 13  # query, key, value, output, up and down, twice; a gate
    text = lowered().compile().as_text()
    assert text.count(" dot(") == 3 * len(MAPS)
    assert re.findall(r" = \S+ (?:transpose|copy)\(", text) == []


def test_a_mesh_is_not_asked_to_merge_axes() -> None:
    """What is split over batch and length would have to be gathered first."""
    with placed(make_mesh({"replica": 1, "fsdp": 1, "tensor": 1, "context": 2}), make_rules(1)):
        text = lowered().as_text()
    assert text.count("stablehlo.dot_general") == 3 * len(MAPS)
    assert f"tensor<{B * T}x" not in text


@pytest.mark.rest
@pytest.mark.parametrize("remat", REMAT)
def test_forward_mode_agrees_with_reverse_mode(remat: str) -> None:
    """The slope of the loss along a direction, by jvp, by linearize and from the gradient, for two seeds at once."""
    config = GPTConfig(**SIZES, tied=False, core="dense", remat=remat)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))))
    batch = random_batch(0, B, T, V)

    def params(seed: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(GPT(config, rngs=nnx.Rngs(jax.random.key(seed))), nnx.Param))

    def slopes(seed: jax.Array) -> Any:
        at, along = params(seed), params(seed + 7)

        def loss(params: Any) -> jax.Array:
            return language_model(graphdef)(params, batch, None)["loss"][0]

        value, gradient = jax.value_and_grad(loss)(at)
        by_jvp, by_linearize = jax.jvp(loss, (at,), (along,)), jax.linearize(loss, at)
        products = jax.tree.map(lambda one, other: jnp.sum(one * other), gradient, along)
        return (value, sum(jax.tree.leaves(products))), by_jvp, (by_linearize[0], by_linearize[1](along))

    expected, *others = run(jax.vmap(slopes, spmd_axis_name="replica"), jnp.arange(N))
    assert np.ptp(expected[1]) > 0.1 < np.abs(expected[1]).min()
    for other in others:
        np.testing.assert_allclose(other, expected, rtol=1e-5)
