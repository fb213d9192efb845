"""One training step: a pure function of state and batch. Every choice is made here, when it is built."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.state import Params, State, dropout_keys, groups
from train.tasks.base import Batch, Carried, Sums

Metrics = dict[str, jax.Array]
Step = Callable[[State, Batch], tuple[State, Metrics]]
Gradients = Callable[[Params, Batch, jax.Array, Any], tuple[Params, tuple[Sums, Any]]]


def make_step(loss: Carried, optimizer: optax.GradientTransformation, accumulate: int = 1) -> Step:
    """`step(state, batch) -> (state, metrics)`: no I/O, no config, no branch.

    The gradient of the summed loss is divided once by the number of targets, so `accumulate` micro-batches give the
    update of one big batch however their targets are spread. Metrics: each sum over its count, and the norm of the
    gradient of each part of the model. What a row carries on reaches the next step as a value: no gradient goes back.
    """
    gradients = _accumulated(_gradients(loss), accumulate) if accumulate > 1 else _gradients(loss)

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        keys_B = dropout_keys(state.rng, state.step, len(batch["tokens"]))
        grads, (sums, carry) = gradients(state.params, batch, keys_B, state.carry)
        count = jnp.maximum(sums["loss"][1], 1)
        grads = jax.tree.map(lambda grad: grad / count, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {name: total / jnp.maximum(number, 1) for name, (total, number) in sums.items()}
        metrics |= {f"grad_norm/{name}": optax.tree.norm(group) for name, group in groups(grads).items()}
        return State(state.step + 1, params, opt_state, state.rng, carry), metrics

    return step


def population(step: Step, batch_axis: int | None) -> Step:
    """The step for N seeds at once: every leaf of the state has a leading axis N, spread over the mesh axis `replica`.

    So has the batch where its axis is 0; where it is None, all seeds see the same. No collective crosses `replica`.
    """
    return jax.vmap(step, in_axes=(0, batch_axis), spmd_axis_name="replica")


def _gradients(loss: Carried) -> Gradients:
    def total(params: Params, *rows: Any) -> tuple[jax.Array, tuple[Sums, Any]]:
        sums, carry = loss(params, *rows)
        return sums["loss"][0], (sums, carry)

    return jax.grad(total, has_aux=True)


def _accumulated(gradients: Gradients, parts: int) -> Gradients:
    """Sums over `parts` micro-batches, one after the other; micro-batch a takes rows a, a + parts, ..., so rows stay
    on their device.
    """

    def accumulated(params: Params, *rows: Any) -> tuple[Params, tuple[Sums, Any]]:
        micro = jax.tree.map(lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1), rows)
        grads, (sums, _) = jax.eval_shape(gradients, params, *jax.tree.map(lambda x: x[0], micro))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, sums))

        def body(total: Any, part: Any) -> tuple[Any, Any]:
            grads, (sums, carry) = gradients(params, *part)
            return jax.tree.map(jnp.add, total, (grads, sums)), carry

        (grads, sums), carry = jax.lax.scan(body, zeros, micro)
        return grads, (sums, jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), carry))

    return accumulated
