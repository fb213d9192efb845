"""Parameters: their axes have names, and their first values are keyed by their paths.

A constructor only says what each parameter is. When the outermost constructor is done, each is drawn from one key,
folded with its path and, in a stack, with the number of its layer. So a model with one parameter more, or built in
another order, keeps all others bit for bit; and to rename a path is to change its first values.
"""

import contextvars
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.cycles import Cycle
from model.errors import UserError

Draw = Callable[[jax.Array], jax.Array]
Path = tuple[str, ...]
Owners = tuple[tuple[Path, tuple[int, ...]], ...]  # path of a parameter to the numbers of the modules that have it


class _Construction:
    """An outermost constructor at work: its parameters that wait to be drawn, and the one key of each `rngs`."""

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[nnx.Param, jax.Array, Draw]] = {}
        self._keys: dict[int, tuple[nnx.Rngs, jax.Array]] = {}

    def wait(self, rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], draw: Draw) -> nnx.Param:
        """A parameter that has no value yet."""
        if id(rngs) not in self._keys:
            self._keys[id(rngs)] = rngs, rngs.params()
        param = nnx.Param(jax.ShapeDtypeStruct(shape, jnp.float32), axes=axes)
        self.waiting[id(param)] = param, self._keys[id(rngs)][1], draw
        return param

    def draw(self, module: nnx.Module) -> None:
        """Gives each parameter of the module its first value."""
        for path, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):
            if id(param) in self.waiting:
                _, key, draw = self.waiting[id(param)]
                param.set_value(draw(jax.random.fold_in(key, path_number(path))))


_AT_WORK: contextvars.ContextVar[_Construction | None] = contextvars.ContextVar("_AT_WORK", default=None)


class Module(nnx.Module):
    """What has parameters, or parts that have: `nnx.Module`, whose outermost constructor draws them by their paths."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _drawing(vars(cls)["__init__"]))  # noqa: B010


def parameter(
    rngs: nnx.Rngs, init: Callable[..., jax.Array], shape: tuple[int, ...], axes: tuple[str, ...]
) -> nnx.Param:
    """A float32 parameter that remembers the logical names of its axes (metadata `axes`).

    To be called in the constructor of a Module; its value, `init(key, shape)`, comes when the outermost one is done.
    """
    construction = _AT_WORK.get()
    if construction is None:
        raise TypeError("parameters are made in the constructor of a model.parameters.Module: derive from it.")
    return construction.wait(rngs, shape, axes, lambda key: init(key, shape))


def stack_layers(places: Sequence[nnx.Module], count: int) -> tuple[nnx.Module, Owners]:
    """One module that stores `count` layers, which take the modules under construction in turn; and who has what.

    Each parameter gets a leading axis 'layers' of those that have it, in their order. What it is at layer n depends on
    its path and n, whichever layers have it besides.

    Raises:
        UserError: a parameter that would have two shapes.
    """
    flat = [flat_params(module) for module in places]
    storage, owners = Storage(), {}
    for path in dict.fromkeys(path for params in flat for path in params):
        owners[path] = tuple(place for place, params in enumerate(flat) if path in params)
        first, *others = [flat[place][path] for place in owners[path]]
        for other in others:
            if other.shape != first.shape:
                raise UserError(
                    f"{'/'.join(map(str, path))} would have the shapes {first.shape} and {other.shape} in layers that "
                    "differ; change the cycle in --config.model, so that all that have it have the same."
                )
        _stack(first, [layer for layer in range(count) if layer % len(places) in owners[path]])
        storage.put(path, first)
    return storage, tuple(owners.items())


def keep_in_turn(module: nnx.Module, name: str, parts: Cycle[Any]) -> Cycle[str]:
    """Makes parts that layers take in turn attributes of a module, and returns their names.

    The first that learns something has the name that it has without a cycle, and so the same first values.
    """
    distinct = list({id(one): one for one in parts.values}.values())
    distinct.sort(key=lambda one: not flat_params(one))
    names = {id(one): f"{name}_{number}" if number > 1 else name for number, one in enumerate(distinct, 1)}
    for one in distinct:
        setattr(module, names[id(one)], one)
    return Cycle(tuple(names[id(one)] for one in parts.values))


class Storage(nnx.Module):
    """Parameters by their paths, and nothing that computes."""

    def put(self, path: Path, param: nnx.Param) -> None:
        """Keeps a parameter below names of the path."""
        if len(path) == 1:
            setattr(self, path[0], param)
            return
        if not hasattr(self, path[0]):
            setattr(self, path[0], Storage())
        getattr(self, path[0]).put(path[1:], param)


def flat_params(module: nnx.Module) -> dict[Path, nnx.Param]:
    """Path to parameter of all that a module has."""
    flat: Any = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return dict(flat)


def _stack(param: nnx.Param, layers: Sequence[int]) -> None:
    construction = _AT_WORK.get()
    assert construction is not None
    _, key, draw = construction.waiting[id(param)]
    numbers = np.asarray(layers, np.uint32)

    def stacked(key: jax.Array) -> jax.Array:
        return jax.vmap(lambda number: draw(jax.random.fold_in(key, number)))(numbers)

    construction.waiting[id(param)] = param, key, stacked
    param.set_metadata(axes=("layers", *param.axes))
    param.set_value(jax.ShapeDtypeStruct((len(layers), *param.shape), jnp.float32))


def path_number(path: Sequence[Any]) -> np.uint32:
    """The number that stands for a path: the first 32 bits of the SHA-256 of 'stack/blocks/mlp/up/kernel'."""
    return np.uint32(int.from_bytes(hashlib.sha256("/".join(map(str, path)).encode()).digest()[:4], "big"))


def _drawing(construct: Callable[..., None]) -> Callable[..., None]:
    """The constructor, after which, if it was the outermost one, all parameters are drawn."""

    @functools.wraps(construct)
    def constructed(self: nnx.Module, *args: Any, **kwargs: Any) -> None:
        construction = _Construction()
        outermost = _AT_WORK.get() is None
        token = _AT_WORK.set(construction) if outermost else None
        try:
            construct(self, *args, **kwargs)
        finally:
            if token is not None:
                _AT_WORK.reset(token)
        if outermost:
            construction.draw(self)

    return constructed
