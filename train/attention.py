"""Which core a run attends with: chosen before anything is traced, and compared with the reference before it learns."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model import GPT, GPTConfig
from model.attention import Request, causal
from model.attention.contract import Choice
from model.attention.cores import CORES, select_core
from model.attention.masks import BlockState, Mask, exact_state
from model.attention.selfcheck import errors, judge

_SLICE = 256  # queries and keys of the check, at most
_PROBE = 256  # queries and keys that are asked at once whether a mask looks ahead


def choose_attention(model: GPT, config: GPTConfig, rows: int) -> tuple[Request, Choice]:
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


def check_attention(config: GPTConfig, request: Request, choice: Choice, key: jax.Array) -> dict[str, float]:
    """How far the chosen core is from `dense` on this device, on two packed documents of at most 256 tokens in all.

    One row for each part of the batch, the mask, bias, heads and dtype of the run, with fresh parameters; see
    `model.attention.selfcheck`. Runs inside of `placed(mesh, rules)`.

    Raises:
        UserError: an error is beyond the tolerance of the dtype.
    """
    B, pieces = request.ways["batch"], 2 * request.ways["length"]
    T = max(min(request.T, _SLICE) // pieces, 1) * pieces if request.T % pieces == 0 else request.T
    border = T // 2 - 1

    def run(key: jax.Array) -> dict[str, jax.Array]:
        ids_BT = jnp.broadcast_to((jnp.arange(T) >= border).astype(jnp.int32)[None], (B, T))
        positions_BT = jnp.broadcast_to((jnp.arange(T) % border)[None] if border else jnp.arange(T)[None], (B, T))
        # Of the model only bias and sinks are used; XLA makes nothing else.
        model = GPT(config, rngs=nnx.Rngs(params=jax.random.fold_in(key, 0)))
        keys_B = jax.random.split(jax.random.fold_in(key, 1), B)
        scores = model.attention_scores((ids_BT, ids_BT, positions_BT), keys_B)
        sizes = B, T, request.H, request.G, request.K
        return errors(CORES[choice.name].call, scores, sizes, config.dtype, jax.random.fold_in(key, 2))

    found = {name: float(error) for name, error in jax.jit(run)(key).items()}
    judge(choice.name, found, config.dtype)
    return found


def looks_ahead(mask: Mask, length: int) -> bool:
    """Whether any of the first `length` queries sees a key after its own."""
    ahead, starts = mask & ~causal(), range(0, length, _PROBE)
    blocks = ((i0, min(i0 + _PROBE, length), j0, min(j0 + _PROBE, length)) for i0 in starts for j0 in starts)
    return any(exact_state(ahead, *block) is not BlockState.EMPTY for block in blocks)
