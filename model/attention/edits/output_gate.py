"""How much of what a head has found is let through."""

from typing import TYPE_CHECKING, Literal

import jax
from flax import nnx

from model.attention.edits.base import Edit, Edits, edit
from model.layers import Linear

if TYPE_CHECKING:
    from model.attention.config import AttentionConfig


class OutputGate(Edit):
    """o * sigmoid(x @ kernel): a number of x for each channel of each head, or for each head.

    Qiu et al. 2025 ("Gated attention for large language models"), section 2.2: after the core, elementwise or headwise,
    of its own for each head. It begins at about one half.
    """

    def __init__(self, config: "AttentionConfig", rngs: nnx.Rngs, *, per: str):
        inner = {"heads": config.num_heads} | ({"head": config.K} if per == "channel" else {})
        self.gate = Linear({"embed": config.width}, inner, bias=False, dtype=config.dtype, rngs=rngs)

    def after(self, o_BTHK: jax.Array, v_BSGK: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """Each channel, or each head, times its gate."""
        gates = jax.nn.sigmoid(self.gate(x_BTD))
        return o_BTHK * (gates if gates.ndim == 4 else gates[..., None])


def output_gate(per: Literal["channel", "head"] = "channel") -> Edits:
    """What the core has made, times a sigmoid of x."""
    return edit("output_gate", OutputGate, per=per)
