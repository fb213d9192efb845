"""Gradients that devices add in float32, though all is computed in bfloat16."""

import contextlib
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.configs import load
from launch.planning.chips import parse_topology
from launch.planning.running import planned
from model import sums, vocabulary
from model.layers import Linear
from tests.small import compiled_step, losses, random_batches, run, small_experiment
from tests.train.test_sharding import mesh_keys
from tests.train.test_tpu import needs_compiler
from train.devices.mesh import make_mesh, make_rules
from train.sharding import placed
from train.state import dropout_keys

FLOAT32 = {"train.step": "partitioned_float32"}
BFLOAT16 = {"model.dtype": "bfloat16"}
ALL = {
    "model.tied": True,
    "model.use_bias": "true & head",
    "model.position": "learned",
    "model.edits": "value_residual",
    "model.dropout": 0.1,
}
CUT = {"model.tied": False, "model.remat": "full"}  # in slices of the vocabulary


def of_kernel(x_BD: jax.Array, dy_BHK: jax.Array, linear: Linear) -> jax.Array:
    graphdef, params = nnx.split(linear)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, params)(x_BD).astype(jnp.float32) * dy_BHK)

    return jax.grad(loss)(params)["kernel"][...]


@pytest.mark.parametrize("rules", ["fsdp", "replicated"])
def test_a_gradient_of_eight_devices_is_the_sum_in_float64(rules: str) -> None:
    """Of products that bfloat16 rounds; rounded before they are added, it is far from it."""
    B, D, H, K = 8 * 37, 24, 5, 7
    rng = np.random.default_rng(0)
    x_BD, dy_BHK = (np.asarray(jnp.bfloat16(rng.normal(size=size))) for size in ((B, D), (B, H, K)))
    exact_DHK = np.einsum("bd,bhk->dhk", x_BD.astype(np.float64), dy_BHK.astype(np.float64))
    sizes = {"embed": D}, {"heads": H, "head": K}
    linear = Linear(*sizes, bias=False, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    errors = []
    with placed(make_mesh({"replica": 2, "fsdp": 4, "tensor": 1, "context": 1}), make_rules(1, rules)):
        rows = jax.NamedSharding(jax.sharding.get_mesh(), jax.P(("replica", "fsdp")))
        given = [jax.device_put(x, rows) for x in (x_BD, dy_BHK.astype(np.float32))]
        for context in (sums.in_float32, contextlib.nullcontext):
            with context():
                found_DHK = jax.jit(functools.partial(of_kernel, linear=linear))(*given)
            errors.append(np.linalg.norm(found_DHK - exact_DHK) / np.linalg.norm(exact_DHK))
    assert errors[0] < 1e-6
    assert errors[1] > 1e-3


@pytest.mark.parametrize("cut", [pytest.param(False, marks=pytest.mark.rest), True])
def test_no_gradient_of_a_parameter_is_rounded(cut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a rounded one, all numbers are of bfloat16. Else both are the same."""
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", 4 * 384 * 10 if cut else vocabulary.SLICE_BYTES)
    experiment = small_experiment(**BFLOAT16, **(ALL | CUT if cut else ALL))
    model = nnx.eval_shape(lambda: experiment.model_config.build(nnx.Rngs(0)))
    loss = experiment.task.carried(nnx.graphdef(model), experiment.config.train)

    def gradients(context: Any) -> dict[tuple[str, ...], np.ndarray]:
        with placed(experiment.mesh, experiment.rules), context():
            state, batch = experiment.make_state(), next(random_batches(experiment, 1))
            keys_B = dropout_keys(state.rng, state.step, 24)
            found = run(jax.grad(lambda params: loss(params, batch, keys_B, ())[0]["loss"][0]), state.params)
        return nnx.traversals.flatten_mapping(jax.device_get(found))

    def is_rounded(x: np.ndarray) -> bool:
        return np.array_equal(x, x.astype(jnp.bfloat16).astype(np.float32))

    wide, narrow = gradients(sums.in_float32), gradients(contextlib.nullcontext)
    assert [path for path, x in wide.items() if is_rounded(x)] == []
    rounded = {path[-1] for path, x in narrow.items() if is_rounded(x)}
    assert rounded == {"kernel", "bias", "table", "mix"}
    for path, x in narrow.items():
        if path[-2:] not in (("key", "bias"), ("value_residual", "mix")):  # sums of which next to nothing is left
            assert np.linalg.norm(wide[path] - x) < 0.05 * np.linalg.norm(x), path


@pytest.mark.rest
def test_it_learns_the_same_on_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """With seeds, micro-batches, recomputation and logits in slices; of float32 nothing changes at all."""
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", 4 * 32 * 10)
    more = {**(ALL | CUT), **mesh_keys(2, 2, 2, 1), "train.accumulate": 3, "train.seeds": 2}
    for keys, near in ((BFLOAT16, 2e-3), ({}, 0)):
        found, wanted = (
            losses(one, compiled_step(one), random_batches(one, 5))
            for one in (small_experiment(**keys, **more, **step) for step in (FLOAT32, {}))
        )
        assert np.ptp(wanted) > 1e-2
        np.testing.assert_allclose(found, wanted, rtol=near)
        assert np.array_equal(found, wanted) == (not keys)


@pytest.mark.rest
@needs_compiler
def test_a_tpu_adds_them_in_float32_and_the_plan_says_what_it_costs() -> None:
    """Two bytes more of each number of the layers' kernels, which are gathered in bfloat16 as before; no memory."""
    L, D, F = 2, 256, 1024
    keys = BFLOAT16 | {"model.num_layers": L, "model.width": D, "model.num_heads": 2, "model.mlp_width": F}
    keys |= {"model.core": "dense", "model.tied": False, "mesh.fsdp": 4}
    narrow, wide = (planned(load("base", **keys, **step), parse_topology("v5e:2x2")) for step in ({}, FLOAT32))
    sent = [one["collective_bytes_by_kind"] for one in (narrow, wide)]
    assert sent[1].pop("all-reduce") - sent[0].pop("all-reduce") == 2 * L * (4 * D * D + 2 * D * F)
    assert sent[1] == sent[0]
    assert wide["peak_bytes"] <= 1.01 * narrow["peak_bytes"]
