"""One layer of a stack: attention, MLP and norms around the residual stream."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Bias, Mask, MultiHeadAttention
from model.attention.cache import Cache, StateCache
from model.layers import MLP, dropout
from model.norms import parse_norm
from model.parameters import Module
from model.positions import Rotation
from model.stack.config import StackConfig
from model.stack.residuals import NORM_PLACES, Map, Watch, watched
from model.use_bias import parse_use_bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer needs beside its input."""

    mask: Mask
    bias: Bias | None = None
    rotation: Rotation | None = None
    dropout_keys_B: jax.Array | None = None


class Block(Module):
    """Attention, MLP and norms, which an entry of `NORM_PLACES` joins to the residual stream."""

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        dtype, use_bias = jnp.dtype(config.dtype), parse_use_bias(config.use_bias)
        # Every residual branch starts smaller, so that the sum over 2L of them keeps its variance (Radford et al.
        # 2019, section 2.3).
        gain = 1 / math.sqrt(2 * config.num_layers)
        self.norm_place, self.rate = config.norm_place, config.dropout
        self.attention = MultiHeadAttention(config.attention(gain), rngs=rngs)
        hidden = config.mlp_width or 4 * config.width
        self.mlp = MLP(config.mlp, config.width, hidden, bias=use_bias.mlp, dtype=dtype, gain=gain, rngs=rngs)
        for name in NORM_PLACES[config.norm_place].norms:
            setattr(self, name, parse_norm(config.norm)(config.width, bias=use_bias.norm, rngs=rngs))

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
        self, x_BTD: jax.Array, context: Context, cache: Cache | StateCache, positions_BT: jax.Array
    ) -> tuple[jax.Array, Cache | StateCache]:
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
        found = []

        def attend(y_BTD: jax.Array) -> jax.Array:
            found.append(self.attention.weights(y_BTD, context.mask, bias=context.bias, rotation=context.rotation))
            return y_BTD

        self._residuals(x_BTD, attend, None)
        return found[0]

    def _residuals(
        self, x_BTD: jax.Array, attend: Map, keys_B: jax.Array | None, watch: Watch = lambda x_BTD: None
    ) -> jax.Array:
        def branch(site: int, function: Map) -> Map:
            return lambda x_BTD: dropout(function(x_BTD), self.rate, keys_B, site)

        place = NORM_PLACES[self.norm_place]
        norms = [watched(getattr(self, name), watch) for name in place.norms]
        return place.join(x_BTD, branch(1, attend), branch(2, self.mlp), *norms)
