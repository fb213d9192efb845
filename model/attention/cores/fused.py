"""The fused kernel of GPUs: cuDNN's flash attention, through `jax.nn.dot_product_attention`."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from model.attention.contract import Refusals, Request, needs
from model.attention.cores.sharded import per_device, uneven
from model.attention.masks.band import Band, causal, full
from model.attention.masks.base import Mask
from model.attention.scores import Scores


def fused(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """softmax(scale * q k^T) v by cuDNN; returns o_BTHK.

    Full and causal masks are the kernel's own; any other becomes an array of booleans, T x S for each row of the batch.
    """
    return per_device(functools.partial(by_jax, "cudnn"), q_BTHK, k_BSGK, v_BSGK, scores)


def by_jax(
    implementation: Literal["cudnn", "xla"], q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores
) -> jax.Array:
    """jax's call with our mask; rows without a key, of which jax returns the mean of v, become zeros."""
    k_BSGK, v_BSGK = scores.without_hidden(k_BSGK, v_BSGK, q_BTHK.shape[1])
    if _is_own(scores.mask, q_BTHK.shape[1], k_BSGK.shape[1]):
        return jax.nn.dot_product_attention(
            q_BTHK, k_BSGK, v_BSGK, scale=scores.scale, is_causal=scores.mask == causal(), implementation=implementation
        )
    allowed = jnp.asarray(scores.mask.block(0, 0, q_BTHK.shape[1], k_BSGK.shape[1]))
    o_BTHK = jax.nn.dot_product_attention(
        q_BTHK, k_BSGK, v_BSGK, mask=allowed, scale=scores.scale, implementation=implementation
    )
    alive_BTH1 = jnp.any(allowed, axis=-1, keepdims=True).swapaxes(1, 2)
    return jnp.where(alive_BTH1, o_BTHK, 0)


def _is_own(mask: Mask, T: int, S: int) -> bool:
    """Whether the kernel has the mask: its causal mask of unequal lengths might start at another corner than ours."""
    return isinstance(mask, Band) and (mask == full() or (mask == causal() and T == S))


def refusals(request: Request) -> Refusals:
    """Other machines than GPUs, and what cuDNN's kernel does not take."""
    scores = request.scores
    yield from needs(request.platform == "gpu", f"cuDNN runs on GPUs, not on a {request.platform}", "write blockwise")
    yield from needs(
        request.dtype in (jnp.bfloat16, jnp.float16),
        f"cuDNN takes bfloat16 and float16, not {request.dtype}",
        "write blockwise, or --config.model.dtype=bfloat16",
    )
    yield from needs(
        request.K <= 128 and request.K % 8 == 0,
        f"cuDNN takes head widths that are multiples of 8 up to 128, not {request.K}",
        "write blockwise, or another --config.model.num_heads",
    )
    yield from needs(
        _is_own(scores.mask, request.T, request.S) or request.T % 2 == request.S % 2 == 0,
        f"cuDNN takes this mask as an array, for even lengths only, not {request.T} x {request.S}",
        "write blockwise",
    )
    yield from needs(
        scores.bias is None, "a bias would become an array of T x S numbers for each head", "write blockwise"
    )
    yield from needs(not scores.soft_cap, "cuDNN has no soft cap", "write blockwise")
    yield from needs(scores.sinks_H is None, "cuDNN has no sinks", "write blockwise")
    yield from needs(scores.dropout is None, "cuDNN draws its own dropout, another one than dense", "write blockwise")
    yield from needs(
        scores.query_positions_BT is None, "queries at given positions are computed by dense", "write dense"
    )
    yield from needs(
        request.ways["length"] == 1,
        f"the mesh splits the sequence over context={request.ways['length']}",
        "write ring or ulysses, or --config.mesh.context=1",
    )
    yield from uneven(request)
