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
from model.stack.residuals import NORM_PLACES, Map
from model.taps import Tap, untouched, within
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

    def __call__(self, carry: Carry, context: Context, tap: Tap = untouched) -> Carry:
        """The block's output, (B, T, D), and what it hands on."""
        given: dict[str, Any] = {"dropout_keys_B": context.dropout_keys_B, "tap": within(tap, "attention")}

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, Handed]:
            return self.attention(y_BTD, **context.beside(carry[1]), **given)

        x_BTD, handed = self._residuals(carry[0], context, attend, tap)
        return tap("residual", x_BTD), handed

    def decode(
        self, carry: Carry, context: Context, cache: Cache | StateCache, positions_BT: jax.Array
    ) -> tuple[Carry, Cache | StateCache]:
        """The block's output for new tokens, what it hands on, and the cache with them in it."""

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, Any]:
            return self.attention.decode(y_BTD, cache=cache, positions_BT=positions_BT, **context.beside(carry[1]))

        x_BTD, (handed, cache) = self._residuals(carry[0], context, attend)
        return (x_BTD, handed), cache

    def _residuals(
        self, x_BTD: jax.Array, context: Context, attend: Attend, tap: Tap = untouched
    ) -> tuple[jax.Array, Any]:
        """The output of the branches and norms, and what attention gives beside its own."""
        more: Any = None

        def attention(y_BTD: jax.Array) -> jax.Array:
            nonlocal more
            o_BTD, more = attend(y_BTD)
            return o_BTD

        def cross(y_BTD: jax.Array) -> jax.Array:
            return self.cross.look(y_BTD, context.memory, context.cross_keys_B, within(tap, "cross"))

        maps: dict[str, Map] = {"attention": attention, "cross": cross, "mlp": self.mlp}

        def branch(name: str, y_BTD: jax.Array) -> jax.Array:
            o_BTD = dropout(maps[name](y_BTD), self.rate, context.dropout_keys_B, _SITES[name])
            return tap(f"{name}.output", o_BTD)

        def norm(name: str, x_BTD: jax.Array) -> jax.Array:
            return getattr(self, name)(tap(f"{name}.input", x_BTD))

        branches = {name: functools.partial(branch, name) for name in self.branches}
        return NORM_PLACES[self.norm_place].join(x_BTD, branches, norm), more
