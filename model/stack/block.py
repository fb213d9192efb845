"""One layer of a stack: attention and MLP, each with a residual connection."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Bias, Mask, MultiHeadAttention
from model.attention.cache import Cache
from model.axes import pin
from model.layers import MLP, NORMS, dropout
from model.parameters import Module
from model.positions import Rotation
from model.stack.config import StackConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer needs beside its input."""

    mask: Mask
    bias: Bias | None = None
    rotation: Rotation | None = None
    dropout_keys_B: jax.Array | None = None


Watch = Callable[[jax.Array], None]


class Block(Module):
    """Attention and MLP, each with a residual connection.

    Pre-norm: x + f(norm(x)) (Xiong et al. 2020); post-norm: norm(x + f(x)) (Vaswani et al. 2017, section 3.1).
    """

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        norm = NORMS[config.norm]
        dtype, bias = jnp.dtype(config.dtype), config.use_bias
        # Every residual branch starts smaller, so that the sum over 2L of them keeps its variance (Radford et al.
        # 2019, section 2.3).
        gain = 1 / math.sqrt(2 * config.num_layers)
        self.pre, self.rate = config.norm_place == "pre", config.dropout
        self.attention = MultiHeadAttention(config.attention(gain), rngs=rngs)
        hidden = config.mlp_width or 4 * config.width
        self.mlp = MLP(config.mlp, config.width, hidden, bias=bias, dtype=dtype, gain=gain, rngs=rngs)
        self.attention_norm = norm(config.width, bias=bias, rngs=rngs)
        self.mlp_norm = norm(config.width, bias=bias, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, context: Context, head_gate_H: jax.Array | None, watch: Watch = lambda x_BTD: None
    ) -> jax.Array:
        """The block's output, (B, T, D); `watch` gets the input of each norm."""

        def attend(y_BTD: jax.Array) -> jax.Array:
            return self.attention(
                y_BTD,
                context.mask,
                bias=context.bias,
                rotation=context.rotation,
                dropout_keys_B=context.dropout_keys_B,
                head_gate_H=head_gate_H,
            )

        return self._residuals(x_BTD, attend, context.dropout_keys_B, watch)

    def decode(
        self, x_BTD: jax.Array, context: Context, cache: Cache, positions_BT: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """The block's output for new tokens, and the cache with them in it."""
        caches = []

        def attend(y_BTD: jax.Array) -> jax.Array:
            o_BTD, new = self.attention.decode(
                y_BTD, context.mask, cache, positions_BT, bias=context.bias, rotation=context.rotation
            )
            caches.append(new)
            return o_BTD

        return self._residuals(x_BTD, attend, None), caches[0]

    def weights(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The attention weights of this block for its input x, (B, H, T, T)."""
        y_BTD = self.attention_norm(x_BTD) if self.pre else x_BTD
        return self.attention.weights(y_BTD, context.mask, bias=context.bias, rotation=context.rotation)

    def _residuals(
        self,
        x: jax.Array,
        attend: Callable[[jax.Array], jax.Array],
        keys_B: jax.Array | None,
        watch: Watch = lambda x_BTD: None,
    ) -> jax.Array:
        for site, branch, norm in ((1, attend, self.attention_norm), (2, self.mlp, self.mlp_norm)):
            before = x
            y = branch(norm(x) if self.pre else x)
            x = x + dropout(y, self.rate, keys_B, site)
            watch(before if self.pre else x)
            x = pin(x if self.pre else norm(x), "batch", "length", None)
        return x
