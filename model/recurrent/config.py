"""The keys that all recurrent families share."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from model.errors import Range, check_range, check_ranges
from model.families.family import Family
from model.layers import choose
from model.recurrent.cells import CELLS

_RANGES = {
    "num_layers": Range(1, 10_000),
    "width": Range(1, 2**20),
    "dropout": Range(0, 1, below=True),
    "forget_bias": Range(-100, 100),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrentKeys(Family):
    """What all recurrent families share: a vocabulary of `vocab_size` tokens, sequences of at most `max_length`, and
    keys of a config with their defaults, of which `--help` prints the comments.

    Raises:
        UserError: a size out of its range, or a choice that does not exist.
    """

    IN_TURN: ClassVar[bool] = True

    cell: str = "lstm"  # lstm or gru
    num_layers: int = 2  # L, layers
    width: int = 256  # D, of embeddings and states
    dropout: float = 0.0  # of the input of each layer and of the last states, while training
    forget_bias: float = 1.0  # added to the gate that keeps the state, f or z: above 0, it begins by remembering
    tied: bool = True  # the output head is the embedding, transposed
    dtype: str = "float32"  # of products, or bfloat16 or float16; parameters and states are float32

    def __post_init__(self) -> None:
        check_range("config.data.vocab_size", self.vocab_size, Range(1, 2**24))
        check_range("config.data.length", self.max_length, Range(1, 2**24))
        check_ranges("config.model", self, _RANGES)
        choose(CELLS, self.cell, "model.cell")
        choose({"float32": None, "bfloat16": None, "float16": None}, self.dtype, "model.dtype")

    @property
    def axes(self) -> dict[str, tuple[int, str]]:
        """The states are spread as the hidden layer of an MLP is."""
        return {"mlp": (self.width, "model.width")}


def cell_keys(config: RecurrentKeys, rngs: nnx.Rngs) -> dict[str, Any]:
    """What each cell takes beside its kind and sizes."""
    return {"forget_bias": config.forget_bias, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
