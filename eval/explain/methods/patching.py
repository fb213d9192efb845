"""What an answer owes to one thing inside of a model: put there as it is for another input, exactly and to first order.

A pass has many rows, each of which is an example with a site, a layer and a place (or head) of its own: these are
numbers that the program is given, so that one serves all of them.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.capture import BUDGET, capture, differs, put, whole
from eval.explain.sites import find, layers_of
from eval.explain.targets import Target, in_float32
from model.errors import UserError
from model.families.family import Model
from model.taps import Hook, Number, Taps
from train.devices.placing import batch_ways, on_host

ROWS = 64  # of a pass of the model
EPSILON = 1e-5  # of the larger of two values: where they differ by no more, nothing was lost
HEADED = ("query", "key", "value", "weights", "heads")
AXES = {"places": 1, "heads": 2, "whole": None}  # along which a site is cut, (B, T, H, K); of weights, (B, H, T, S)


class Patched(NamedTuple):
    """What a target's value m is where one thing of the corrupt input is as in the clean one, and how much of what was
    lost that gives back, (m - m_corrupt) / (m_clean - m_corrupt): 0 is nothing, 1 all.

    By the names of the sites, (layers, B, n) of places or heads; outside of layers (1, B, n). `changed` counts the
    entries that a patch has set to something else. An example that has lost nothing has NaN scores, and a reason.
    """

    scores: dict[str, np.ndarray]
    values: dict[str, np.ndarray]
    changed: dict[str, np.ndarray]
    clean_B: np.ndarray
    corrupt_B: np.ndarray
    reasons: tuple[str, ...]


class _Site(NamedTuple):
    """A site, for the number of a layer its row in what was kept (-1: none), and the axis that is cut."""

    name: str
    rows: tuple[int, ...]
    axis: int | None

    def shape(self, kept: jax.Array) -> tuple[int, int, int]:
        """That of its patches: (layers, B, n)."""
        layers, B = kept.shape[:2]
        return layers, B, 1 if self.axis is None else kept.shape[self.axis + 1]

    def summed(self, x: jax.Array) -> np.ndarray:
        """The sums over all that a patch sets, in its shape."""
        axes = tuple(axis for axis in range(2, x.ndim) if self.axis is None or axis != self.axis + 1)
        return np.asarray(on_host(jnp.sum(x, axis=axes)), np.float64).reshape(self.shape(x))


def patch(
    model: Model,
    clean: dict[str, Any],
    corrupt: dict[str, Any],
    names: Sequence[str],
    target: Target,
    *,
    by: str = "places",
    say: str = "value",
    budget: int = BUDGET,
) -> Patched:
    """The target's `value` or `probability` for the corrupt input where one thing is as for the clean one: each of the
    `places` (at `weights`, of queries), each of the `heads`, or the `whole` of a site, in each layer by itself
    (activation patching: Vig et al. 2020, section 3; Meng et al. 2022, section 2.1). It is computed in float32.

    Raises:
        UserError: inputs that are not alike, a site that there is not, that cannot be cut so or that the target does
            not come by, or more bytes than the budget.
    """
    model, sites = in_float32(model), _sites(model, clean, corrupt, names, target, by)
    kept, B = _kept(model, names, clean, budget), len(target.places_BP)
    plan = [(-1, 0, 0, row) for row in range(2 * B)]  # of corrupt and clean ones, where nothing is set
    for number, (site, x) in enumerate(zip(sites, kept, strict=True)):
        layers, _, n = site.shape(x)
        plan += [(number, layer, unit, b) for layer in range(layers) for b in range(B) for unit in range(n)]
    both = jax.tree.map(lambda *x: jnp.concatenate(x), corrupt, clean)
    (graphdef, params), rows, found = nnx.split(model), -(-ROWS // batch_ways()) * batch_ways(), []
    for start in range(0, len(plan), rows):
        some = np.resize(np.asarray(plan[start : start + rows], np.int32), (rows, 4))
        said = on_host(_patched(graphdef, sites, say, params, both, target, kept, some))
        found.append(np.stack(said)[:, : len(plan) - start])
    shapes = [site.shape(x) for site, x in zip(sites, kept, strict=True)]
    borders = np.cumsum([B, B, *map(np.prod, shapes)])[:-1]
    values_N, changed_N = np.concatenate(found, axis=1)
    corrupt_B, clean_B, *values = np.split(values_N.astype(np.float64), borders)
    _, _, *counts = np.split(changed_N.astype(np.int64), borders)
    values, counts = ([x.reshape(shape) for x, shape in zip(some, shapes, strict=True)] for some in (values, counts))
    return _scored(names, values, counts, clean_B, corrupt_B)


def patch_attribution(
    model: Model,
    clean: dict[str, Any],
    corrupt: dict[str, Any],
    names: Sequence[str],
    target: Target,
    *,
    by: str = "places",
    say: str = "value",
    budget: int = BUDGET,
) -> Patched:
    """The same to first order, all patches by one gradient: that for the corrupt input, times what is else in the clean
    one (attribution patching: Syed et al. 2023, equation 1).

    Raises:
        UserError: as `patch`.
    """
    model, sites = in_float32(model), _sites(model, clean, corrupt, names, target, by)
    new, old = (_kept(model, names, inputs, budget // 2) for inputs in (clean, corrupt))
    graphdef, params = nnx.split(model)
    slopes, *said = _slopes(graphdef, sites, say, params, (clean, corrupt), target, old)
    clean_B, corrupt_B = (np.asarray(on_host(x), np.float64) for x in said)
    each = list(zip(sites, new, old, slopes, strict=True))
    values = [corrupt_B[:, None] + site.summed(slope * (x - own)) for site, x, own, slope in each]
    counts = [site.summed(differs(own, x)).astype(np.int64) for site, x, own, _ in each]
    return _scored(names, values, counts, clean_B, corrupt_B)


def _scored(
    names: Sequence[str], values: list[np.ndarray], counts: list[np.ndarray], clean_B: np.ndarray, corrupt_B: np.ndarray
) -> Patched:
    lost_B = clean_B - corrupt_B
    lost_B = np.where(np.abs(lost_B) > EPSILON * np.maximum(np.abs(clean_B), np.abs(corrupt_B)), lost_B, np.nan)
    reasons = [
        f"the corrupt input's value, {value:.6g}, is the clean one's, so nothing was lost" if np.isnan(lost) else ""
        for value, lost in zip(corrupt_B, lost_B, strict=True)
    ]
    scores = [(value - corrupt_B[:, None]) / lost_B[:, None] + 0.0 for value in values]  # and no zero is below zero
    of_sites, of_values, of_counts = (dict(zip(names, some, strict=True)) for some in (scores, values, counts))
    return Patched(of_sites, of_values, of_counts, clean_B, corrupt_B, tuple(reasons))


def _sites(
    model: Model, clean: dict[str, Any], corrupt: dict[str, Any], names: Sequence[str], target: Target, by: str
) -> tuple[_Site, ...]:
    """What is patched, for inputs that are alike."""
    if by not in AXES:
        raise UserError(f"by={by!r} is not one of: {', '.join(AXES)}.")
    one, other = (jax.tree_util.tree_leaves_with_path(x) for x in (clean, corrupt))
    if [path for path, _ in one] != [path for path, _ in other]:
        raise UserError("the clean and the corrupt inputs have other arrays; give both the same, padding included.")
    for (path, x), (_, y) in zip(one, other, strict=True):
        if x.shape != y.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UserError(
                f"{name} is {x.shape} in the clean input and {y.shape} in the corrupt one; pad one of them."
            )
    known, taps, found = layers_of(model, **clean), Taps(), []
    jax.eval_shape(lambda: target.value(model, clean, taps))
    for name, site in find(known, names).items():
        kind = site.site.rpartition(".")[2]
        if kind == "weights" and not model.config.sites:
            raise UserError(f"{name} can only be read in a recurrent model; patch its vectors or embeddings.")
        if site.site not in taps.reached:
            raise UserError(f"the target does not come by {name}, so nothing would be set there; take another site.")
        if by == "heads" and kind not in HEADED:
            raise UserError(f"{name} has no heads; patch it by places, or take a site of: {', '.join(HEADED)}.")
        axis, rows = (
            AXES[by],
            [site.layers.index(n) if n in site.layers else -1 for n in range(known[site.site])] or [0],
        )
        found.append(_Site(site.site, tuple(rows), 3 - axis if axis and kind == "weights" else axis))
    return tuple(found)


def _kept(model: Model, names: Sequence[str], inputs: dict[str, Any], budget: int) -> list[jax.Array]:
    """What is at sites, (layers, B, ...)."""
    found = capture(model, names, budget=budget, **inputs)
    known = find(layers_of(model, **inputs), names)
    return [found[name] if site.layers and not site.one else found[name][None] for name, site in known.items()]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _patched(
    graphdef: nnx.GraphDef,
    sites: tuple[_Site, ...],
    say: str,
    params: Any,
    both: dict[str, Any],
    target: Target,
    kept: list[jax.Array],
    plan_R4: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """(what is said, how many entries were set to something else) of each row: its site, layer, unit and input."""
    model, (site_R, layer_R, unit_R, input_R) = nnx.merge(graphdef, params), plan_R4.T
    b_R = input_R % len(target.places_BP)

    def hook(number: int, site: _Site, clean_LB: jax.Array) -> Hook:
        def call(state: None, layer: Number, value: Any) -> tuple[None, Any, jax.Array]:
            row, old = jnp.asarray(site.rows)[layer], whole(value)
            new = clean_LB[row][b_R]
            here = ((site_R == number) & (layer_R == row)).reshape(-1, *(1,) * (old.ndim - 1))
            if site.axis is not None:
                unit = jax.lax.broadcasted_iota(jnp.int32, (1, *old.shape[1:]), site.axis)
                here = here & (unit == unit_R.reshape(here.shape))
            # What is the same up to rounding stays: so of equal inputs not a bit changes.
            others = here & differs(old, new)
            count_R = jnp.sum(others, axis=tuple(range(1, old.ndim)))
            return state, put(jnp.where(others, new, old))(value, layer), count_R

        return Hook(call)

    taps = Taps({site.name: hook(number, site, x) for number, (site, x) in enumerate(zip(sites, kept, strict=True))})
    inputs, target = jax.tree.map(lambda x: x[input_R], both), jax.tree.map(lambda x: x[b_R], target)
    said_R = getattr(target, say)(model, inputs, taps)
    counts = [taps.found[site.name].reshape(-1, len(said_R)) for site in sites]
    return said_R, jnp.sum(jnp.concatenate(counts), axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _slopes(
    graphdef: nnx.GraphDef,
    sites: tuple[_Site, ...],
    say: str,
    params: Any,
    both: tuple[dict[str, Any], dict[str, Any]],
    target: Target,
    kept: list[jax.Array],
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """(the gradients by what is at sites, (layers, B, ...) each, what is said of the clean input and the corrupt)."""
    model, value = nnx.merge(graphdef, params), getattr(target, say)

    def said(more: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        def hook(site: _Site, more_LB: jax.Array) -> Hook:
            def call(state: None, layer: Number, value: Any) -> tuple[None, Any, None]:
                row = jnp.asarray(site.rows)[layer]
                return state, put(whole(value) + jnp.where(row < 0, 0, more_LB[row]))(value, layer), None

            return Hook(call)

        taps = Taps({site.name: hook(site, x) for site, x in zip(sites, more, strict=True)})
        said_B = value(model, both[1], taps)
        return jnp.sum(said_B), said_B  # of rows that know nothing of each other

    slopes, corrupt_B = jax.grad(said, has_aux=True)([jnp.zeros_like(x) for x in kept])
    return slopes, value(model, both[0]), corrupt_B
