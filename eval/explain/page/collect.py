"""Gathers from a model what a page shows of one input beside the maps of the methods."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.capture import BUDGET, whole
from eval.explain.files.result import Result
from eval.explain.methods.attention_gradient import read_places
from eval.explain.methods.flow import pair_flow
from eval.explain.methods.heads import head_statistics
from eval.explain.methods.rollout import mixed
from eval.explain.methods.table import Asked
from eval.explain.page.content import Content, Pair, Products, axes
from eval.explain.page.packing import Head, check, ranked
from eval.explain.page.quanta import SIDE
from eval.explain.page.weights import gathered
from eval.explain.page.write import page
from eval.explain.targets import Target
from model.families.family import Model
from model.inspection import seen, sites
from model.taps import Taps, head_gates
from train.devices.placing import batch_ways, on_host

FLOW = 256  # tokens of which the flow of a pair is shown: its arrays grow with layers and tokens, squared
RESIDUAL = 0.5  # of rollout and flow, as the methods have it
Rows = Mapping[str, Sequence[Sequence[int]]]  # the tokens of each row, by the site of their vectors
SHOWN = ("entropy", "distance", "first", "sink", "previous", "prefix")  # statistics of heads


def content_of(
    asked: Asked,
    results: Sequence[Result],
    row: int = 0,
    heads: Sequence[Head] = (),
    budget: int = BUDGET,
    **told: Any,
) -> Content:
    """What a page shows of one row: the maps of the methods, all weights with the statistics and importance of their
    heads, rollout by layers, the flow of one pair, queries and keys of the first of `heads`, or else of the most
    important head. `told` are the other fields of `Content`: text, answer, facts, verdicts, commands.

    Where all weights take more bytes than the budget of what is captured, there are only pooled maps of them.

    Raises:
        UserError: a head that there is not.
    """
    # As many equal rows as devices share, of which the first is read.
    same: Any = jax.tree.map(lambda x: jnp.repeat(x[row : row + 1], batch_ways(), axis=0), (asked.inputs, asked.target))
    inputs, target = same
    model, pieces = asked.model, results[0].pieces
    content = Content(pieces=pieces, results=results, **told)
    at = int(np.argmax(on_host(read_places(model, inputs, target))[0]))
    known = sites(model, **inputs)
    names = [name for name in known if name.endswith(".weights")]
    if not names:
        left = "Maps of heads: this model has no attention."
        return dataclasses.replace(content, place=at, left_out=[*content.left_out, left])
    looking = [name for name in known if name.endswith((".query", ".key"))]
    found, weights, means, left_out = gathered(model, names, looking, inputs, pieces, budget)
    statistics = _statistics(model, inputs, target, weights)
    content = dataclasses.replace(content, place=at, weights=weights, statistics=statistics)
    check(content, heads)
    products = _products(model, found, (*heads, *ranked(content))[0], pieces)
    content = dataclasses.replace(content, products=products, left_out=[*content.left_out, *left_out])
    if not model.config.sites or not means:
        return content
    content = dataclasses.replace(content, rollout=rolled(means))
    if "stack" not in content.rollout:
        return content
    if (n := len(pieces["embedding"])) > FLOW:
        left = f"The flow of a pair: it is shown of at most {FLOW} tokens, and there are {n}."
        return dataclasses.replace(content, left_out=[*content.left_out, left])
    return dataclasses.replace(content, flow=_flow(content, at, means["stack.attention"].mean(1)))


def check_page(
    asked: Sequence[tuple[Asked, Rows]], heads: Sequence[Head], budget: int, *, matrix: bool = False
) -> None:
    """Lets a page pass whose overview of all heads fits a budget; the model is not run.

    Raises:
        UserError: it does not, or there is no such head.
    """
    blanks = []
    for question, tokens in asked:
        names = [name for name in sites(question.model, **question.inputs) if name.endswith(".weights")]
        read = functools.partial(seen, question.model, dict.fromkeys(names, whole), **question.inputs)
        shapes = jax.eval_shape(read)
        for row in range(len(question.target.places_BP))[-1 if matrix else 0 :]:
            pieces = {site: [""] * len(one[row]) for site, one in tokens.items()}
            weights = {
                (place := name.removesuffix(".weights")): np.zeros(
                    (shape.shape[0], shape.shape[2], *(min(len(pieces[site]), SIDE) for site in axes(place)))
                )
                for name, shape in shapes.items()
            }
            blanks.append(Content("", pieces, weights=weights))
    page(blanks, heads, budget)


def rolled(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What has come to each place behind each layer, (L, T, S): `rollout` of the heads' mean, not of the last layer
    alone; of weights (L, H, T, S) by place.
    """
    mixes = {place: mixed(jnp.asarray(x, jnp.float32).mean(1), RESIDUAL) for place, x in weights.items()}
    if "stack.attention" in mixes:
        return {"stack": _products_of(mixes["stack.attention"])}
    encoder_LSS = _products_of(mixes["encoder.attention"])
    cross_LTS = np.asarray(weights["decoder.cross"], np.float32).mean(1)
    sums_LT1 = cross_LTS.sum(-1, keepdims=True)
    taken_LTS = cross_LTS / np.where(sums_LT1 > 0, sums_LT1, 1)
    (T, S), decoders, crosses = cross_LTS.shape[1:], [], []
    own_TT, cross_TS = np.eye(T, dtype=np.float32), np.zeros((T, S), np.float32)
    for mix_TT, taken_TS, sums_T1 in zip(np.asarray(mixes["decoder.attention"]), taken_LTS, sums_LT1, strict=True):
        kept_T1 = np.where(sums_T1 > 0, RESIDUAL, 1)
        own_TT, cross_TS = kept_T1 * (mix_TT @ own_TT), kept_T1 * (mix_TT @ cross_TS)
        cross_TS = cross_TS + (1 - kept_T1) * (taken_TS @ encoder_LSS[-1])
        decoders.append(own_TT)
        crosses.append(cross_TS)
    return {"encoder": encoder_LSS, "decoder": np.stack(decoders), "cross": np.stack(crosses)}


def importance(model: Model, inputs: dict[str, Any], target: Target) -> dict[str, np.ndarray]:
    """How much the target's value would change with each head's gate, |dvalue / dgate| at 1, (L, H) by place of
    attention (Michel et al. 2019, section 4.1, of one example).
    """
    slopes = _slopes(*nnx.split(model), inputs, target)
    return {name.removesuffix(".heads"): np.abs(on_host(x_LH)) for name, x_LH in slopes.items()}


@functools.partial(jax.jit, static_argnums=0)
def _slopes(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> dict[str, jax.Array]:
    model = nnx.merge(graphdef, params)
    read = {name: _heads for name in sites(model, **inputs) if name.endswith(".heads")}
    shapes = jax.eval_shape(lambda: seen(model, read, **inputs))
    gates = {name: jnp.ones(shape.shape) for name, shape in shapes.items()}

    def value(gates: dict[str, jax.Array]) -> jax.Array:
        taps = Taps({name: head_gates(gates_LH) for name, gates_LH in gates.items()})
        return target.value(model, inputs, taps)[0]

    return jax.grad(value)(gates)


def _heads(o_BTHK: jax.Array) -> jax.Array:
    return o_BTHK[0, 0, :, 0]


def _statistics(
    model: Model, inputs: dict[str, Any], target: Target, weights: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    slopes, told = importance(model, inputs, target), head_statistics(model, **inputs)
    found = {}
    for place in weights:
        own = told["cross" if place.endswith("cross") else place.partition(".")[0]]
        named = {"importance": slopes[place]} if place in slopes else {}
        named |= {name: on_host(getattr(own, name)) for name in SHOWN}
        found[place] = {name: x_LH for name, x_LH in named.items() if np.isfinite(x_LH).any()}
    return found


def _products(
    model: Model, found: Mapping[str, jax.Array], head: Head, pieces: Mapping[str, Sequence[str]]
) -> Products | None:
    (place, layer, number), (down, across) = head, axes(head[0])
    if f"{place}.query" not in found:
        return None
    stack, _, branch = place.partition(".")
    q_BTHK, k_BSGK = (found[f"{place}.{part}"][layer] for part in ("query", "key"))
    site = model.config.sites["cross" if branch == "cross" else "self" if stack == "stack" else stack]
    config = site.attention(layer % site.stack.unit)
    group = number * k_BSGK.shape[2] // q_BTHK.shape[2]
    q_TK, k_SK = on_host(q_BTHK)[0, : len(pieces[down]), number], on_host(k_BSGK)[0, : len(pieces[across]), group]
    scale = config.scale or config.K**-0.5
    return Products(place, layer, number, np.asarray(q_TK, np.float32), np.asarray(k_SK, np.float32), float(scale))


def _flow(content: Content, i: int, mean_LTT: np.ndarray) -> Pair | None:
    """From the place that answers to the token that counts most for it, by the first map that is faithful here, or else
    by the first one of all.
    """
    ordered = sorted(content.results, key=lambda one: content.word(one.method) != "faithful here")
    values_n = np.abs(next(one.values["embedding"] for one in ordered))
    j = int(np.argmax(np.where(np.arange(len(values_n)) == i, -1, values_n)))
    maps_LTT = mixed(jnp.asarray(mean_LTT), RESIDUAL)
    return Pair(i, j, pair_flow(np.asarray(maps_LTT, np.float64), i, j))


def _products_of(mixes_LTT: jax.Array) -> np.ndarray:
    found = [np.asarray(mixes_LTT[0])]
    for mix_TT in np.asarray(mixes_LTT[1:]):
        found.append(mix_TT @ found[-1])
    return np.stack(found)
