"""What the tests of recurrent families share: random weights, and gradients beside those of a loop in float64."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import jaxprs_in_params

from tests.model import reference

# LLVM's passes change how fast a program runs, which takes no time here.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Model(NamedTuple):
    """A model without weights, and random weights for it."""

    config: Any
    graphdef: nnx.GraphDef
    params: Any

    def merge(self, params: Any = None) -> Any:
        return nnx.merge(self.graphdef, self.params if params is None else params)


def made(config: Any) -> Model:
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))
    params = reference.random_params(nnx.to_pure_dict(shapes), np.random.default_rng(1))
    return Model(config, graphdef, params)


def nll(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The sum of the targets that count, in nats."""
    log_p_BTV = jax.nn.log_softmax(logits_BTV)
    return -jnp.sum(jnp.where(weights_BT, jnp.take_along_axis(log_p_BTV, targets_BT[..., None], -1)[..., 0], 0))


def check_gradient(loss: Callable[[Any], float], params: Any, gradient: Any) -> None:
    """Each leaf's gradient, in a random direction, is the central difference of a loss in float64."""
    rng, step = np.random.default_rng(4), 1e-5
    flat, structure = jax.tree.flatten(jax.tree.map(np.float64, params))
    for number, (path, got) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
        direction = rng.standard_normal(got.shape)
        up, down = (
            loss(structure.unflatten([x + sign * direction if i == number else x for i, x in enumerate(flat)]))
            for sign in (step, -step)
        )
        slope, size = (up - down) / (2 * step), np.linalg.norm(got) * np.linalg.norm(direction) / got.size**0.5
        np.testing.assert_allclose(
            (got * direction).sum(), slope, rtol=1e-3, atol=1e-4 * size + 1e-6, err_msg=str(path)
        )
        assert size > 0, path


def products(jaxpr: Any) -> float:
    """Two operations for each multiplication of a dot_general, those in loops as often as they run."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            summed = np.prod([eqn.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * summed * np.prod(eqn.outvars[0].aval.shape)
        inner = sum(products(one) for one in jaxprs_in_params(eqn.params))
        total += inner * eqn.params.get("length", 1) if eqn.primitive.name == "scan" else inner
    return total
