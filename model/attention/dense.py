"""The reference core: the whole (T, S) matrix of weights, softmax in float32."""

import jax
import jax.numpy as jnp

from model.attention.scores import Scores
from model.layers import row_bernoulli

_MASKED = -1e30  # what a masked score becomes: finite, so that a row of nothing else gives no NaN


def dense(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """softmax(scale * q k^T) v with everything in memory (Vaswani et al. 2017, equation 1); returns o_BTHK.

    Query head h reads key/value head h // (H / G). A query that may see no key gets zeros, and so does its gradient.
    """
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    # Heads before length: on a CPU the batched products run twice as fast in this layout. The H / G query heads that
    # share a key head are rows of one product.
    q_BGRK = (q_BTHK * scores.scale).astype(q_BTHK.dtype).swapaxes(1, 2).reshape(B, G, H // G * T, K)
    k_BGSK, v_BGSK = k_BSGK.swapaxes(1, 2), v_BSGK.swapaxes(1, 2)
    logits_BGRS = jnp.einsum("BGRK,BGSK->BGRS", q_BGRK, k_BGSK, preferred_element_type=jnp.float32)
    logits_BHTS = jnp.where(scores.mask.block(0, T, 0, S), logits_BGRS.reshape(B, H, T, S), _MASKED)
    most_BHT1 = jax.lax.stop_gradient(jnp.max(logits_BHTS, axis=-1, keepdims=True))
    weights_BHTS = jnp.exp(logits_BHTS - most_BHT1)
    total_BHT1 = jnp.sum(weights_BHTS, axis=-1, keepdims=True)
    if scores.dropout_keys_B is not None and scores.dropout > 0.0:
        keep_BHTS = row_bernoulli(scores.dropout_keys_B, 0, 1 - scores.dropout, (H, T, S))
        weights_BHTS = jnp.where(keep_BHTS, weights_BHTS / (1 - scores.dropout), 0)
    weights_BGRS = weights_BHTS.astype(v_BSGK.dtype).reshape(B, G, H // G * T, S)
    o_BGRK = jnp.einsum("BGRS,BGSK->BGRK", weights_BGRS, v_BGSK, preferred_element_type=jnp.float32)
    # Divided after the product, K numbers a row instead of S; rows without a key have no maximum above a masked score.
    o_BHTK = jnp.where(most_BHT1 > _MASKED / 2, o_BGRK.reshape(B, H, T, K) / total_BHT1, 0)
    return o_BHTK.astype(v_BSGK.dtype).swapaxes(1, 2)
