"""One layer of a stack: attention, MLP and norms around the residual stream."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention import Bias, Mask, MultiHeadAttention
from model.attention.cache import Cache, StateCache
from model.attention.edits.base import Handed
from model.layers import MLP, dropout
from model.norms import parse_norm
from model.parameters import Module
from model.positions import Rotation
from model.stack.config import StackConfig
from model.stack.residuals import NORM_PLACES, Map, Watch, watched
from model.use_bias import parse_use_bias

Carry = tuple[jax.Array, Handed]  # the residual stream (B, T, D), and what layers hand on


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer needs beside its input."""

    mask: Mask
    bias: Bias | None = None
    rotation: Rotation | None = None
    dropout_keys_B: jax.Array | None = None

    def beside(self, carry: Carry) -> dict[str, Any]:
        """What its attention needs beside input and mask."""
        return {"bias": self.bias, "rotation": self.rotation, "handed": carry[1]}


Attend = Callable[[jax.Array], tuple[jax.Array, Any]]  # its output, and more


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
        self, carry: Carry, context: Context, head_gate_H: jax.Array | None, watch: Watch = lambda x_BTD: None
    ) -> Carry:
        """The block's output, (B, T, D), and what it hands on; `watch` gets the input of each norm."""
        given: dict[str, Any] = {"dropout_keys_B": context.dropout_keys_B, "head_gate_H": head_gate_H}

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, Handed]:
            return self.attention(y_BTD, context.mask, **context.beside(carry), **given)

        return self._residuals(carry[0], attend, context.dropout_keys_B, watch)

    def decode(
        self, carry: Carry, context: Context, cache: Cache | StateCache, positions_BT: jax.Array
    ) -> tuple[Carry, Cache | StateCache]:
        """The block's output for new tokens, what it hands on, and the cache with them in it."""

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, Any]:
            return self.attention.decode(y_BTD, context.mask, cache, positions_BT, **context.beside(carry))

        x_BTD, (handed, cache) = self._residuals(carry[0], attend, None)
        return (x_BTD, handed), cache

    def weights(self, carry: Carry, context: Context) -> jax.Array:
        """The attention weights of this block for its input, (B, H, T, T)."""

        def attend(y_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
            return y_BTD, self.attention.weights(y_BTD, context.mask, **context.beside(carry))

        return self._residuals(carry[0], attend, None)[1]

    def _residuals(
        self, x_BTD: jax.Array, attend: Attend, keys_B: jax.Array | None, watch: Watch = lambda x_BTD: None
    ) -> tuple[jax.Array, Any]:
        """The output of the branches and norms, and what `attend` gives beside its own."""
        found = []

        def attention(y_BTD: jax.Array) -> jax.Array:
            o_BTD, more = attend(y_BTD)
            found.append(more)
            return o_BTD

        def branch(site: int, function: Map) -> Map:
            return lambda x_BTD: dropout(function(x_BTD), self.rate, keys_B, site)

        place = NORM_PLACES[self.norm_place]
        norms = [watched(getattr(self, name), watch) for name in place.norms]
        return place.join(x_BTD, branch(1, attention), branch(2, self.mlp), *norms), found[0]
