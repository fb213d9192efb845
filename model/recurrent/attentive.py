"""A cell that looks at a source before each step (Bahdanau et al. 2015, appendix A.1.2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from model.axes import pin
from model.bounds import rows_of, without_padding
from model.layers import Linear, dropout
from model.parameters import Module
from model.recurrent.cells import CELLS, Carry, Cell, kept
from model.recurrent.config import RecurrentKeys, cell_keys
from model.recurrent.documents import Documents
from model.recurrent.layers import Layers
from model.stack.context import folded

# What keys of dropout are folded with, beside the numbers of layers; no network is that deep.
_LAST, _FIRST = 2**31, 2**31 + 1


class Memory(NamedTuple):
    """What an encoder knows of each place of the sources: what is handed on, U h of it, and the id of the pair that it
    belongs to; 0: padding.
    """

    values_BSD: jax.Array
    keys_BSA: jax.Array
    ids_BS: jax.Array


class Attended(NamedTuple):
    """The states after each step, what had been attended to before it, and how: (B, T, D) twice and (B, T, S)."""

    states_BTD: jax.Array
    contexts_BTD: jax.Array
    weights_BTS: jax.Array

    def weights(self) -> jax.Array:
        """Those of the one head that there is, (B, 1, T, S)."""
        return self.weights_BTS[:, None]


class AdditiveAttention(Module):
    """The weights softmax over j of v . tanh(W s + U h_j), for a state s (B, D) and a source's h_j (B, S, D)."""

    def __init__(self, width: int, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.query = Linear({"embed": width}, {"mlp": hidden}, bias=False, dtype=dtype, rngs=rngs)
        self.key = Linear({"embed": width}, {"mlp": hidden}, bias=False, dtype=dtype, rngs=rngs)
        self.score = Linear({"mlp": hidden}, {"scores": 1}, bias=False, dtype=dtype, rngs=rngs)


class AttentiveCell(Module):
    """One layer, whose step sees a token's vector and a context: what the state before attends to in the source.

    A pair's first state is tanh(W b + bias), of what the encoder's backward direction knows at its first place.
    """

    def __init__(
        self, cell: str, width: int, hidden: int, *, forget_bias: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.cell = Cell(cell, width, width, forget_bias=forget_bias, dtype=dtype, rngs=rngs)
        outputs = {"gates": CELLS[cell].gates, "mlp": width}
        self.context = Linear({"embed": width}, outputs, bias=False, dtype=dtype, rngs=rngs)
        self.attention = AdditiveAttention(width, hidden, dtype=dtype, rngs=rngs)
        self.first = Linear({"embed": width // 2}, {"mlp": width}, bias=True, dtype=dtype, rngs=rngs)

    def remember(self, values_BSD: jax.Array, ids_BS: jax.Array) -> Memory:
        """What the steps need of a source."""
        return Memory(values_BSD, self.attention.key(values_BSD), ids_BS)

    def __call__(
        self, x_BTD: jax.Array, documents: Documents, ids_BT: jax.Array, memory: Memory, carry: Carry
    ) -> tuple[Attended, Carry]:
        """All steps, and the carry after the last; a token sees the places of its own pair."""
        inputs_TBGH = pin(self.cell.input(x_BTD.swapaxes(0, 1)), None, "batch", None, "mlp")
        inputs_TBGH, of_state = self.cell.hidden.ready(inputs_TBGH)
        inputs_TBGH, of_context = self.context.ready(inputs_TBGH)
        inputs_TBGH, of_query = self.attention.query.ready(inputs_TBGH)
        inputs_TBGH, of_scores = self.attention.score.ready(inputs_TBGH)
        after, forget_bias = CELLS[self.cell.cell].step, self.cell.forget_bias

        @jax.checkpoint  # else the backward pass keeps tanh(...), (T, B, S, A)
        def look(h_BD: jax.Array, ids_B1: jax.Array, memory: Memory) -> tuple[jax.Array, jax.Array]:
            query_B1A = of_query(pin(h_BD, "batch", None))[:, None]
            scores_BS = of_scores(jnp.tanh(memory.keys_BSA + query_B1A), jnp.float32)[..., 0]
            weights_BS = _softmax(scores_BS, (memory.ids_BS == ids_B1) & (ids_B1 != 0))
            weights_B1S = weights_BS[:, None].astype(memory.values_BSD.dtype)
            return (weights_B1S @ memory.values_BSD)[:, 0], weights_BS

        def step(carry: Carry, now: tuple[jax.Array, ...]) -> tuple[Carry, Any]:
            inputs_BGH, first_BD, ids_B1, begins_B1, valid_B1 = now
            firsts = (first_BD, *(jnp.zeros_like(x) for x in carry[1:]))
            carry = tuple(jnp.where(begins_B1, one, x) for one, x in zip(firsts, carry, strict=True))
            context_BD, weights_BS = look(carry[0], ids_B1, memory)
            new = after(inputs_BGH + of_context(context_BD), of_state(carry[0]), carry, forget_bias)
            carry = kept(valid_B1, new, carry)
            return carry, (carry[0].astype(x_BTD.dtype), context_BD, weights_BS)

        first_TBD = self._first(memory, ids_BT).swapaxes(0, 1)
        steps = inputs_TBGH, first_TBD, ids_BT.T[..., None], *documents.steps()
        carry, found = jax.lax.scan(step, carry, steps)
        return Attended(*(x.swapaxes(0, 1) for x in found)), carry

    def _first(self, memory: Memory, ids_BT: jax.Array) -> jax.Array:
        """What each token's pair begins with, (B, T, D); only where it begins is it asked for."""
        back_BSH = memory.values_BSD[..., self.first.kernel.shape[0] :]
        place_BT = jnp.argmax(memory.ids_BS[:, None] == ids_BT[..., None], axis=2)
        return jnp.tanh(self.first(jax.vmap(rows_of)(back_BSH, place_BT), jnp.float32))


class Decoder(Module):
    """An attentive cell, the layers above it, and what of both is read: tanh(kernel [s; c; x] + bias), of the last
    state, the context and the token's vector, the same three as in the paper's maxout (appendix A.2.2).
    """

    def __init__(self, config: RecurrentKeys, hidden: int, rngs: nnx.Rngs):
        D, keys, above, self.rate = config.width, cell_keys(config, rngs), config.num_layers - 1, config.dropout
        self.first = AttentiveCell(config.cell, D, hidden, **keys)
        self.stack = Layers(above, lambda: Cell(config.cell, D, D, **keys), self.rate) if above else None
        self.joined = Linear({"embed": 3 * D}, {"mlp": D}, bias=True, dtype=keys["dtype"], rngs=rngs)

    def __call__(
        self,
        x_BTD: jax.Array,
        documents: Documents,
        ids_BT: jax.Array,
        memory: Memory,
        carry: tuple[Carry, Carry | None],
        dropout_keys_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Attended, tuple[Carry, Carry | None]]:
        """(vectors of all steps, what had been attended to, the carries after the last)."""
        keys_B = folded(dropout_keys_B, _FIRST)
        x_BTD = without_padding(dropout(x_BTD, self.rate, keys_B, 0), documents.valid_BT)
        attended, first = self.first(x_BTD, documents, ids_BT, memory, carry[0])
        y_BTD, upper = attended.states_BTD, None
        if self.stack is not None:
            y_BTD, upper = self.stack(y_BTD, documents, carry[1], dropout_keys_B)
        joined_BTC = jnp.concatenate([y_BTD, attended.contexts_BTD, x_BTD], axis=-1)
        y_BTD = dropout(jnp.tanh(self.joined(joined_BTC)), self.rate, folded(dropout_keys_B, _LAST), 0)
        return pin(y_BTD, "batch", "length", None), attended, (first, upper)

    def empty(self, rows: int) -> tuple[Carry, Carry | None]:
        """The carries of so many rows before their first step, which then begins with what their sources tell."""
        return self.first.cell.empty(rows), None if self.stack is None else self.stack.empty(rows)


def _softmax(scores_BS: jax.Array, visible_BS: jax.Array) -> jax.Array:
    """The weights of the visible ones, which sum to 1; all are 0 where none is."""
    scores_BS = jnp.where(visible_BS, scores_BS, -jnp.inf)
    most_B1 = jnp.max(scores_BS, axis=1, keepdims=True, initial=jnp.finfo(jnp.float32).min)
    weights_BS = jnp.exp(scores_BS - jax.lax.stop_gradient(most_B1))
    return weights_BS / jnp.maximum(jnp.sum(weights_BS, axis=1, keepdims=True), jnp.finfo(jnp.float32).tiny)
