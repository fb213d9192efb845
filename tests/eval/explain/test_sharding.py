"""What is said of a model is the same wherever it lies: all methods on a mesh of eight devices, beside one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from eval.explain.capture import capture, intervene, mean, zero
from eval.explain.methods.table import METHODS, Asked
from eval.explain.sites import layers_of
from eval.explain.targets import Target, predicted
from launch.configs import load
from model.axes import partition_spec
from model.families.encoder_decoder import Pairs
from train.devices.mesh import make_mesh, make_rules
from train.experiment import make_model_config
from train.sharding import placed

B, T, V, LABELS = 4, 8, 22, 6
SIZES = {"model.num_layers": 2, "model.width": 24, "data.length": T}
MESHES = {
    ("gpt", "language_model"): (1, 2, 2, 2),
    ("bert", "classification"): (1, 2, 2, 2),
    ("encoder_decoder", "translation"): (1, 2, 2, 2),
    ("recurrent", "classification"): (2, 2, 2, 1),  # of one token after the other
}


def made(family: str, task: str) -> Asked:
    """A model with random biases, rows of which some end in padding, and a target in them."""
    config = load("base", family=family, task=task, **SIZES)
    model, rng = make_model_config(config, V, LABELS).build(nnx.Rngs(0)), np.random.default_rng(0)
    nnx.update(model, jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(x.dtype), nnx.state(model)))
    one_BT, two_BT = (jnp.asarray(rng.integers(0, V, (B, T), np.int32)) for _ in range(2))
    sizes_B = np.array([T, T - 3, T, T - 1])
    ids_BT = jnp.asarray(np.arange(T) < sizes_B[:, None], jnp.int32)
    pairs = {"pairs": Pairs(one_BT, two_BT, ids_BT, ids_BT)}
    inputs = pairs if task == "translation" else {"tokens_BT": one_BT, "valid_BT": ids_BT == 1}
    target = Target(jnp.asarray(sizes_B - 1, jnp.int32)[:, None], jnp.asarray([[1], [0], [3], [2]], jnp.int32))
    return Asked.of(model, inputs, target)


def spread(asked: Asked) -> Asked:
    """The same on the ambient mesh: parameters by the names of their axes, and texts by rows and places."""
    mesh = jax.sharding.get_mesh()

    def put(x: Any, axes: tuple[str | None, ...]) -> Any:
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*partition_spec(axes))))

    graphdef, state = nnx.split(asked.model)
    flat = [(path, leaf.replace(put(leaf[...], leaf.axes))) for path, leaf in nnx.to_flat_state(state)]
    divides = len(asked.target.places_BP) == B  # a command's one row lies nowhere yet
    inputs = jax.tree.map(lambda x: put(x, ("batch", "length")), asked.inputs) if divides else asked.inputs
    return Asked.of(nnx.merge(graphdef, nnx.from_flat_state(flat)), inputs, asked.target)


def one_row(asked: Asked) -> Asked:
    """Its second row, which devices do not divide."""
    inputs, target = jax.tree.map(lambda x: x[1:2], (asked.inputs, asked.target))
    return Asked.of(asked.model, inputs, target)


def all_of_it(asked: Asked) -> dict[str, Any]:
    """Maps of all methods, all that is captured, and what is said if some of it is something else."""
    found: dict[str, Any] = {name: one.call(asked) for name, one in METHODS.items() if one.serves(asked.model)}
    sites = list(layers_of(asked.model, **asked.inputs))
    found["predicted"] = predicted(asked.model, asked.inputs).answers_BP
    found["capture"] = capture(asked.model, sites, **asked.inputs)
    inner = next(site for site in sites if site.endswith(("residual", "vectors")))
    for name, change in {"zero": zero, "mean": mean()}.items():
        found[name] = intervene(asked.model, {inner: change}, **asked.inputs)
    return found


@pytest.mark.rest
@pytest.mark.parametrize(
    ("family", "task", "rows"),
    [*((*kind, B) for kind in MESHES), ("gpt", "language_model", 1), ("recurrent", "classification", 1)],
)
def test_all_that_is_said_on_a_mesh_is_what_one_device_says(family: str, task: str, rows: int) -> None:
    asked = made(family, task) if rows == B else one_row(made(family, task))
    want = all_of_it(asked)
    sizes = dict(zip(("replica", "fsdp", "tensor", "context"), MESHES[family, task], strict=True))
    with placed(make_mesh(sizes), make_rules(1)):
        there = spread(asked)
        leaves, whole = (jax.tree.leaves(nnx.state(one.model)) for one in (there, asked))
        assert max(shard.data.size for x in leaves for shard in x.addressable_shards) < max(x.size for x in whole)
        found = jax.device_get(all_of_it(there))
    for (path, one), (_, other) in zip(*map(jax.tree_util.tree_leaves_with_path, (found, want)), strict=True):
        scale = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))
