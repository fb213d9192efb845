"""Queries and keys of a known size."""

from typing import TYPE_CHECKING, Literal

import jax
from flax import nnx

from model.attention.edits.base import Edit, Edits, Handed, edit
from model.errors import Range, check_range
from model.norms import NORMS, Norm

if TYPE_CHECKING:
    from model.attention.config import AttentionConfig


class QKNorm(Edit):
    """Normalises queries and keys, over each head or over all heads together.

    A layer norm over each head: Dehghani et al. 2023, section 2; RMS over each head: Qwen 3 (Yang et al. 2025) and
    Gemma 3; RMS over all: OLMo 2 (2025, section 3.2). Keys that a layer takes from another are as that one made them.
    """

    def __init__(self, config: "AttentionConfig", rngs: nnx.Rngs, *, norm: str, over: str, epsilon: float):
        H, G = config.num_heads, config.num_kv_heads or config.num_heads
        heads_q, heads_k = (H, G) if over == "all" else (1, 1)
        self.over, make = over, NORMS[norm](epsilon)
        self.query = make(heads_q * config.K, rngs=rngs)
        self.key = make(heads_k * config.K, rngs=rngs) if config.own_keys else None

    def before(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array, handed: Handed
    ) -> tuple[jax.Array, jax.Array, jax.Array, Handed]:
        """Queries and keys normalised."""
        k_BSGK = k_BSGK if self.key is None else self._normed(self.key, k_BSGK)
        return self._normed(self.query, q_BTHK), k_BSGK, v_BSGK, handed

    def _normed(self, norm: Norm, x_BTHK: jax.Array) -> jax.Array:
        if self.over == "head":
            return norm(x_BTHK)
        B, T, H, K = x_BTHK.shape
        return norm(x_BTHK.reshape(B, T, H * K)).reshape(B, T, H, K)


def qk_norm(
    norm: Literal["rms", "rms_plus_one", "layer"] = "rms", over: Literal["head", "all"] = "head", epsilon: float = 1e-6
) -> Edits:
    """Queries and keys normalised over each head, or over all heads together.

    Raises:
        UserError: the epsilon is out of range.
    """
    check_range("config.model.edits: qk_norm's epsilon", epsilon, Range(1e-12, 1))
    return edit("qk_norm", QKNorm, norm=norm, over=over, epsilon=epsilon)
