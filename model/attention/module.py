"""Multi-head attention: projections, positions, cache and gate around a core."""

import functools

import jax
from flax import nnx

from model.attention.biases.base import Bias
from model.attention.cache import Cache, StateCache
from model.attention.config import AttentionConfig
from model.attention.cores.table import attend, decode, make_core
from model.attention.dropout import dropout
from model.attention.edits.base import Handed
from model.attention.looked import Looked
from model.attention.masks.base import Mask
from model.attention.scores import Scores
from model.axes import check_axes, pin
from model.layers import Linear
from model.parameters import Module, parameter
from model.positions import Rotation, rotate
from model.taps import Tap, untouched
from model.use_bias import parse_use_bias

Turn = Rotation | None


class MultiHeadAttention(Module):
    """Attention with H query heads over G key/value heads (G = H: multi-head, 1 < G < H: grouped, G = 1: multi-query).

    Vaswani et al. 2017, section 3.2.2; grouped queries: Ainslie et al. 2023. What stands around the core, and
    what layers hand on: see `edits/`.
    """

    def __init__(self, config: AttentionConfig, *, rngs: nnx.Rngs):
        H, K, G = config.num_heads, config.K, config.num_kv_heads or config.num_heads
        self.config = config
        outer, heads, kv_heads = {"embed": config.width}, {"heads": H, "head": K}, {"kv_heads": G, "head": K}
        linear, use_bias = functools.partial(Linear, dtype=config.dtype, rngs=rngs), parse_use_bias(config.use_bias)
        self.query = linear(outer, heads, bias=use_bias.qkv)
        kv = functools.partial(linear, outer, kv_heads, bias=use_bias.qkv)
        self.key, self.value = (kv() if config.own_keys else None for _ in range(2))
        self.output = linear(heads, outer, bias=use_bias.output, gain=config.gain)
        config.edited.keep(self, config, rngs)
        self.sinks = parameter(rngs, nnx.initializers.zeros, (H,), ("heads",)) if config.sinks else None
        self.core = make_core(config.core, config.sizes, rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        mask: Mask,
        *,
        bias: Bias | None = None,
        context_BSD: jax.Array | None = None,
        rotation: Turn = None,
        context_rotation: Turn = None,
        dropout_keys_B: jax.Array | None = None,
        handed: Handed | None = None,
        tap: Tap = untouched,
    ) -> tuple[jax.Array, Handed]:
        """What each token of x takes from the tokens of `context_BSD` (cross-attention) or of x itself, (B, T, D), and
        what it hands on.

        Mask and bias speak of queries 0 to T - 1 and keys 0 to S - 1. `dropout_keys_B` (one per row) turns dropout on.
        """
        y_BSD, context_rotation = (x_BTD, rotation) if context_BSD is None else (context_BSD, context_rotation)
        *given, handed = self._projected(x_BTD, y_BSD, (rotation, context_rotation), handed)
        q_BTHK, k_BSGK, v_BSGK = map(tap, ("query", "key", "value"), given)
        return self._attended(q_BTHK, k_BSGK, v_BSGK, self.scores(mask, bias, dropout_keys_B), x_BTD, tap), handed

    def decode(
        self,
        x_BTD: jax.Array,
        mask: Mask,
        cache: Cache | StateCache,
        positions_BT: jax.Array,
        *,
        bias: Bias | None = None,
        rotation: Turn = None,
        handed: Handed | None = None,
    ) -> tuple[jax.Array, tuple[Handed, Cache | StateCache]]:
        """The same for new tokens at `positions_BT`, which join the cache; mask and bias speak of positions."""
        q_BTHK, k_BTGK, v_BTGK, handed = self._projected(x_BTD, x_BTD, (rotation, rotation), handed)
        given = q_BTHK, k_BTGK, v_BTGK, self.scores(mask, bias), cache, positions_BT
        o_BTHK, cache = decode(self.config.core, *given, self.core)
        return self._out(o_BTHK, v_BTGK, x_BTD), (handed, cache)

    def scores(self, mask: Mask, bias: Bias | None = None, dropout_keys_B: jax.Array | None = None) -> Scores:
        """What turns this layer's products into weights."""
        sinks_H = None if self.sinks is None else self.sinks[...]
        scale, drawn = self.config.scale or self.config.K**-0.5, self.config.dropout
        drop = dropout(drawn, dropout_keys_B, self.config.num_heads)
        return Scores(mask, scale, bias, self.config.soft_cap, sinks_H, drop)

    def _projected(
        self, x_BTD: jax.Array, y_BSD: jax.Array, turns: tuple[Turn, Turn], handed: Handed | None
    ) -> tuple[jax.Array, jax.Array, jax.Array, Handed]:
        """Queries of x, keys and values of y, edited and turned, and what is handed on."""
        check_axes("inputs", x_BTD, "BTD")
        check_axes("inputs of keys and values", y_BSD, "BSD")
        edits = self.config.edited
        handed = edits.handed(handed, self.config, x_BTD, y_BSD)
        k_BSGK = handed["keys"] if self.key is None else self.key(y_BSD)
        v_BSGK = handed["values"] if self.value is None else self.value(y_BSD)
        q_BTHK, k_BSGK, v_BSGK, handed = edits.before(self, self.query(x_BTD), k_BSGK, v_BSGK, x_BTD, handed)
        q_BTHK, k_BSGK = _pinned(rotate(q_BTHK, turns[0]), "heads"), _pinned(rotate(k_BSGK, turns[1]), "kv_heads")
        return q_BTHK, k_BSGK, _pinned(v_BSGK, "kv_heads"), handed

    def _attended(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores, x_BTD: jax.Array, tap: Tap
    ) -> jax.Array:
        o_BTHK = attend(self.config.core, q_BTHK, k_BSGK, v_BSGK, scores, self.core)
        looked = tap("weights", Looked(o_BTHK, q_BTHK, k_BSGK, v_BSGK, scores, self.config.core, self.core))
        return self._out(looked.o_BTHK, v_BSGK, x_BTD, tap)

    def _out(self, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array, tap: Tap = untouched) -> jax.Array:
        o_BTHK = tap("heads", self.config.edited.after(self, o_BTHK, v_BSGK, x_BTD))
        return self.output(_pinned(o_BTHK, "heads"))


def _pinned(x_BTHK: jax.Array, heads: str) -> jax.Array:
    return pin(x_BTHK, "batch", "length", heads, None)
