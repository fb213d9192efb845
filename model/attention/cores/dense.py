"""The reference core: the whole (T, S) matrix of weights, softmax in float32."""

import jax
import jax.numpy as jnp

from model.attention.contract import Refusals, Request
from model.attention.scores import Scores, bounded, largest, wide


def dense(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """softmax(scale * q k^T) v with everything in memory (Vaswani et al. 2017, equation 1); returns o_BTHK.

    Query head h reads key/value head h // (H / G). A query that may see no key gets zeros, and so does its gradient.
    """
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    k_BSGK, v_BSGK = scores.without_hidden(k_BSGK, v_BSGK, T)
    # Heads before length: on a CPU the batched products run twice as fast in this layout. The H / G query heads that
    # share a key head are rows of one product.
    q_BGRK = (q_BTHK * scores.scale).astype(q_BTHK.dtype).swapaxes(1, 2).reshape(B, G, H // G * T, K)
    k_BGSK, v_BGSK = k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2)
    sums = wide(q_BTHK).dtype
    products_BGRS = jnp.einsum("BGRK,BGSK->BGRS", q_BGRK, k_BGSK, preferred_element_type=sums)
    logits_BHTS = scores.logits(products_BGRS.reshape(B, H, T, S))
    most_BHT1 = jnp.max(logits_BHTS, axis=-1, keepdims=True)
    most_BHT1 = jnp.maximum(most_BHT1, -largest(most_BHT1))
    sinks_1H11 = None if scores.sinks_H is None else bounded(wide(scores.sinks_H))[None, :, None, None]
    if sinks_1H11 is not None:
        most_BHT1 = jnp.maximum(most_BHT1, sinks_1H11)
    most_BHT1 = jax.lax.stop_gradient(most_BHT1)
    weights_BHTS = jnp.exp(logits_BHTS - most_BHT1)
    total_BHT1 = jnp.sum(weights_BHTS, axis=-1, keepdims=True)
    if sinks_1H11 is not None:
        total_BHT1 += jnp.exp(sinks_1H11 - most_BHT1)
    weights_BGRS = scores.dropped(weights_BHTS).astype(v_BSGK.dtype).reshape(B, G, H // G * T, S)
    o_BGRK = jnp.einsum("BGRS,BGSK->BGRK", weights_BGRS, v_BGSK, preferred_element_type=sums)
    # Divided after the product, K numbers a row instead of S. A row without a key has a total of 0, and is not told by
    # its maximum, which on a CPU passes over NaN.
    dead_BHT1 = total_BHT1 == 0
    o_BHTK = jnp.where(dead_BHT1, 0, o_BGRK.reshape(B, H, T, -1) / jnp.where(dead_BHT1, 1, total_BHT1))
    return o_BHTK.astype(v_BSGK.dtype).swapaxes(1, 2)


def refusals(request: Request) -> Refusals:
    """Nothing: whatever is asked for, the reference computes."""
    return iter(())
