"""Where arrays live: the mesh, which logical axis goes to which mesh axis, and a state that is born in its place."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.core import spmd
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from model.axes import partition_spec
from model.errors import UserError
from train.state import State, parameter_key

AXES = ("replica", "fsdp", "tensor", "context")
Rules = Sequence[tuple[str, Any]]


def make_mesh(sizes: dict[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices as a grid of replica x fsdp x tensor x context; one axis may be -1, for all devices that remain.

    Raises:
        UserError: the product does not fit the devices; the sentence gives the arithmetic.
    """
    devices = jax.devices() if devices is None else devices
    shape = [sizes[name] for name in AXES]
    product = " x ".join(f"{name}={size}" for name, size in zip(AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"the mesh {product} needs sizes of at least 1, and at most one -1; change --config.mesh.*.")
    fixed = math.prod(size for size in shape if size != -1)
    if fixed > len(devices) or (-1 in shape and len(devices) % fixed):
        raise UserError(
            f"the mesh {product} = {fixed} devices does not fit the {len(devices)} here; change --config.mesh.*."
        )
    shape = [len(devices) // fixed if size == -1 else size for size in shape]
    used = math.prod(shape)
    if used < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"the mesh {product} uses {used} of {len(devices)} devices, and pods need all; change --config.mesh.*."
        )
    if used < len(devices):
        logging.getLogger("heed").warning(
            "the mesh %s leaves %d of %d devices idle", product, len(devices) - used, len(devices)
        )
    grid = np.array(devices).reshape(shape) if used == len(devices) else np.array(devices[:used]).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_rules(seeds: int) -> Rules:
    """Logical axis to mesh axis. With a population of seeds `replica` carries the seeds, else it shares the batch."""
    return (
        ("batch", "fsdp" if seeds > 1 else ("replica", "fsdp")),
        ("length", "context"),
        ("embed", "fsdp"),
        ("heads", "tensor"),
        ("kv_heads", "tensor"),
        ("mlp", "tensor"),
        ("vocab", "tensor"),
    )


@contextlib.contextmanager
def placed(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Inside, the model's axis names mean axes of this mesh."""
    with jax.set_mesh(mesh), spmd.logical_axis_rules(rules):
        yield


def check_fit(mesh: Mesh, rules: Rules, sizes: dict[str, tuple[int, str]], seeds: int) -> None:
    """Refuses sizes that the mesh does not divide; `sizes` maps a logical axis to its size and its config key.

    Raises:
        UserError: an axis that does not divide evenly, or seeds that `replica` does not divide.
    """
    if seeds > 1 and seeds % mesh.shape["replica"]:
        raise UserError(f"--config.mesh.replica={mesh.shape['replica']} does not divide --config.train.seeds={seeds}.")
    for name, target in rules:
        size, key = sizes[name]
        axes = (target,) if isinstance(target, str) else target
        ways = math.prod(mesh.shape[axis] for axis in axes)
        if size % ways:
            grid = " x ".join(f"{axis}={mesh.shape[axis]}" for axis in axes)
            raise UserError(
                f"--config.{key}={size} does not divide evenly over the mesh's {grid}; change it or --config.mesh.*."
            )


def batch_sharding(mesh: Mesh, axes: int) -> NamedSharding:
    """How a batch (B, T), or (N, B, T) where each seed has its own, is spread, by the ambient rules."""
    return NamedSharding(mesh, PartitionSpec(*("replica",) * (axes - 2), *partition_spec(("batch", "length"))))


def place_batch(
    batch: dict[str, np.ndarray], sharding: NamedSharding, shape: tuple[int, ...], local: tuple[np.ndarray, ...]
) -> dict[str, jax.Array]:
    """A global batch of this shape on the mesh, of whose leading axes this process has loaded the numbers `local`.

    A batch without the axis of seeds is one that they share.
    """
    axes = next(iter(batch.values())).ndim
    shape, local = shape[-axes:], local[1 - axes :]
    sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[-axes:]))
    where = [np.full(size, -1) for size in shape[:-1]]
    for place, numbers in zip(where, local, strict=True):
        place[numbers] = np.arange(len(numbers))

    def put(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return x[np.ix_(*(place[one] for place, one in zip(where, index[:-1], strict=True)))][..., index[-1]]

        return jax.make_array_from_callback(shape, sharding, part)

    return {name: put(x) for name, x in batch.items()}


def batch_ways() -> int:
    """Over how many parts of the ambient mesh rows are spread, by the ambient rules; 1 without a mesh."""
    (axes,) = partition_spec(("batch",))
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(jax.sharding.get_abstract_mesh().shape.get(name, 1) for name in names)


def on_host(tree: Any) -> Any:
    """The values of arrays as NumPy arrays, also of those that several processes share; then all must ask for them."""

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def local_numbers(sharding: NamedSharding, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """For each leading axis of a global batch, ([N,] B, T): the numbers that this process's devices need."""
    # None at all on devices that are only planned for.
    mine = [index for index in sharding.addressable_devices_indices_map(shape).values() if index is not None]

    def needed(axis: int) -> np.ndarray:
        numbers = np.arange(shape[axis])
        return np.unique(np.concatenate([numbers[:0], *(numbers[index[axis]] for index in mine)]))

    return tuple(needed(axis) for axis in range(len(shape) - 1))


def make_init(
    make_model: Callable[[nnx.Rngs], nnx.Module], init_optimizer: Callable[[Any], Any]
) -> Callable[[jax.Array], State]:
    """`init(rng) -> state`, pure, to be jitted."""

    def init(rng: jax.Array) -> State:
        params = nnx.to_pure_dict(nnx.state(make_model(nnx.Rngs(params=parameter_key(rng))), nnx.Param))
        return State(jax.numpy.zeros((), "int32"), params, init_optimizer(params), rng)

    return init


def born_sharded(
    init: Callable[[jax.Array], State], model: nnx.Module, seed: int, seeds: int, mesh: Mesh
) -> tuple[Callable[[], State], State]:
    """(a function that makes the state in its place, the abstract state with shardings), by the ambient rules.

    `model` is abstract: only its parameters' axis names are read. Seed i of a population is the run with `seed + i`.
    """
    known = {path: (leaf.axes, leaf.shape) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    numbers = np.arange(seed, seed + seeds, dtype=np.uint32)

    def one(number: jax.Array) -> State:  # the key is made in here, so that nothing runs before the state is asked for
        return init(jax.random.key(number))

    many, number = (jax.vmap(one), numbers) if seeds > 1 else (one, numbers[0])
    shapes = jax.eval_shape(many, number)
    lead = ("replica",) if seeds > 1 else ()

    def sharding(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        # An optimizer's moments end in their parameter's path; whatever has another shape (counts, factored moments)
        # is not split.
        names: tuple[Any, ...] = tuple(getattr(key, "key", getattr(key, "name", None)) for key in path)
        axes, shape = next((known[names[i:]] for i in range(len(names)) if names[i:] in known), ((), None))
        whole = shape is None or leaf.shape[len(lead) :] != shape
        return NamedSharding(mesh, PartitionSpec(*lead, *(() if whole else partition_spec(axes))))

    shardings = jax.tree_util.tree_map_with_path(sharding, shapes)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
    )
    return lambda: jax.jit(many, out_shardings=shardings)(number), abstract
