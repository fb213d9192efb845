"""The one pytree that training changes, and how its random draws are keyed."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]


@flax.struct.dataclass
class State:
    """Everything that a step reads and writes; with N seeds, every leaf has a leading axis N.

    step: updates done, int32. params: nested dict of float32 arrays. opt_state: optax's. rng: the key of all draws.
    carry: what each row of the next batch goes on from, arrays (B, ...); of most tasks, nothing.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    rng: jax.Array
    carry: Any = ()


def seed_pairs(seed: int, seeds: int, dropout_seed: int) -> np.ndarray:
    """Of each seed (N, 2): what its first parameters are drawn from, and what its dropout is; -1: from its own."""
    own_N = np.arange(seed, seed + seeds)
    return np.stack([own_N, own_N if dropout_seed < 0 else np.full(seeds, dropout_seed)], axis=1).astype(np.uint32)


def parameter_key(rng: jax.Array) -> jax.Array:
    """The key from which the parameters are initialised."""
    return jax.random.fold_in(rng, 0)


def dropout_keys(rng: jax.Array, step: jax.Array, rows: int) -> jax.Array:
    """One key (B,) for each row of the global batch: a function of (seed, step, row) and of nothing else.

    So neither accumulation nor the mesh nor the number of processes changes a draw.
    """
    step_key = jax.random.fold_in(jax.random.fold_in(rng, 1), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(rows))


def groups(params: Params) -> dict[str, Any]:
    """The parameters by part of the model: embed, stack/attention, ..., encoder/stack/mlp, ..."""
    found: dict[str, Any] = {}
    for name, part in params.items():
        inner = groups(part) if "stack" in part else part["blocks"] if "blocks" in part else {"": part}
        found |= {f"{name}/{own}".rstrip("/"): value for own, value in inner.items()}
    return found
