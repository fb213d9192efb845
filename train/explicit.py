"""The step of `train/step.py` a second time, written for one of many devices, which all hold whole parameters.

Each device learns from its own rows as if it were alone; then sums go round, and each makes the same update. So worked
`jax.pmap`: it is here to be read, and to check by another way what the compiler makes of the other one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import spmd
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from model.axes import mesh_axes
from model.errors import UserError
from train.state import Params, State, dropout_keys, groups
from train.tasks.base import Batch, Carried

OTHER = "or --config.train.step=partitioned"


def check_explicit(mesh: Mesh, abstract: State, seeds: int) -> None:
    """Refuses all but rows that are split: one seed, and parameters that are whole on each device.

    Raises:
        UserError: names what is split besides, and the flag that keeps it whole.
    """
    begin = "--config.train.step=explicit splits nothing but rows"
    if seeds > 1:
        raise UserError(f"{begin}, and --config.train.seeds={seeds} are an axis more; set it to 1, {OTHER}.")
    for name in ("tensor", "context"):
        if mesh.shape[name] > 1:
            raise UserError(f"{begin}; set --config.mesh.{name}={mesh.shape[name]} to 1, {OTHER}.")
    if not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((abstract.params, abstract.opt_state))):
        fix = "set --config.mesh.rules=replicated, with no --config.mesh.place"
        raise UserError(f"{begin}, and the mesh splits parameters; {fix}, {OTHER}.")


def make_explicit_step(
    loss: Carried, optimizer: optax.GradientTransformation, accumulate: int = 1
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """`step(state, batch) -> (state, metrics)`, as `train.step.make_step`, to be traced inside of `placed`.

    What devices send each other is one sum a step, of gradients (float32), losses and counts, however many micro-
    batches there are.
    """

    def summed(params: Params, *rows: Any) -> tuple[jax.Array, Any]:
        sums, carry = loss(params, *rows)
        return sums["loss"][0], (sums, carry)

    def alone(params: Params, *rows: Any) -> Any:
        """(sums of gradients, of losses and of counts; carry) of this device's rows, one micro-batch after another."""
        micro = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), rows)

        def one(number: Any) -> Any:
            part = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), micro)
            grads, (sums, carry) = jax.grad(summed, has_aux=True)(params, *part)
            return (grads, sums), carry

        def add(total: Any, number: jax.Array) -> Any:
            found, carry = one(number)
            return jax.tree.map(jnp.add, total, found), carry

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, 0)[0])
        total, carry = jax.lax.scan(add, zeros, jnp.arange(accumulate))
        return total, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carry)

    def on_device(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        axes, here = mesh_axes("batch")[0], len(batch["tokens"])
        keys = dropout_keys(state.rng, state.step, here * jax.lax.axis_size(axes))
        keys_B = jax.lax.dynamic_slice_in_dim(keys, here * jax.lax.axis_index(axes), here)
        device = jax.sharding.get_abstract_mesh().abstract_device
        # The model is to see no mesh, over which it would split what is this device's own.
        with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)), spmd.logical_axis_rules(()):
            total, carry = alone(state.params, batch, keys_B, state.carry)
        grads, sums = jax.lax.psum(total, axes)
        grads = jax.tree.map(lambda grad: grad / jnp.maximum(sums["loss"][1], 1), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {name: value / jnp.maximum(count, 1) for name, (value, count) in sums.items()}
        metrics |= {f"grad_norm/{name}": optax.tree.norm(part) for name, part in groups(grads).items()}
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state, state.rng, carry), metrics

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        whole: Any = PartitionSpec()
        rows: Any = PartitionSpec(mesh_axes("batch")[0])
        places = State(whole, whole, whole, whole, rows)
        split = jax.shard_map(on_device, in_specs=(places, rows), out_specs=(places, whole), check_vma=False)
        return split(state, batch)

    return step
