"""How raw products of queries and keys become weights, as a value that every core takes."""

import dataclasses

import jax

from model.attention.masks import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """weights = dropout(softmax(scale * q k^T where the mask allows)).

    `dropout_keys_B` holds one random key per batch row (None: no dropout), so the draw depends on nothing but the row.
    """

    mask: Mask
    scale: float = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    dropout_keys_B: jax.Array | None = None
