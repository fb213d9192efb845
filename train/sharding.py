"""Where a state lives: its logical axes mean axes of the mesh, and it is born in its place."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.core import spmd
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from model.axes import partition_spec
from train.devices.mesh import Rules
from train.devices.places import Places, spec_at
from train.state import State, parameter_key


@contextlib.contextmanager
def placed(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Inside, the model's axis names mean axes of this mesh."""
    with jax.set_mesh(mesh), spmd.logical_axis_rules(rules):
        yield


def make_init(
    make_model: Callable[[nnx.Rngs], Any], init_optimizer: Callable[[Any], Any], empty_carry: Callable[[Any], Any]
) -> Callable[[jax.Array, jax.Array], State]:
    """`init(key of the first parameters, key of all later draws) -> state`, pure, to be jitted."""

    def init(first: jax.Array, rng: jax.Array) -> State:
        model = make_model(nnx.Rngs(params=parameter_key(first)))
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        return State(jax.numpy.zeros((), "int32"), params, init_optimizer(params), rng, empty_carry(model))

    return init


def born_sharded(
    init: Callable[[jax.Array, jax.Array], State], places: Places, seeds_N2: np.ndarray, mesh: Mesh
) -> tuple[functools.partial[State], State]:
    """(a function that makes the state in its place, the abstract state with shardings), by the ambient rules.

    places: of the parameters, by their paths. seeds_N2: `train.state.seed_pairs`.
    """

    def one(pair: jax.Array) -> State:  # the keys are made in here, so that nothing runs before the state is asked for
        return init(jax.random.key(pair[0]), jax.random.key(pair[1]))

    many, pairs, lead = (jax.vmap(one), seeds_N2, ("replica",)) if len(seeds_N2) > 1 else (one, seeds_N2[0], ())
    shapes = jax.eval_shape(many, pairs)

    def in_place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # What is carried belongs to the rows of a batch.
        names: tuple[Any, ...] = tuple(getattr(key, "key", getattr(key, "name", None)) for key in path)
        spec = partition_spec(("batch",)) if names[0] == "carry" else spec_at(places, names, leaf.shape[len(lead) :])
        where = NamedSharding(mesh, PartitionSpec(*lead, *spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    abstract = jax.tree_util.tree_map_with_path(in_place, shapes)
    return functools.partial(jax.jit(many, out_shardings=jax.tree.map(lambda x: x.sharding, abstract)), pairs), abstract
