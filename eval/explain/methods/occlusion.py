"""What an answer loses where tokens are taken out: their vectors become those of a baseline."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.methods.gradients import Vectors
from eval.explain.targets import Target, embedded, given, places
from model.families.family import Model
from train.devices.placing import batch_ways, on_host

ROWS = 64  # of a pass of the model


def leave_one_out(model: Model, inputs: dict[str, Any], target: Target, baseline: Vectors) -> dict[str, np.ndarray]:
    """What the target's value loses without each token by itself, (B, n) by site; nothing at padding."""
    return occlusion(model, inputs, target, baseline, width=1)


def occlusion(
    model: Model, inputs: dict[str, Any], target: Target, baseline: Vectors, width: int
) -> dict[str, np.ndarray]:
    """The same without each span of `width` tokens; a token has the mean of the spans that it is in (Zeiler and Fergus
    2014, section 4.2).
    """
    x = embedded(model, inputs)
    sites, real = sorted(x), places(inputs)
    sizes = [x[site].shape[1] for site in sites]
    spans = [np.zeros(sum(sizes), bool)]  # of each, which places of all sites are taken out: of the first, none
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        for first in range(1 - width, size):
            span = np.zeros(sum(sizes), bool)
            span[start + max(first, 0) : start + min(first + width, size)] = True
            spans.append(span)
    spans_Nn, B = np.array(spans), len(target.places_BP)
    values_BN = without(model, inputs, target, baseline, np.broadcast_to(spans_Nn, (B, *spans_Nn.shape)), "value")
    found_Bn = (values_BN[:, :1] - values_BN) @ spans_Nn / spans_Nn.sum(0)
    parts = np.split(found_Bn, np.cumsum(sizes)[:-1], axis=1)
    return {site: np.where(real[site], part, 0) for site, part in zip(sites, parts, strict=True)}


def without(
    model: Model, inputs: dict[str, Any], target: Target, baseline: Vectors, taken_BNn: np.ndarray, say: str
) -> np.ndarray:
    """The target's `value` or `probability`, (B, N), where of each example each of N choices of tokens is taken out: of
    the tokens of all sites, in the order of their names.
    """
    B, N, n = taken_BNn.shape
    graphdef, params = nnx.split(model)
    rows = -(-ROWS // batch_ways()) * batch_ways()
    row_P, taken_Pn = np.repeat(np.arange(B), N), np.asarray(taken_BNn).reshape(B * N, n)
    found = []
    for start in range(0, B * N, rows):
        own_R = np.resize(row_P[start : start + rows], rows)
        taken_Rn = np.resize(taken_Pn[start : start + rows], (rows, n))
        said_R = _without(graphdef, params, inputs, target, baseline, own_R, taken_Rn, say)
        found.append(np.asarray(on_host(said_R), np.float64)[: B * N - start])
    return np.concatenate(found).reshape(B, N)


@functools.partial(jax.jit, static_argnums=(0, 7))
def _without(
    graphdef: nnx.GraphDef,
    params: Any,
    inputs: dict[str, Any],
    target: Target,
    baseline: Vectors,
    rows_R: jax.Array,
    taken_Rn: jax.Array,
    say: str,
) -> jax.Array:
    model = nnx.merge(graphdef, params)
    inputs, target, baseline = jax.tree.map(lambda x: x[rows_R], (inputs, target, baseline))
    x = embedded(model, inputs)
    borders = np.cumsum([x[site].shape[1] for site in sorted(x)])[:-1]
    taken = dict(zip(sorted(x), jnp.split(taken_Rn, borders, axis=1), strict=True))
    put = {site: jnp.where(taken[site][..., None], baseline[site], x[site]) for site in x}
    return getattr(target, say)(model, inputs, given(put))
