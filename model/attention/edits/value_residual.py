"""The first layer's values in all later ones."""

from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from model import sums
from model.attention.edits.base import Edit, Edits, Handed, edit, pinned
from model.errors import Range, check_range
from model.parameters import parameter

if TYPE_CHECKING:
    from model.attention.config import AttentionConfig


class ValueResidual(Edit):
    """v + mix (first - v), where `first` are the values of the first layer that has this edit, and stays as it is.

    `mix` is one learned number for each layer (ResFormer: Zhou et al. 2024, "Value residual learning", whose two
    numbers begin at one half each). At 0 it is the identity. That of the first layer counts for nothing.
    """

    hands: ClassVar = {"first_values": "BTGK", "has_first_values": ""}
    own_tokens: ClassVar = True

    def __init__(self, config: "AttentionConfig", rngs: nnx.Rngs, *, mix: float):
        self.mix = parameter(rngs, nnx.initializers.constant(mix), (), ())

    def before(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array, handed: Handed
    ) -> tuple[jax.Array, jax.Array, jax.Array, Handed]:
        """Values mixed with the first ones, and those for the next layer."""
        later = handed["has_first_values"] != 0
        first_BSGK = pinned(jnp.where(later, handed["first_values"], v_BSGK), self.hands["first_values"])
        mix_BSGK = jnp.broadcast_to(sums.cast(self.mix[...], v_BSGK.dtype), v_BSGK.shape).astype(v_BSGK.dtype)
        mixed_BSGK = v_BSGK + mix_BSGK * (first_BSGK - v_BSGK)
        own = {"first_values": first_BSGK, "has_first_values": jnp.ones_like(handed["has_first_values"])}
        return q_BTHK, k_BSGK, mixed_BSGK, {**handed, **own}

    @classmethod
    def refusal(cls, config: "AttentionConfig") -> str | None:
        """A layer without values of its own."""
        if config.own_keys:
            return None
        return "value_residual changes values, and a layer with take_kv has none of its own; leave one of them out"


def value_residual(mix: float = 0.5) -> Edits:
    """The first layer's values in later ones, at first in this share.

    Raises:
        UserError: a share that is none.
    """
    check_range("config.model.edits: value_residual's mix", mix, Range(0, 1))
    return edit("value_residual", ValueResidual, mix=float(mix))
