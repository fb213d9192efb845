"""Multi-head attention: projections, positions, cache and gate around a core."""

import functools

import jax
from flax import nnx

from model.attention.biases.base import Bias
from model.attention.cache import Cache, StateCache
from model.attention.config import AttentionConfig
from model.attention.cores.table import attend, decode, make_core, matrix
from model.attention.dropout import dropout
from model.attention.masks.base import Mask
from model.attention.scores import Scores
from model.axes import check_axes, pin
from model.layers import Linear
from model.norms import rms
from model.parameters import Module, parameter
from model.positions import Rotation, rotate
from model.use_bias import parse_use_bias


class MultiHeadAttention(Module):
    """Attention with H query heads over G key/value heads (G = H: multi-head, 1 < G < H: grouped, G = 1: multi-query).

    Vaswani et al. 2017, section 3.2.2; grouped queries: Ainslie et al. 2023; QK-norm: Dehghani et al. 2023, section 2.
    """

    def __init__(self, config: AttentionConfig, *, rngs: nnx.Rngs):
        H, K, G = config.num_heads, config.head_width, config.num_kv_heads or config.num_heads
        self.config = config
        outer, heads, kv_heads = {"embed": config.width}, {"heads": H, "head": K}, {"kv_heads": G, "head": K}
        linear, use_bias = functools.partial(Linear, dtype=config.dtype, rngs=rngs), parse_use_bias(config.use_bias)
        self.query = linear(outer, heads, bias=use_bias.qkv)
        self.key, self.value = (linear(outer, kv_heads, bias=use_bias.qkv) for _ in range(2))
        self.output = linear(heads, outer, bias=use_bias.output, gain=config.gain)
        self.query_norm = rms()(K, rngs=rngs) if config.qk_norm else None
        self.key_norm = rms()(K, rngs=rngs) if config.qk_norm else None
        self.sinks = parameter(rngs, nnx.initializers.zeros, (H,), ("heads",)) if config.sinks else None
        self.core = make_core(config.core, config.sizes, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        mask: Mask,
        *,
        bias: Bias | None = None,
        context_BSD: jax.Array | None = None,
        rotation: Rotation | None = None,
        context_rotation: Rotation | None = None,
        dropout_keys_B: jax.Array | None = None,
        head_gate_H: jax.Array | None = None,
    ) -> jax.Array:
        """What each token of x takes from the tokens of `context_BSD` (cross-attention) or of x itself; (B, T, D).

        Mask and bias speak of queries 0 to T - 1 and keys 0 to S - 1. `dropout_keys_B` (one per row) turns dropout on.
        `head_gate_H` multiplies each head's output before the output projection (1: as is, 0: pruned).
        """
        context_rotation = rotation if context_BSD is None else context_rotation
        q_BTHK = self._queries(x_BTD, rotation)
        k_BSGK, v_BSGK = self._keys_values(x_BTD if context_BSD is None else context_BSD, context_rotation)
        scores = self.scores(mask, bias, dropout_keys_B)
        return self._out(attend(self.config.core, q_BTHK, k_BSGK, v_BSGK, scores, self.core), head_gate_H)

    def decode(
        self,
        x_BTD: jax.Array,
        mask: Mask,
        cache: Cache | StateCache,
        positions_BT: jax.Array,
        *,
        bias: Bias | None = None,
        rotation: Rotation | None = None,
        head_gate_H: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | StateCache]:
        """The same for new tokens at `positions_BT`, which join the cache; mask and bias speak of positions."""
        q_BTHK, (k_BTGK, v_BTGK) = self._queries(x_BTD, rotation), self._keys_values(x_BTD, rotation)
        given = q_BTHK, k_BTGK, v_BTGK, self.scores(mask, bias), cache, positions_BT
        o_BTHK, cache = decode(self.config.core, *given, self.core)
        return self._out(o_BTHK, head_gate_H), cache

    def weights(
        self, x_BTD: jax.Array, mask: Mask, *, bias: Bias | None = None, rotation: Rotation | None = None
    ) -> jax.Array:
        """The weights (B, H, T, T) that the core really applies to x."""
        q_BTHK, (k_BTGK, _) = self._queries(x_BTD, rotation), self._keys_values(x_BTD, rotation)
        return matrix(self.config.core, q_BTHK, k_BTGK, self.scores(mask, bias), self.core)

    def scores(self, mask: Mask, bias: Bias | None = None, dropout_keys_B: jax.Array | None = None) -> Scores:
        """What turns this layer's products into weights."""
        sinks_H = None if self.sinks is None else self.sinks[...]
        scale, drawn = self.config.scale or self.config.head_width**-0.5, self.config.dropout
        drop = dropout(drawn, dropout_keys_B, self.config.num_heads)
        return Scores(mask, scale, bias, self.config.soft_cap, sinks_H, drop)

    def _queries(self, x_BTD: jax.Array, rotation: Rotation | None) -> jax.Array:
        check_axes("inputs", x_BTD, "BTD")
        q_BTHK = self.query(x_BTD)
        q_BTHK = q_BTHK if self.query_norm is None else self.query_norm(q_BTHK)
        return pin(rotate(q_BTHK, rotation), "batch", "length", "heads", None)

    def _keys_values(self, x_BSD: jax.Array, rotation: Rotation | None) -> tuple[jax.Array, jax.Array]:
        check_axes("inputs of keys and values", x_BSD, "BSD")
        k_BSGK, v_BSGK = self.key(x_BSD), self.value(x_BSD)
        k_BSGK = k_BSGK if self.key_norm is None else self.key_norm(k_BSGK)
        names = ("batch", "length", "kv_heads", None)
        return pin(rotate(k_BSGK, rotation), *names), pin(v_BSGK, *names)

    def _out(self, o_BTHK: jax.Array, head_gate_H: jax.Array | None) -> jax.Array:
        if head_gate_H is not None:
            o_BTHK = o_BTHK * head_gate_H.astype(o_BTHK.dtype)[None, None, :, None]
        return self.output(pin(o_BTHK, "batch", "length", "heads", None))
