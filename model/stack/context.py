"""What a layer needs beside its input."""

import dataclasses
from typing import Any

import jax

from model.attention import Bias, Mask, full
from model.attention.cross import Memory
from model.attention.edits.base import Handed
from model.positions import Rotation
from model.stack.rows import Number

_CROSS = 2**31  # what cross-attention folds its layer's dropout keys with: no layer has so many heads or branches
NO_MEMORY = Memory(full())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer needs beside its input."""

    mask: Mask
    bias: Bias | None = None
    rotation: Rotation | None = None
    dropout_keys_B: jax.Array | None = None
    memory: Memory = NO_MEMORY

    def at(self, number: Number) -> "Context":
        """The same for layer `number`, whose dropout is its own, and so are keys and values of a memory."""
        keys_B, memory = folded(self.dropout_keys_B, number), self.memory
        if memory.seen is not None:
            one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, number, keepdims=False), memory.seen)
            memory = dataclasses.replace(memory, seen=one)
        return dataclasses.replace(self, dropout_keys_B=keys_B, memory=memory)

    def beside(self, handed: Handed) -> dict[str, Any]:
        """What self-attention needs beside its input."""
        return {"mask": self.mask, "bias": self.bias, "rotation": self.rotation, "handed": handed}

    def scored(self, site: str) -> dict[str, Any]:
        """What the scores of a site (`attention` or `cross`) are made of."""
        if site == "cross":
            return {"mask": self.memory.mask, "dropout_keys_B": self.cross_keys_B}
        return {"mask": self.mask, "bias": self.bias, "dropout_keys_B": self.dropout_keys_B}

    @property
    def cross_keys_B(self) -> jax.Array | None:
        """The dropout keys of cross-attention."""
        return folded(self.dropout_keys_B, _CROSS)


def folded(keys_B: jax.Array | None, number: Number) -> jax.Array | None:
    """The keys of a part of what the keys are for; without keys, none."""
    return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, number)
