"""A stack of equal blocks, stored once with a leading layer axis and run by a scan."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Bias, KVCache, Mask, MultiHeadAttention, Scores
from model.axes import pin
from model.layers import MLP, NORMS, dropout
from model.parameters import Module, stack_layers
from model.positions import Rotation
from model.stack_config import REMAT, StackConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What every layer of a stack needs beside its input."""

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
        self, x_BTD: jax.Array, context: Context, cache: KVCache, positions_BT: jax.Array
    ) -> tuple[jax.Array, KVCache]:
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


class Stack(Module):
    """L blocks whose parameters are stored as one, with a leading layer axis, and run by `lax.scan`.

    `unroll` layers run per iteration of the scan (L: no loop is left); storage, and so optimizers and checkpoints, do
    not change.
    """

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        self.blocks, self.config = Block(config, rngs), config
        stack_layers(self.blocks, range(config.num_layers))

    def __call__(self, x_BTD: jax.Array, context: Context, head_gate_LH: jax.Array | None = None) -> jax.Array:
        """All blocks in order, (B, T, D) to (B, T, D)."""

        def body(x: jax.Array, layer: tuple[Any, ...]) -> tuple[jax.Array, None]:
            block, keys_B, gate_H = layer
            return block(x, dataclasses.replace(context, dropout_keys_B=keys_B), gate_H), None

        return self._scan(body, x_BTD, self._keys_LB(context.dropout_keys_B), head_gate_LH)[0]

    def decode(
        self, x_BTD: jax.Array, context: Context, cache: KVCache, positions_BT: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """All blocks for new tokens; the caches of the layers are stacked, (L, B, S, G, K)."""
        return self._scan(lambda x, layer: layer[0].decode(x, context, layer[1], positions_BT), x_BTD, cache)

    def weights(self, x_BTD: jax.Array, context: Context) -> jax.Array:
        """The attention weights of every layer, (L, B, H, T, T)."""
        return self._scan(lambda x, layer: (layer[0](x, context, None), layer[0].weights(x, context)), x_BTD)[1]

    def of_norms(
        self, measure: Callable[[jax.Array], jax.Array], x_BTD: jax.Array, context: Context
    ) -> tuple[jax.Array, jax.Array]:
        """The output of all blocks, and what `measure` says of the input of each norm, (L, 2, ...)."""

        def body(x: jax.Array, layer: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            seen: list[jax.Array] = []
            y = layer[0](x, context, None, lambda x_BTD: seen.append(measure(x_BTD)))
            return y, jnp.stack(seen)

        return self._scan(body, x_BTD)

    def scores(self, context: Context) -> Scores:
        """What turns products into weights in the first layer."""
        graphdef, params = nnx.split(self.blocks)
        first = nnx.merge(graphdef, jax.tree.map(lambda x: x[0], params))
        keys_LB = self._keys_LB(context.dropout_keys_B)
        return first.attention.scores(context.mask, context.bias, None if keys_LB is None else keys_LB[0])

    def init_cache(self, batch_size: int, length: int) -> KVCache:
        """An empty cache for all layers, (L, B, S, G, K)."""
        one = self.blocks.attention.init_cache(batch_size, length)
        return jax.tree.map(lambda x: jnp.zeros((self.config.num_layers, *x.shape), x.dtype), one)

    def _scan(self, body: Callable[..., tuple[jax.Array, Any]], x: jax.Array, *per_layer: Any) -> tuple[jax.Array, Any]:
        graphdef, params = nnx.split(self.blocks)

        def step(x: jax.Array, layer: tuple[Any, ...]) -> tuple[jax.Array, Any]:
            return body(x, (nnx.merge(graphdef, layer[0]), *layer[1:]))

        policy, unroll = REMAT[self.config.remat], min(self.config.unroll, self.config.num_layers)
        if policy is not None:
            # Where no loop is left to keep forward and backward apart, XLA would merge what is computed twice.
            step = jax.checkpoint(step, policy=policy, prevent_cse=unroll == self.config.num_layers)
        return jax.lax.scan(step, x, (params, *per_layer), unroll=unroll, length=self.config.num_layers)

    def _keys_LB(self, keys_B: jax.Array | None) -> jax.Array | None:
        if keys_B is None:
            return None
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (None, 0))
        return fold(keys_B, jnp.arange(self.config.num_layers))
