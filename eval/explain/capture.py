"""Reads and sets what a model has at its sites, while it runs as it does in training: the same core, the same loops."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.sites import Site, find, layers_of, numbered
from model.attention.looked import Looked
from model.errors import UserError
from model.families.family import Model
from model.inspection import seen
from model.taps import Hook, Number, Taps

BUDGET = 2 * 2**30  # bytes that are captured at most, if nobody says otherwise
Reduce = Callable[[Any], Any]
Change = Callable[[Any, Number], Any]  # of a value and the number of its layer


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


def capture_parts(
    model: Model, names: Sequence[str], *, budget: int = BUDGET, **inputs: Any
) -> Iterator[tuple[str, jax.Array]]:
    """What a model has at sites, by their names, as `capture`, but of more than the budget: then one site after the
    other, and of a site that takes more one layer after the other, by its name (`stack.3.attention.weights`).

    Raises:
        UserError: as `capture`, of a single layer.
    """
    if not names:
        return
    taken = sizes(model, names, **inputs)
    if sum(taken.values()) <= budget:
        yield from capture(model, names, budget=budget, **inputs).items()
        return
    counts = layers_of(model, **inputs)
    for name in names:
        layers = range(counts.get(name, 0)) if taken[name] > budget else ()
        for part in [numbered(name, layer) for layer in layers] or [name]:
            yield from capture(model, [part], budget=budget, **inputs).items()


def sizes(model: Model, names: Sequence[str], reduce: Reduce = whole, **inputs: Any) -> dict[str, int]:
    """How many bytes `capture` would keep by each name, of all layers that it means.

    Raises:
        UserError: a site that there is not.
    """
    found = find(layers_of(model, **inputs), names)
    sites = {one.site for one in found.values()}
    shapes = jax.eval_shape(lambda: seen(model, dict.fromkeys(sites, reduce), **inputs))
    return {name: _bytes(shapes[one.site], len(one.layers)) for name, one in found.items()}


def _bytes(shape: jax.ShapeDtypeStruct, layers: int) -> int:
    """Those of so many layers of what has all of them in front; outside of layers, where there are none, of all."""
    size = shape.size * shape.dtype.itemsize
    return size // shape.shape[0] * layers if layers else size


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
    sizes = {site: _bytes(shape, len(asked[site])) for site, shape in shapes.items()}
    if sum(sizes.values()) > budget:
        site = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"{site} takes {sizes[site]:,} bytes of the {sum(sizes.values()):,} that are asked for, and the budget is "
            f"{budget:,}; ask for fewer layers, reduce what is kept of each, or give a larger budget."
        )


def zero(value: Any, number: Number) -> Any:
    """Nothing, at a site."""
    return put(jnp.zeros_like(whole(value)))(value, number)


def mean(real_Bn: jax.Array | None = None) -> Change:
    """The mean over rows and places, in the stead of each; of those that hold a token, if they are told. Of weights it
    is over rows alone.
    """

    def change(value: Any, number: Number) -> Any:
        x = whole(value)
        if isinstance(value, Looked):
            return put(jnp.broadcast_to(jnp.mean(x, axis=0, keepdims=True), x.shape))(value, number)
        real = jnp.ones(x.shape[:2], bool) if real_Bn is None else real_Bn
        real = real.reshape(*real.shape, *(1,) * (x.ndim - 2))
        sums = jnp.sum(jnp.where(real, x, 0), axis=(0, 1), keepdims=True)
        return put(jnp.broadcast_to(sums / jnp.maximum(jnp.sum(real), 1).astype(x.dtype), x.shape))(value, number)

    return change


def noise(key: jax.Array, scale: float) -> Change:
    """Adds normal noise of standard deviation `scale`, one draw for each entry of each layer."""

    def change(value: Any, number: Number) -> Any:
        x = whole(value)
        return put(x + scale * jax.random.normal(jax.random.fold_in(key, number), x.shape, x.dtype))(value, number)

    return change


def put(x: jax.Array) -> Change:
    """Sets what is given."""
    return lambda value, number: value.with_weights(x) if isinstance(value, Looked) else jnp.asarray(x, value.dtype)


def intervene(
    model: Model, changes: Mapping[str, Change], *, call: Callable[..., Any] | None = None, **inputs: Any
) -> tuple[Any, dict[str, int]]:
    """(what `call` gives, how many entries have changed at each site) where sites are set to something else.

    `changes` make of what is at a site, in a layer, what is to be there: `zero`, `mean()`, `noise(key, scale)`,
    `put(x)` of what was captured elsewhere; several of one site come one after the other. `call(taps=..., **inputs)` is
    the model, if nobody says otherwise. Of weights, what they take is counted. An entry that differs by no more than
    two programs do that compute the same is no change.

    Raises:
        UserError: a site or a layer that there is not, or one that the call has not come by.
    """
    found = find(layers_of(model, **inputs), changes)
    parts: dict[str, dict[str, tuple[Site, Change]]] = {}
    for name, one in found.items():
        parts.setdefault(one.site, {})[name] = one, changes[name]

    @jax.jit  # else rows that devices do not divide would be refused
    def run(inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        taps = Taps({site: _changed(some) for site, some in parts.items()})
        value = (model if call is None else call)(**inputs, taps=taps)
        return value, taps.found

    value, counts = run(inputs)
    if missing := [name for name, one in found.items() if one.site not in counts]:
        raise UserError(f"{missing[0]} was not come by, so nothing was set there; call what comes by it.")
    return value, {name: int(np.sum(counts[one.site][name])) for name, one in found.items()}


def _changed(parts: Mapping[str, tuple[Site, Change]]) -> Hook:
    """What sets the layers that are asked for, and counts the entries that are others then."""

    def call(state: Any, number: Any, value: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
        if not isinstance(value, Looked | jax.Array):  # what is only shown, whose tap refuses another value
            return state, None, {}
        counts = {}
        for name, (site, change) in parts.items():
            here = jnp.any(jnp.asarray(site.layers) == number) if site.layers else jnp.asarray(True)
            new = _where(here, change(value, number), value)
            counts[name] = jnp.sum(differs(_going_on(value), _going_on(new)))
            value = new
        return state, value, counts

    return Hook(call)


def differs(old: jax.Array, new: jax.Array) -> jax.Array:
    """Which entries are others, by more than programs differ that compute the same."""
    relative = 2.0**-7 if old.dtype.itemsize < 4 else 1e-5
    close = relative * jnp.maximum(jnp.abs(old), jnp.abs(new)) + 1e-6 * jnp.nanmax(jnp.abs(old))
    return ~((jnp.abs(new - old) <= close) | (jnp.isnan(old) & jnp.isnan(new)))


def _going_on(value: Any) -> jax.Array:
    return value.o_BTHK if isinstance(value, Looked) else value


def _where(here: jax.Array, new: Any, old: Any) -> Any:
    chosen = jnp.where(here, _going_on(new), _going_on(old))
    return old.replace(o_BTHK=chosen) if isinstance(old, Looked) else chosen
