"""The methods that say how much each token counts for an answer, by name, each called in the same way."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.methods.attention_gradient import attention_gradient, read_places
from eval.explain.methods.flow import attention_flow
from eval.explain.methods.gradients import Vectors, gradient, gradient_x_input, smooth_gradient
from eval.explain.methods.integrated import baselines, integrated_gradients
from eval.explain.methods.occlusion import leave_one_out
from eval.explain.methods.rollout import rollout
from eval.explain.targets import Target
from model.attention.looked import Looked
from model.families.family import Model
from model.inspection import seen, sites

Maps = dict[str, Any]  # (B, n) of each site of vectors
SITES = "embedding", "decoder.embedding", "encoder.embedding"  # of a text, of what is written and of what it is of


class Asked(NamedTuple):
    """What is explained: a model's target for inputs, and what tokens are compared with."""

    model: Model
    inputs: dict[str, Any]
    target: Target
    baseline: Vectors

    @classmethod
    def of(cls, model: Model, inputs: dict[str, Any], target: Target) -> "Asked":
        """Compared with the mean of all vectors of the table."""
        return cls(model, inputs, target, baselines(model, inputs, {})["mean"])


class Method(NamedTuple):
    """A map of each asked example, (B, n) by site; whether it has signs, and whether it needs attention, and one stack
    of it.
    """

    call: Callable[[Asked], Maps]
    signed: bool = False
    attention: bool = False
    one_stack: bool = False

    def serves(self, model: Model) -> bool:
        """Whether it makes sense for a model."""
        sites = model.config.sites
        return not (self.attention and not sites) and not (self.one_stack and "self" not in sites)


def _raw(asked: Asked) -> Maps:
    """The mean weight of all layers and heads in the rows that answer."""
    return _looked(*nnx.split(asked.model), asked.inputs, asked.target)


@functools.partial(jax.jit, static_argnums=0)
def _looked(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> Maps:
    model, names = nnx.merge(graphdef, params), ("stack.attention", "decoder.attention", "decoder.cross")
    row_BT, known = read_places(model, inputs, target), sites(model, **inputs)
    read = {site: f"{name}.weights" for site, name in zip(SITES, names, strict=True) if f"{name}.weights" in known}

    def row(looked: Looked) -> jax.Array:
        return jnp.einsum("BT,BTS->BS", row_BT, looked.mean())

    found = seen(model, dict.fromkeys(read.values(), row), **inputs)
    return {site: jnp.mean(found[name], axis=0) for site, name in read.items()}


def _rolled(asked: Asked) -> Maps:
    """The row of the rollout that answers."""
    return _read(
        asked, dict(zip(SITES, ("stack", "decoder", "cross"), strict=True)), rollout(asked.model, **asked.inputs)
    )


def _flowing(asked: Asked) -> Maps:
    """The flow to the place that answers, or the mean of those to all places that do."""
    rows_BT, found = np.asarray(read_places(asked.model, asked.inputs, asked.target)), []
    for row, weights_T in enumerate(rows_BT):
        places = np.flatnonzero(weights_T)
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], asked.inputs)
        (flow,) = attention_flow(asked.model, places=places, **one)
        found.append(weights_T[places] @ flow.values_Rn)
    return {"embedding": np.stack(found)}


def _read(asked: Asked, names: dict[str, str], maps: dict[str, jax.Array]) -> Maps:
    """The rows that answer, of maps (B, T, S) that have these names, by the site of the vectors that they speak of."""
    row_BT = read_places(asked.model, asked.inputs, asked.target)
    return {site: jnp.einsum("BT,BTS->BS", row_BT, maps[name]) for site, name in names.items() if name in maps}


METHODS: dict[str, Method] = {
    "raw_weights": Method(_raw, attention=True),
    "rollout": Method(_rolled, attention=True),
    "flow": Method(_flowing, attention=True, one_stack=True),
    "attention_gradient": Method(lambda a: attention_gradient(a.model, a.inputs, a.target), attention=True),
    "gradient": Method(lambda a: gradient(a.model, a.inputs, a.target)),
    "gradient_x_input": Method(lambda a: gradient_x_input(a.model, a.inputs, a.target), signed=True),
    "smooth_gradient": Method(lambda a: smooth_gradient(a.model, a.inputs, a.target), signed=True),
    "integrated_gradients": Method(
        lambda a: integrated_gradients(a.model, a.inputs, a.target, a.baseline).values, signed=True
    ),
    "leave_one_out": Method(lambda a: leave_one_out(a.model, a.inputs, a.target, a.baseline), signed=True),
}
