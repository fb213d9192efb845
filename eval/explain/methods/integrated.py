"""Integrated gradients to a tolerance of their completeness (Sundararajan et al. 2017).

IG = (x - b) * integral over a in [0, 1] of the gradient at b + a (x - b), whose sum over all numbers is f(x) - f(b).
The path is cut into panels, each with a Gauss-Legendre rule. What a panel must sum to is known, too: f at its end less
f at its beginning. So those that miss it are cut again, those that do not are kept, and nodes go where the path is
hard, which for a model with norms is near a baseline of zeros.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.methods.gradients import Vectors, value_and_gradient
from eval.explain.targets import Target, embedded, given, in_float32, places
from model.errors import Range, check_range
from model.families.family import Model
from train.devices.placing import batch_ways, on_host

NODES, PARTS, ROWS = 4, 5, 32  # of a panel, of a panel that is cut, and of a pass of the model
LEAST = 1e-6  # of |f(x) - f(b)|, by which the error is divided


@dataclasses.dataclass(frozen=True)
class Integrated:
    """Attributions (B, n) by site, of each example the relative error of its completeness, the passes of the model that
    it took, forward ones at the borders of panels included, and those of its last rule alone; f at both ends.

    Where `error_B` is not at most the tolerance that was asked for, the passes did not suffice: it has not converged.
    """

    values: dict[str, np.ndarray]
    error_B: np.ndarray
    passes_B: np.ndarray
    last_B: np.ndarray
    value_B: np.ndarray
    baseline_B: np.ndarray


class _Panel(NamedTuple):
    """From `a` to `c`, where f is `f_a` and `f_c`; what its rule gives for each token, all sites in one, (n,)."""

    a: float
    c: float
    f_a: float
    f_c: float
    found: np.ndarray

    @property
    def error(self) -> float:
        return abs(float(self.found.sum()) - (self.f_c - self.f_a))


class _Example:
    """The panels of one example, and what they cost."""

    def __init__(self, f_0: float, f_1: float) -> None:
        self.ends, self.panels, self.passes = (f_0, f_1), list[_Panel](), 2

    @property
    def scale(self) -> float:
        return max(abs(self.ends[1] - self.ends[0]), LEAST)

    @property
    def error(self) -> float:
        return abs(sum(float(panel.found.sum()) for panel in self.panels) - (self.ends[1] - self.ends[0])) / self.scale

    def to_cut(self, tolerance: float, most: int) -> list[_Panel]:
        """The panels with the largest errors, without which the others miss less than half of the tolerance: as many of
        them as passes are left for.
        """
        wrong = sum(panel.error for panel in self.panels)
        if wrong <= tolerance * self.scale or not math.isfinite(wrong):
            return []
        ordered, rest, chosen = sorted(self.panels, key=lambda panel: -panel.error), wrong, []
        for panel in ordered[: (most - self.passes) // (PARTS * NODES + PARTS - 1)]:
            if rest <= tolerance * self.scale / 2:
                break
            chosen.append(panel)
            rest -= panel.error
        return chosen


def integrated_gradients(
    model: Model,
    inputs: dict[str, Any],
    target: Target,
    baseline: Vectors,
    *,
    tolerance: float = 1e-2,
    most: int = 256,
) -> Integrated:
    """How much each token's vector counts for the target's value, as it is there and not the baseline's, with its sign.

    `baseline` are vectors (B, n, D) by site: see `baselines`. Until its error is within `tolerance`, an example gets
    more nodes, up to `most` passes. The passes of all examples fill batches together, over all devices of the batch's
    part of the mesh. A model in half precision is explained in float32, in which its rounding is no part of the path.

    Raises:
        UserError: a value out of its range.
    """
    check_range("tolerance", tolerance, Range(1e-6, 1))
    check_range("most", most, Range(2 + NODES))
    run = _Runner(model, inputs, target, baseline)
    B = len(target.places_BP)
    ends = run.values([(row, end) for row in range(B) for end in (0.0, 1.0)])
    examples = [_Example(*ends[2 * row : 2 * row + 2]) for row in range(B)]
    cut = [(row, [(0.0, 1.0, *example.ends)]) for row, example in enumerate(examples)]
    while cut:
        found = iter(run.panels([(row, a, c) for row, pieces in cut for a, c, *_ in pieces]))
        for row, pieces in cut:
            examples[row].panels += [_Panel(*piece, next(found)) for piece in pieces]
            examples[row].passes += NODES * len(pieces)
        cut = _cut(examples, run, tolerance, most)
    return Integrated(
        run.by_site(np.stack([sum((panel.found for panel in one.panels), np.zeros(run.n)) for one in examples])),
        np.array([one.error for one in examples]),
        np.array([one.passes for one in examples]),
        np.array([(NODES + 1) * len(one.panels) + 1 for one in examples]),
        *(np.array([one.ends[end] for one in examples]) for end in (1, 0)),
    )


def _cut(examples: list[_Example], run: "_Runner", tolerance: float, most: int) -> list[tuple[int, list[Any]]]:
    """Takes the panels out that are to be cut, and gives their parts, with f at their borders."""
    chosen = [(row, panel) for row, one in enumerate(examples) for panel in one.to_cut(tolerance, most)]
    borders = [_borders(panel.a, panel.c) for _, panel in chosen]
    asked = [(row, float(one)) for (row, _), at in zip(chosen, borders, strict=True) for one in at[1:-1]]
    inner = iter(run.values(asked))
    parts: dict[int, list[Any]] = {}
    for (row, panel), at in zip(chosen, borders, strict=True):
        f = [panel.f_a, *(next(inner) for _ in range(PARTS - 1)), panel.f_c]
        parts.setdefault(row, []).extend(zip(at[:-1], at[1:], f[:-1], f[1:], strict=True))
        examples[row].panels = [one for one in examples[row].panels if one is not panel]
        examples[row].passes += PARTS - 1
    return list(parts.items())


def _borders(a: float, c: float) -> np.ndarray:
    """Of equal parts; from the baseline on of parts in each of which the distance from it grows ten times, for what a
    norm makes of vectors of nearly zero depends on the logarithm of their length.
    """
    return np.linspace(a, c, PARTS + 1) if a else np.append(0.0, c * 10.0 ** np.arange(1 - PARTS, 1))


class _Runner:
    """Passes of the model at places of the paths of several examples, in batches of one size."""

    def __init__(self, model: Model, inputs: dict[str, Any], target: Target, baseline: Vectors) -> None:
        model = in_float32(model)
        self.graphdef, self.params = nnx.split(model)
        x = embedded(model, inputs)
        self.sizes = {site: x[site].shape[1] for site in sorted(x)}  # as a compiled program has them
        self.n = sum(self.sizes.values())
        self.given = inputs, target, {site: jnp.asarray(baseline[site], x[site].dtype) for site in x}, x
        self.rows = -(-ROWS // batch_ways()) * batch_ways()

    def values(self, asked: list[tuple[int, float]]) -> list[float]:
        """f at places of the paths of examples."""
        return [float(one) for part in self._passes(asked) for one in on_host(_values(*self._at(part)))[: len(part)]]

    def panels(self, asked: list[tuple[int, float, float]]) -> Iterator[np.ndarray]:
        """What the rule of each panel gives for each token, (n,)."""
        spots, weights = np.polynomial.legendre.leggauss(NODES)
        nodes = [(row, a + (c - a) * (1 + spot) / 2) for row, a, c in asked for spot in spots]
        slopes_Pn = np.concatenate(
            [on_host(_slopes(*self._at(part)))[: len(part)] for part in self._passes(nodes)], dtype=np.float64
        )
        for (_, a, c), slopes_Nn in zip(asked, slopes_Pn.reshape(-1, NODES, self.n), strict=True):
            yield (c - a) / 2 * weights @ slopes_Nn

    def by_site(self, found_Bn: np.ndarray) -> dict[str, np.ndarray]:
        """The tokens' numbers by their sites again."""
        borders = np.cumsum(list(self.sizes.values()))[:-1]
        return dict(zip(self.sizes, np.split(found_Bn, borders, axis=1), strict=True))

    def _passes(self, asked: list[Any]) -> Iterable[list[Any]]:
        return (asked[start : start + self.rows] for start in range(0, len(asked), self.rows))

    def _at(self, part: list[tuple[int, float]]) -> tuple[Any, ...]:
        filled = part + [part[-1]] * (self.rows - len(part))
        rows, at = (np.array(one) for one in zip(*filled, strict=True))
        return self.graphdef, self.params, *self.given, rows, at.astype(np.float32)


def _on_path(
    inputs: Any, target: Target, baseline: Vectors, x: Vectors, rows_R: jax.Array, places_R: jax.Array
) -> tuple[Any, Target, Vectors, Vectors]:
    inputs, target, baseline, x = jax.tree.map(lambda one: one[rows_R], (inputs, target, baseline, x))
    way = jax.tree.map(jnp.subtract, x, baseline)
    return inputs, target, jax.tree.map(lambda b, d: b + places_R[:, None, None] * d, baseline, way), way


@functools.partial(jax.jit, static_argnums=0)
def _values(graphdef: nnx.GraphDef, params: Any, *path: Any) -> jax.Array:
    inputs, target, x, _ = _on_path(*path)
    return target.value(nnx.merge(graphdef, params), inputs, given(x))


@functools.partial(jax.jit, static_argnums=0)
def _slopes(graphdef: nnx.GraphDef, params: Any, *path: Any) -> jax.Array:
    """The gradient along the path, of each token of all sites, (R, n)."""
    inputs, target, x, way = _on_path(*path)
    _, slope = value_and_gradient(nnx.merge(graphdef, params), inputs, target, x)
    return jnp.concatenate([jnp.sum(slope[site] * way[site], axis=-1) for site in x], axis=1)


def baselines(model: Model, inputs: dict[str, Any], tokens: dict[str, int]) -> dict[str, Vectors]:
    """What tokens can be compared with, by name: `zero`; `mean`, of all vectors of the table; and the vectors that each
    of these tokens of the vocabulary, such as `end`, `pad` or `mask`, has everywhere.
    """
    model, real = in_float32(model), places(inputs)
    x, mean_D = embedded(model, inputs), _mean(*nnx.split(model))
    found = {"zero": jax.tree.map(jnp.zeros_like, x)}
    found["mean"] = {site: jnp.where(real[site][..., None], mean_D[None, None], 0) for site in x}
    for name, token in tokens.items():
        found[name] = embedded(model, _filled(inputs, token))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _mean(graphdef: nnx.GraphDef, params: Any) -> jax.Array:
    model = nnx.merge(graphdef, params)
    return jnp.mean(model.embed(jnp.arange(model.config.vocab_size)[None]), axis=(0, 1))


def _filled(inputs: dict[str, Any], token: int) -> dict[str, Any]:
    if "pairs" in inputs:
        pairs = inputs["pairs"]
        texts = {name: jnp.full_like(getattr(pairs, name), token) for name in ("sources_BS", "tokens_BT")}
        return inputs | {"pairs": pairs._replace(**texts)}
    return inputs | {"tokens_BT": jnp.full_like(inputs["tokens_BT"], token)}
