"""The reference core: the whole (T, S) matrix of weights, softmax in float32."""

import jax
import jax.numpy as jnp

from model.attention.scores import Scores
from model.layers import row_bernoulli


def dense(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """softmax(scale * q k^T) v with everything in memory (Vaswani et al. 2017, equation 1); returns o_BTHK.

    Query head h reads key/value head h // (H / G). A query that may see no key gets zeros, and so does its gradient.
    """
    weights_BGRTS, live = _weights(q_BTHK, k_BSGK, scores)
    o_BGRTK = jnp.einsum("BGRTS,BGSK->BGRTK", weights_BGRTS.astype(v_BSGK.dtype), v_BSGK.swapaxes(1, 2))
    o_BGRTK = jnp.where(live[:, :, None], o_BGRTK, 0)
    B, G, R, T, K = o_BGRTK.shape
    return o_BGRTK.reshape(B, G * R, T, K).swapaxes(1, 2)


def _weights(q_BTHK: jax.Array, k_BSGK: jax.Array, scores: Scores) -> tuple[jax.Array, jax.Array]:
    (B, T, H, K), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    # Heads before length: on a CPU the batched products run twice as fast in this layout.
    q_BGRTK = (q_BTHK * scores.scale).astype(q_BTHK.dtype).swapaxes(1, 2).reshape(B, G, H // G, T, K)
    logits = jnp.einsum("BGRTK,BGSK->BGRTS", q_BGRTK, k_BSGK.swapaxes(1, 2), preferred_element_type=jnp.float32)
    mask = scores.mask.block(0, T, 0, S)
    logits = jnp.where(mask[:, :, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1)
    if scores.dropout_keys_B is not None and scores.dropout > 0.0:
        keep = row_bernoulli(scores.dropout_keys_B, 0, 1 - scores.dropout, (G, H // G, T, S))
        weights = jnp.where(keep, weights / (1 - scores.dropout), 0)
    return weights, jnp.any(mask, axis=-1, keepdims=True)
