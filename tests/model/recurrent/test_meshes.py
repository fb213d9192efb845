"""Recurrent models learn the same on every mesh, and each seed of a population as alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from model import UserError
from model.axes import partition_spec
from model.families.encoder_decoder import Pairs
from model.recurrent.encoder_decoder import RecurrentEncoderDecoderConfig
from model.recurrent.language_model import RecurrentConfig
from tests.model.recurrent.cases import nll
from train.devices.mesh import make_mesh, make_rules
from train.devices.places import leaf_places
from train.sharding import born_sharded, make_init, placed
from train.state import parameter_key, seed_pairs

V, T, B, STEPS = 24, 7, 8, 3
SIZES: dict[str, Any] = {"vocab_size": V, "max_length": T, "num_layers": 2, "width": 16, "dropout": 0.2}
CONFIGS = {
    "lstm": RecurrentConfig(**SIZES),
    "gru": RecurrentConfig(**SIZES, cell="gru", tied=False, dtype="bfloat16"),
    "pairs": RecurrentEncoderDecoderConfig(**SIZES, cell="gru", cross_width=8),
}
MESHES = [(1, 8, 1, 1), (1, 1, 8, 1), (2, 2, 2, 1)]
EVERY_DAY = [("lstm", (2, 2, 2, 1))]


def batch(number: int) -> tuple[jax.Array, ...]:
    """Tokens, targets and segment ids, of which 0 is padding."""
    rng = np.random.default_rng(number)
    tokens, targets = rng.integers(0, V, (2, B, T))
    ids = np.where(np.arange(T)[None] < rng.integers(1, T, (B, 1)), 1, rng.integers(0, 3, (B, 1)))
    return jnp.asarray(tokens), jnp.asarray(targets), jnp.asarray(ids)


def step(graphdef: nnx.GraphDef, params: Any, arrays: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
    """Parameters after a step down the gradient, and the loss before it."""
    tokens_BT, targets_BT, ids_BT = arrays
    keys_B = jax.vmap(jax.random.key)(jnp.arange(B))

    def loss(params: Any) -> jax.Array:
        model: Any = nnx.merge(graphdef, params)
        if isinstance(model.config, RecurrentEncoderDecoderConfig):
            logits_BTV = model(Pairs(tokens_BT[:, ::-1], tokens_BT, ids_BT[:, ::-1], ids_BT, dropout_keys_B=keys_B))
        else:
            logits_BTV = model(tokens_BT, ids_BT, None, keys_B, valid_BT=ids_BT != 0)
        return nll(logits_BTV, targets_BT, ids_BT != 0) / B

    value, gradient = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda x, slope: x - 0.1 * slope, params, gradient), value


def losses(kind: str, shape: tuple[int, ...], seeds: int) -> np.ndarray:
    """Of some steps on a mesh, (steps, N), for so many seeds."""
    mesh = make_mesh(dict(zip(("replica", "fsdp", "tensor", "context"), shape, strict=True)))
    config: Any = CONFIGS[kind]
    abstract = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    with placed(mesh, make_rules(seeds)):
        run = functools.partial(step, nnx.graphdef(abstract))
        params = [placed_params(config, abstract, seed, mesh, seeds > 1) for seed in range(seeds)]
        state = params[0]
        if seeds > 1:
            run = jax.vmap(run, in_axes=(0, None), spmd_axis_name="replica")
            state = jax.tree.map(lambda *some: jnp.stack(some), *params)
        compiled, found = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0}), []
        for number in range(STEPS):
            state, loss = compiled(state, batch(number))
            found.append(np.atleast_1d(loss))
    return np.stack(found)


def placed_params(config: Any, abstract: nnx.Module, seed: int, mesh: Mesh, whole: bool) -> Any:
    """First values, each spread as its axes say."""
    axes = {path: leaf.axes for path, leaf in nnx.to_flat_state(nnx.state(abstract, nnx.Param))}
    values = nnx.to_flat_state(nnx.state(config.build(nnx.Rngs(seed)), nnx.Param))
    specs = [NamedSharding(mesh, partition_spec(() if whole else axes[path])) for path, _ in values]
    flat = [(path, jax.device_put(leaf[...], spec)) for (path, leaf), spec in zip(values, specs, strict=True)]
    if not whole and mesh.size > 1:
        kernels = {path: leaf for path, leaf in flat if path[-1] == "kernel" and "score" not in path}
        assert not any(leaf.sharding.is_fully_replicated for leaf in kernels.values())
    return nnx.to_pure_dict(nnx.from_flat_state(flat))


@functools.cache
def alone(kind: str) -> np.ndarray:
    return losses(kind, (1, 1, 1, 1), 1)


OTHERS = [(kind, shape) for kind in CONFIGS for shape in MESHES if (kind, shape) not in EVERY_DAY]


@pytest.mark.parametrize(
    ("kind", "shape"), EVERY_DAY + [pytest.param(*one, marks=pytest.mark.rest) for one in OTHERS], ids=str
)
def test_the_losses_are_the_same_on_every_mesh(kind: str, shape: tuple[int, ...]) -> None:
    half = CONFIGS[kind].dtype == "bfloat16"
    np.testing.assert_allclose(losses(kind, shape, 1), alone(kind), rtol=1e-2 if half else 1e-5)
    assert np.ptp(alone(kind)) > 1e-2


@pytest.mark.rest
@pytest.mark.parametrize("kind", ["lstm", "pairs"])
def test_a_seed_of_a_population_learns_as_alone(kind: str) -> None:
    found = losses(kind, (2, 2, 1, 1), 2)
    np.testing.assert_allclose(found[:, :1], alone(kind), rtol=1e-5)
    assert np.abs(found[:, 0] - found[:, 1]).max() > 1e-3


@pytest.mark.parametrize("kind", ["lstm", pytest.param("pairs", marks=pytest.mark.rest)])
def test_a_mesh_that_splits_sequences_is_refused(kind: str) -> None:
    sentence = (
        "--config.mesh.context=2 splits sequences, and a recurrent network takes one token after the other; set it"
    )
    with pytest.raises(UserError, match=f"^{sentence} to 1[.]"):
        losses(kind, (1, 2, 1, 2), 1)


@pytest.mark.rest
def test_first_values_are_the_same_where_they_are_born_sharded() -> None:
    """In one program, for each seed of a population too."""
    config = CONFIGS["pairs"]
    wanted = nnx.to_pure_dict(nnx.state(config.build(nnx.Rngs(params=parameter_key(jax.random.key(3)))), nnx.Param))
    for seeds, shape in ((1, (1, 2, 4, 1)), (2, (2, 2, 2, 1))):
        mesh = make_mesh(dict(zip(("replica", "fsdp", "tensor", "context"), shape, strict=True)))
        with placed(mesh, make_rules(seeds)):
            model = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
            init = make_init(config.build, optax.adamw(1e-3).init, lambda model: ())
            make_state, _ = born_sharded(init, leaf_places(model, mesh), seed_pairs(3, seeds, 0), mesh)
            params = make_state().params
        found = params if seeds == 1 else jax.tree.map(lambda x: x[0], params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, wanted)
