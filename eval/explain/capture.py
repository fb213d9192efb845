"""Reads and sets what a model has at its sites, while it runs as it does in training: the same core, the same loops."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.sites import Site, find, layers_of
from model.attention.looked import Looked
from model.errors import UserError
from model.families.family import Model
from model.inspection import seen
from model.taps import Hook, Taps

BUDGET = 2 * 2**30  # bytes that are captured at most, if nobody says otherwise
Reduce = Callable[[Any], Any]
Change = Callable[[Any], Any]


def whole(value: Any) -> jax.Array:
    """All that is at a site: the weights (B, H, T, S) of attention, or the array that there is."""
    return value if isinstance(value, jax.Array) else value.weights()


def capture(
    model: Model,
    names: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    reduce: Reduce = whole,
    budget: int = BUDGET,
    **inputs: Any,
) -> dict[str, jax.Array]:
    """What a model has at sites, by their names: an array for one of a layer (`stack.3.attention.weights`), one with a
    leading axis of layers where no number is named (`stack.attention.weights`: of all of them, or of `layers`).

    `reduce` makes of the value of one layer what is kept, inside of the loop: `lambda looked: looked.mean()`. `inputs`
    are what `vectors` takes.

    Raises:
        UserError: a site or a layer that there is not, or more bytes than the budget.
    """
    graphdef, params = nnx.split(model)
    return captured(graphdef, params, tuple(names), None if layers is None else tuple(layers), reduce, budget, inputs)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4, 5))
def captured(
    graphdef: nnx.GraphDef,
    params: Any,
    names: tuple[str, ...],
    layers: tuple[int, ...] | None,
    reduce: Reduce,
    budget: int,
    inputs: dict[str, Any],
) -> dict[str, jax.Array]:
    """As `capture`, compiled once for each choice and shape."""
    model = nnx.merge(graphdef, params)
    found = find(layers_of(model, **inputs), names, layers)
    asked: dict[str, list[int]] = {}
    for one in found.values():
        asked[one.site] = sorted({*asked.get(one.site, ()), *one.layers})
    shapes = jax.eval_shape(lambda: seen(model, dict.fromkeys(asked, reduce), **inputs))
    _check_budget(shapes, asked, budget)
    hooks = {site: _kept(shapes[site], chosen, reduce) for site, chosen in asked.items()}
    taps = Taps(hooks)
    model.vectors(**inputs, taps=taps)
    kept = {site: taps.states[site] if chosen else taps.found[site] for site, chosen in asked.items()}

    def of(one: Site) -> jax.Array:
        rows = [asked[one.site].index(layer) for layer in one.layers]
        return kept[one.site] if not rows else kept[one.site][rows[0] if one.one else np.array(rows)]

    return {name: of(one) for name, one in found.items()}


def _kept(shape: jax.ShapeDtypeStruct, layers: list[int], reduce: Reduce) -> Hook:
    """What keeps the layers that are asked for, and computes nothing in the others."""
    if not layers:
        return Hook(lambda state, number, value: (state, value, reduce(value)))
    rows = np.full(shape.shape[0], len(layers))
    rows[layers] = np.arange(len(layers))

    def call(state: jax.Array, number: Any, value: Any) -> tuple[Any, Any, None]:
        row = jnp.asarray(rows)[number]
        put = lambda: state.at[row].set(reduce(value))  # noqa: E731
        return jax.lax.cond(row < len(layers), put, lambda: state), value, None

    return Hook(call, jnp.zeros((len(layers), *shape.shape[1:]), shape.dtype))


def _check_budget(shapes: dict[str, Any], asked: dict[str, list[int]], budget: int) -> None:
    sizes = {
        site: shape.size * shape.dtype.itemsize * len(asked[site] or [0]) // (shape.shape[0] if asked[site] else 1)
        for site, shape in shapes.items()
    }
    if sum(sizes.values()) > budget:
        site = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"{site} takes {sizes[site]:,} bytes of the {sum(sizes.values()):,} that are asked for, and the budget is "
            f"{budget:,}; ask for fewer layers, reduce what is kept of each, or give a larger budget."
        )


def zero(value: Any) -> Any:
    """Nothing, at a site."""
    return put(jnp.zeros_like(whole(value)))(value)


def mean(value: Any) -> Any:
    """The mean over rows and places (of weights: over rows), in the stead of each."""
    x = whole(value)
    axes = 0 if isinstance(value, Looked) else (0, 1)
    return put(jnp.broadcast_to(jnp.mean(x, axis=axes, keepdims=True), x.shape))(value)


def noise(key: jax.Array, scale: float) -> Change:
    """Adds normal noise of standard deviation `scale`, one draw for each entry."""

    def change(value: Any) -> Any:
        x = whole(value)
        return put(x + scale * jax.random.normal(key, x.shape, x.dtype))(value)

    return change


def put(x: jax.Array) -> Change:
    """Sets what is given."""
    return lambda value: value.with_weights(x) if isinstance(value, Looked) else jnp.asarray(x, value.dtype)


def intervene(
    model: Model, changes: Mapping[str, Change], *, call: Callable[..., Any] | None = None, **inputs: Any
) -> tuple[Any, dict[str, int]]:
    """(what `call` gives, how many entries have changed at each site) where sites are set to something else.

    `changes` make of what is at a site what is to be there: `zero`, `mean`, `noise(key, scale)`, `put(x)` of what was
    captured elsewhere. `call(taps=..., **inputs)` is the model, if nobody says otherwise.

    Raises:
        UserError: a site or a layer that there is not, or one that the call has not come by.
    """
    found = find(layers_of(model, **inputs), changes)
    parts: dict[str, list[tuple[Site, Change]]] = {}
    for name, one in found.items():
        parts.setdefault(one.site, []).append((one, changes[name]))
    taps = Taps({site: _changed(some) for site, some in parts.items()})
    value = (model if call is None else call)(**inputs, taps=taps)
    if missing := [name for name, one in found.items() if one.site not in taps.found]:
        raise UserError(f"{missing[0]} was not come by, so nothing was set there; call what comes by it.")
    counts = {name: np.atleast_1d(taps.found[one.site])[list(one.layers) or [0]] for name, one in found.items()}
    return value, {name: int(count.sum()) for name, count in counts.items()}


def _changed(parts: list[tuple[Site, Change]]) -> Hook:
    """What sets the layers that are asked for, and counts the entries that are others then."""

    def call(state: Any, number: Any, value: Any) -> tuple[Any, Any, jax.Array]:
        new = value
        for site, change in parts:
            here = jnp.any(jnp.asarray(site.layers) == number) if site.layers else jnp.asarray(True)
            new = _where(here, change(new), new)
        return state, new, _count(_going_on(value), _going_on(new))

    return Hook(call)


def _count(old: jax.Array, new: jax.Array) -> jax.Array:
    """How many entries are others, by more than programs differ that compute the same."""
    rounding = 2e-2 if old.dtype.itemsize < 4 else 1e-5
    same = (jnp.abs(new - old) <= rounding * jnp.nanmax(jnp.abs(old))) | (jnp.isnan(old) & jnp.isnan(new))
    return jnp.sum(~same)


def _going_on(value: Any) -> jax.Array:
    return value.o_BTHK if isinstance(value, Looked) else value


def _where(here: jax.Array, new: Any, old: Any) -> Any:
    chosen = jnp.where(here, _going_on(new), _going_on(old))
    return old.replace(o_BTHK=chosen) if isinstance(old, Looked) else chosen
