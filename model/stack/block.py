"""One layer of a stack: attention, cross-attention where it has one, MLP and norms around the residual stream."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import MultiHeadAttention
from model.attention.cache import Cache, StateCache
from model.attention.cross import CrossAttention
from model.attention.edits.base import Handed
from model.layers import MLP, dropout
from model.norms import parse_norm
from model.parameters import Module
from model.stack.config import StackConfig
from model.stack.context import Context
from model.stack.residuals import NORM_PLACES, Watch
from model.use_bias import parse_use_bias

Carry = tuple[jax.Array, Handed]  # the residual stream (B, T, D), and what layers hand on
Attend = Callable[[jax.Array], tuple[jax.Array, Any]]  # its output, and more
_SITES = {"attention": 1, "cross": 3, "mlp": 2}  # the branches in their order, and where each draws its dropout


class Block(Module):
    """Attention, cross-attention if the config has one, MLP and norms, joined by an entry of `NORM_PLACES`."""

    cross: CrossAttention

    def __init__(self, config: StackConfig, rngs: nnx.Rngs):
        dtype, use_bias = jnp.dtype(config.dtype), parse_use_bias(config.use_bias)
        self.branches = tuple(name for name in _SITES if name != "cross" or config.has_cross)
        # Every residual branch starts smaller, so that the sum over all of them, which are 2L or 3L, keeps its variance
        # (Radford et al. 2019, section 2.3).
        gain = 1 / math.sqrt(len(self.branches) * config.num_layers)
        self.norm_place, self.rate = config.norm_place, config.dropout
        self.attention = MultiHeadAttention(config.attention(gain), rngs=rngs)
        if config.has_cross:
            self.cross = CrossAttention(config.attention(gain, "cross_"), rngs=rngs)
        hidden = config.mlp_width or 4 * config.width
        self.mlp = MLP(config.mlp, config.width, hidden, bias=use_bias.mlp, dtype=dtype, gain=gain, rngs=rngs)
        for name in NORM_PLACES[config.norm_place].norms(self.branches):
            setattr(self, name, parse_norm(config.norm)(config.width, bias=use_bias.norm, rngs=rngs))

    def __call__(
        self, carry: Carry, context: Context, head_gate_H: jax.Array | None, watch: Watch = lambda x_BTD: None
    ) -> Carry:
        """The block's output, (B, T, D), and what it hands on; `watch` gets the input of each norm."""
        given: dict[str, Any] = {"dropout_keys_B": context.dropout_keys_B, "head_gate_H": head_gate_H}

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, Handed]:
            return self.attention(y_BTD, **context.beside(carry[1]), **given)

        x_BTD, found = self._residuals(carry[0], context, watch, attention=attend)
        return x_BTD, found["attention"]

    def decode(
        self, carry: Carry, context: Context, cache: Cache | StateCache, positions_BT: jax.Array
    ) -> tuple[Carry, Cache | StateCache]:
        """The block's output for new tokens, what it hands on, and the cache with them in it."""

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, Any]:
            return self.attention.decode(y_BTD, cache=cache, positions_BT=positions_BT, **context.beside(carry[1]))

        x_BTD, found = self._residuals(carry[0], context, attention=attend)
        handed, cache = found["attention"]
        return (x_BTD, handed), cache

    def weights(self, carry: Carry, context: Context, site: str) -> jax.Array:
        """The weights of this block's `attention`, or of its `cross`-attention, for its input, (B, H, T, S)."""
        beside = context.beside(carry[1])

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.attention(y_BTD, **beside)[0], self.attention.weights(y_BTD, **beside)

        def look(y_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.cross.look(y_BTD, context.memory), self.cross.looked(y_BTD, context.memory)

        return self._residuals(carry[0], context, attention=attend, cross=look)[1][site]

    def _residuals(
        self, x_BTD: jax.Array, context: Context, watch: Watch = lambda x_BTD: None, **given: Attend
    ) -> tuple[jax.Array, dict[str, Any]]:
        """The output of the branches and norms, and what those that are `given` give beside their own."""
        found = dict[str, Any]()
        maps = {"cross": lambda y_BTD: (self.cross.look(y_BTD, context.memory, context.cross_keys_B), None)}
        maps |= {"mlp": lambda y_BTD: (self.mlp(y_BTD), None), **given}

        def branch(name: str, y_BTD: jax.Array) -> jax.Array:
            o_BTD, found[name] = maps[name](y_BTD)
            return dropout(o_BTD, self.rate, context.dropout_keys_B, _SITES[name])

        def norm(name: str, x_BTD: jax.Array) -> jax.Array:
            watch(x_BTD)
            return getattr(self, name)(x_BTD)

        branches = {name: functools.partial(branch, name) for name in self.branches}
        return NORM_PLACES[self.norm_place].join(x_BTD, branches, norm), found
