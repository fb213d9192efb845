"""How raw products of queries and keys become weights, as a value that every core takes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.attention.biases.base import Bias
from model.attention.dropout import Dropout
from model.attention.masks.arrays import gather
from model.attention.masks.base import Index, Mask, Start, indices
from model.attention.masks.hidden import seen_from, seen_keys
from model.attention.values import array, static, value

MASKED = -np.inf  # what a hidden score becomes: a weight of 0 beside anything


def wide(x: jax.Array) -> jax.Array:
    """x in float32, or in float64 if it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def largest(x: jax.Array) -> float:
    """The largest finite number of x's type; what a logit of +infinity becomes, and what no maximum is below, negated,
    so that no infinity is ever subtracted from itself.
    """
    return float(jnp.finfo(x.dtype).max)


def bounded(logits: jax.Array) -> jax.Array:
    """The logits with the largest number for +infinity, which gets no gradient then."""
    return jnp.where(logits == jnp.inf, largest(logits), logits)


@value
class Scores:
    """weights = dropout(softmax(logits where the mask allows)), with logits = cap tanh(scale q k^T / cap) + bias.

    `soft_cap` 0 is none (Gemma 2, 2024, section 2); `sinks_H` adds one logit per head to each row's sum that no value
    stands behind (Xiao et al. 2023, section 3.3, as a learned number). `query_positions_BT` says where on the keys'
    axis the queries stand, if not at 0, 1, ... (cached decoding); mask and bias then speak of those places. So does
    `key_positions_BS` of the keys; at a negative position there is none.

    Infinite logits are limits: one of -infinity weighs nothing, as if it were hidden, and one of +infinity takes all
    (of several, each an equal part). Neither gets a gradient, and a row of -infinity alone is one without a key.
    """

    mask: Mask
    scale: float = static()
    bias: Bias | None = None
    soft_cap: float = static(default=0.0)
    sinks_H: jax.Array | None = array("heads", default=None)
    dropout: Dropout | None = None
    query_positions_BT: jax.Array | None = array("batch", None, default=None)
    key_positions_BS: jax.Array | None = array("batch", None, default=None)

    def logits(self, products: jax.Array, i0: Start = 0, j0: Start = 0, visible: bool = False) -> jax.Array:
        """Logits (B, H, rows, columns), at least in float32, of scaled products: a block that begins at (i0, j0).

        What the mask hides becomes MASKED; `visible` says that it hides nothing here. None is above `largest`.
        """
        rows, columns = products.shape[2:]
        x = wide(products)
        if self.soft_cap:
            x = self.soft_cap * jnp.tanh(x / self.soft_cap)
        if self.query_positions_BT is not None:
            i, j = self.indices(i0, j0, rows, columns)
            x = bounded(x if self.bias is None else x + self.bias.at(i, j))
            return jnp.where(self.mask.at(i, j) & (j >= 0), x, MASKED)
        x = bounded(x if self.bias is None else x + self.bias.block(i0, j0, rows, columns))
        return x if visible else jnp.where(self.mask.block(i0, j0, rows, columns), x, MASKED)

    def without_hidden(self, k_BSGK: jax.Array, v_BSGK: jax.Array, T: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values with zeros where none of the T queries of their row may see them.

        Padding, or a slot that nobody has written yet, may hold NaN, and a weight of 0 times NaN would be NaN.
        """
        (S, G), positions_BT = k_BSGK.shape[1:3], self.query_positions_BT
        if positions_BT is None:
            seen = seen_keys(self.mask, T, S)
        else:
            seen = seen_from(self.mask, positions_BT, self.indices(0, 0, 1, S)[1])
        if seen is None:
            return k_BSGK, v_BSGK
        seen_BHS = jnp.broadcast_to(seen, (*seen.shape[:2], S))
        if seen_BHS.shape[1] > 1:
            seen_BHS = jnp.any(seen_BHS.reshape(len(seen_BHS), G, -1, S), axis=2)
        seen_BSG1 = seen_BHS.swapaxes(1, 2)[..., None]
        return jnp.where(seen_BSG1, k_BSGK, 0), jnp.where(seen_BSG1, v_BSGK, 0)

    def dropped(self, weights: jax.Array, i0: Start = 0, j0: Start = 0) -> jax.Array:
        """The block's weights after dropout: those kept are divided by 1 - rate."""
        if self.dropout is None:
            return weights
        keep = self.dropout.keep(*self.indices(i0, j0, *weights.shape[2:]))
        return jnp.where(keep, weights / (1 - self.dropout.rate), 0)

    def indices(self, i0: Start, j0: Start, rows: int, columns: int) -> tuple[Index, Index]:
        """Where the block's queries and keys stand on the keys' axis."""
        i, j = indices(i0, j0, rows, columns)
        i = i if self.query_positions_BT is None else gather(self.query_positions_BT, i)
        return i, (j if self.key_positions_BS is None else gather(self.key_positions_BS, j))

    def learned(self) -> tuple[Bias | None, jax.Array | None]:
        """What gradients are asked of: bias and sinks."""
        return self.bias, self.sinks_H

    def replace(self, **changes: Any) -> "Scores":
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)
