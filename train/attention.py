"""Which core a run attends with: chosen before anything is traced, and compared with the reference before it learns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention import Request
from model.attention.contract import Choice
from model.attention.cores.table import CORES, select_core
from model.attention.selfcheck import errors, judge
from model.families import Model, ModelConfig

_SLICE = 256  # queries and keys of the check, at most


def choose_attention(model: Model, config: ModelConfig, rows: int) -> tuple[Request, Choice]:
    """What training asks of attention, for `rows` rows of the longest sequence on the ambient mesh, and who computes
    it; `model` may be abstract.

    Raises:
        UserError: the core that is named refuses.
    """
    heads, kv_heads, T = config.num_heads, config.num_kv_heads or config.num_heads, config.max_length
    q_BTHK, k_BSGK = (jax.ShapeDtypeStruct((rows, T, n, config.head_width), config.dtype) for n in (heads, kv_heads))
    ids_BT = jax.ShapeDtypeStruct((rows, T), jnp.int32)
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    graphdef, params = nnx.split(model)

    def scores(params: Any, ids_BT: jax.Array, keys_B: jax.Array) -> Any:
        return nnx.merge(graphdef, params).attention_scores((ids_BT, ids_BT, ids_BT), keys_B)

    request = Request.of(q_BTHK, k_BSGK, k_BSGK, jax.eval_shape(scores, params, ids_BT, keys_B))
    return request, select_core(config.core, request)


def check_attention(config: ModelConfig, request: Request, choice: Choice, key: jax.Array) -> dict[str, float]:
    """How far the chosen core is from `dense` on this device, on rows of two packed documents of 256 tokens in all.

    Two rows for each part of the batch, with borders of their own, and the mask, bias, dropout, heads and dtype of the
    run, with fresh parameters; see `model.attention.selfcheck`. What only shows in longer sequences is left to the
    tests. Runs inside of `placed(mesh, rules)`.

    Raises:
        UserError: an error is beyond the tolerance of the dtype.
    """
    B, C = 2 * request.ways["batch"], request.ways["length"]
    # A length that devices share is cut into two parts for each, where the run's is.
    pieces = 1 if C == 1 else 2 * C if request.T % (2 * C) == 0 else C
    T = max(min(request.T, _SLICE) // pieces, 1) * pieces
    borders_B1 = np.maximum(T // 2 - 1 - np.arange(B) % 2 * (T // 4), 1)[:, None]

    def run(key: jax.Array) -> dict[str, jax.Array]:
        places_1T = jnp.arange(T)[None]
        ids_BT = (places_1T >= borders_B1).astype(jnp.int32)
        positions_BT = places_1T - ids_BT * borders_B1
        # Of the model only bias and sinks are used; XLA makes nothing else.
        model = config.build(nnx.Rngs(params=jax.random.fold_in(key, 0)))
        keys_B = jax.random.split(jax.random.fold_in(key, 1), B)
        scores = model.attention_scores((ids_BT, ids_BT, positions_BT), keys_B)
        sizes = B, T, request.H, request.G, request.K
        return errors(CORES[choice.name].call, scores, sizes, config.dtype, jax.random.fold_in(key, 2))

    found = {name: float(error) for name, error in jax.jit(run)(key).items()}
    judge(choice.name, found, config.dtype)
    return found
