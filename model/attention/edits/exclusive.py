"""Attention to all but what a token knows of itself."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from model.attention.edits.base import Edit, Edits, edit


class Exclusive(Edit):
    """o - (o . v / v . v) v for each head, v being the token's own value: what is left is orthogonal to it.

    Exclusive self-attention (Zhai 2026, "Exclusive self attention"); computed in float32.
    """

    own_tokens: ClassVar = True

    def after(self, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """Each head's output without its projection on the value of its group."""
        B, T, H, K = o_BTHK.shape
        o_BTGRK = o_BTHK.astype(jnp.float32).reshape(B, T, v_BSGK.shape[2], -1, K)
        v_BTG1K = v_BSGK.astype(jnp.float32)[:, :, :, None]
        square = jnp.sum(v_BTG1K * v_BTG1K, axis=-1, keepdims=True)
        # A value of zero has no direction: nothing is taken, and no gradient is 0 / 0.
        share = jnp.sum(o_BTGRK * v_BTG1K, axis=-1, keepdims=True) / jnp.where(square == 0, 1, square)
        return (o_BTGRK - share * v_BTG1K).reshape(B, T, H, K).astype(o_BTHK.dtype)


def exclusive() -> Edits:
    """Each head's output without its projection on the token's own value."""
    return edit("exclusive", Exclusive)
