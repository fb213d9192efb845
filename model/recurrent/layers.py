"""Layers of cells, which all have the same shapes and are stored as one: (L, ...)."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from model.axes import pin
from model.layers import dropout
from model.parameters import Module, Path, flat_params, stack_layers
from model.recurrent.cells import Carry, Cell
from model.recurrent.config import RecurrentKeys, cell_keys
from model.recurrent.documents import Documents
from model.stack.context import folded


class Layer(Protocol):
    """(B, T, D) to (B, T, D), and its carry."""

    def __call__(self, x_BTD: jax.Array, documents: Documents, carry: Any) -> tuple[jax.Array, Any]:
        """The states after each step, and the carry after the last."""

    def empty(self, rows: int) -> Any:
        """The carry of so many rows before their first step."""


class BothWays(Module):
    """A cell that reads from the first token to the last and one that reads back, each half of the output (Schuster and
    Paliwal 1997).
    """

    def __init__(self, cell: str, width: int, *, forget_bias: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.forward = Cell(cell, width, width // 2, forget_bias=forget_bias, dtype=dtype, rngs=rngs)
        self.backward = Cell(cell, width, width // 2, forget_bias=forget_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self, x_BTD: jax.Array, documents: Documents, carry: tuple[Carry, Carry]
    ) -> tuple[jax.Array, tuple[Carry, Carry]]:
        """At each place what was read up to it, and behind that what was read from the end back to it."""
        there_BTH, first = self.forward(x_BTD, documents, carry[0])
        back_BTH, last = self.backward(x_BTD[:, ::-1], documents.backwards(), carry[1])
        return jnp.concatenate([there_BTH, back_BTH[:, ::-1]], axis=-1), (first, last)

    def empty(self, rows: int) -> tuple[Carry, Carry]:
        """Zeros for both."""
        return self.forward.empty(rows), self.backward.empty(rows)


class Layers(Module):
    """L equal layers. While it trains, the input of each is dropped out (Zaremba et al. 2014, section 3.1)."""

    def __init__(self, count: int, make: Callable[[], Layer], rate: float):
        one: Any = make()
        self.count, self.rate, self.kind = count, rate, nnx.graphdef(one)
        self.blocks, _ = stack_layers([one], count)

    def __call__(
        self, x_BTD: jax.Array, documents: Documents, carry: Any, dropout_keys_B: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """The last layer's states, (B, T, D), and the carries of all, whose arrays are (L, B, H)."""

        def layer(x_BTD: jax.Array, own: tuple[Any, Any, jax.Array]) -> tuple[jax.Array, Any]:
            rows, carry, number = own
            x_BTD = dropout(x_BTD, self.rate, folded(dropout_keys_B, number), 0)
            return self._block(rows)(x_BTD, documents, carry)

        return jax.lax.scan(layer, x_BTD, (self._stacks(), carry, jnp.arange(self.count)))

    def empty(self, rows: int) -> Any:
        """The carries of so many rows before their first step: zeros."""
        return jax.tree.map(
            lambda x: jnp.zeros((self.count, *x.shape), x.dtype), self._block(self._stacks()).empty(rows)
        )

    def _stacks(self) -> dict[Path, jax.Array]:
        return {path: param[...] for path, param in flat_params(self.blocks).items()}

    def _block(self, rows: dict[Path, Any]) -> Any:
        state: Any = nnx.from_flat_state(rows)  # type: ignore[arg-type]
        return nnx.merge(self.kind, state)


class Encoder(Module):
    """Layers that read a sequence in both directions."""

    def __init__(self, config: RecurrentKeys, count: int, rngs: nnx.Rngs):
        keys = cell_keys(config, rngs)
        self.stack = Layers(count, lambda: BothWays(config.cell, config.width, **keys), config.dropout)

    def __call__(self, x_BSD: jax.Array, documents: Documents, dropout_keys_B: jax.Array | None = None) -> jax.Array:
        """What is known at each place of all of its document, (B, S, D)."""
        x_BSD, _ = self.stack(x_BSD, documents, self.stack.empty(len(x_BSD)), dropout_keys_B)
        return pin(x_BSD, "batch", None, None)
