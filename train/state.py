"""The one pytree that training changes, and how its random draws are keyed."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Params = dict[str, Any]


@flax.struct.dataclass
class State:
    """Everything that a step reads and writes; with N seeds, every leaf has a leading axis N.

    step: updates done, int32. params: nested dict of float32 arrays. opt_state: optax's. rng: the run's random key.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    rng: jax.Array


def parameter_key(rng: jax.Array) -> jax.Array:
    """The key from which the parameters are initialised."""
    return jax.random.fold_in(rng, 0)


def dropout_keys(rng: jax.Array, step: jax.Array, rows: int) -> jax.Array:
    """One key (B,) for each row of the global batch: a function of (seed, step, row) and of nothing else.

    So neither accumulation nor the mesh nor the number of processes changes a draw.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(rng, 1), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(rows))
