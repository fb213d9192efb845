"""LSTM and GRU: what one step makes of its input and the state before, and the layer that takes all steps in turn."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from model.axes import mesh_axes, pin
from model.errors import UserError
from model.layers import Linear, gathered, product
from model.parameters import Module, parameter
from model.recurrent.documents import Documents

Carry = tuple[jax.Array, ...]  # what one step hands to the next, float32: first h (B, H), the layer's output
Step = Callable[[jax.Array, jax.Array, Carry, float], Carry]


def lstm(inputs_BGH: jax.Array, hidden_BGH: jax.Array, carry: Carry, forget_bias: float) -> Carry:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g) and h' = sigmoid(o) tanh(c'), for (h, c) and the gates i, f, g, o.

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; f gets `forget_bias` (Jozefowicz et al.
    2015, section 2.2).
    """
    i, f, g, o = _gates(inputs_BGH + hidden_BGH)
    c = jax.nn.sigmoid(f + forget_bias) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(inputs_BGH: jax.Array, hidden_BGH: jax.Array, carry: Carry, forget_bias: float) -> Carry:
    """h' = (1 - z) n + z h, where n = tanh(input + r hidden), for the gates r, z, n; z gets `forget_bias`.

    Cho et al. 2014 with r after the product and its bias, as cuDNN and torch compute it.
    """
    (input_r, input_z, input_n), (hidden_r, hidden_z, hidden_n) = _gates(inputs_BGH), _gates(hidden_BGH)
    r, z = jax.nn.sigmoid(input_r + hidden_r), jax.nn.sigmoid(input_z + hidden_z + forget_bias)
    return ((1 - z) * jnp.tanh(input_n + r * hidden_n) + z * carry[0],)


class Kind(NamedTuple):
    """A cell's step, the number of its gates and of the arrays that it carries, and whether what the state before adds
    to the last gate has a bias of its own.
    """

    step: Step
    gates: int
    carried: int
    hidden_bias: bool


CELLS = {"lstm": Kind(lstm, 4, 2, False), "gru": Kind(gru, 3, 1, True)}


class Hidden(Module):
    """What the state before adds to the gates: h (B, H) @ kernel (H, gates, H), and the last gate's bias (H,), if any.

    Each gate's matrix begins orthogonal (Saxe et al. 2014), so that what goes round keeps its length.
    """

    def __init__(self, kind: Kind, hidden: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = parameter(rngs, _orthogonal, (hidden, kind.gates, hidden), ("embed", "gates", "mlp"))
        self.bias = parameter(rngs, nnx.initializers.zeros, (hidden,), ("mlp",)) if kind.hidden_bias else None

    def ready(self, inputs: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
        """(all steps' inputs, the map of a state (B, H) to float32 (B, gates, H)), gathered once for all steps."""
        inputs, kernel = gathered(inputs, self.kernel[...], self.kernel.axes, self.dtype)

        def of_state(h_BH: jax.Array) -> jax.Array:
            y_BGH = product(pin(h_BH.astype(self.dtype), "batch", None), kernel, 1, jnp.float32)
            return y_BGH if self.bias is None else y_BGH.at[:, -1].add(self.bias[...][None])

        return inputs, of_state


class Cell(Module):
    """A layer in one direction: (B, T, D) to (B, T, H). The inputs' share of all gates is one product, before the loop.

    The input's kernel begins normal with standard deviation 1 / sqrt(D) (LeCun et al. 1998, section 4.6), biases zero.
    """

    def __init__(
        self, cell: str, width: int, hidden: int, *, forget_bias: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.cell, self.size, self.forget_bias, self.dtype = cell, hidden, forget_bias, dtype
        outputs = {"gates": CELLS[cell].gates, "mlp": hidden}
        self.input = Linear({"embed": width}, outputs, bias=True, dtype=dtype, rngs=rngs)
        self.hidden = Hidden(CELLS[cell], hidden, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, documents: Documents, carry: Carry) -> tuple[jax.Array, Carry]:
        """The states after each step, (B, T, H) in the dtype of products, and the carry after the last.

        The carry is zero where a document begins, and padding leaves it as it is.

        Raises:
            UserError: the mesh splits sequences.
        """
        if (parts := mesh_axes("length")[1]) > 1:
            raise UserError(
                f"--config.mesh.context={parts} splits sequences, and a recurrent network takes one token after the "
                "other; set it to 1."
            )
        inputs_TBGH = pin(self.input(x_BTD.swapaxes(0, 1)), None, "batch", None, "mlp")
        inputs_TBGH, of_state = self.hidden.ready(inputs_TBGH)
        after = CELLS[self.cell].step

        def step(carry: Carry, now: tuple[jax.Array, ...]) -> tuple[Carry, jax.Array]:
            inputs_BGH, begins_B1, valid_B1 = now
            carry = tuple(jnp.where(begins_B1, 0, x) for x in carry)
            new = after(inputs_BGH, of_state(carry[0]), carry, self.forget_bias)
            carry = kept(valid_B1, new, carry)
            return carry, carry[0].astype(self.dtype)

        carry, h_TBH = jax.lax.scan(step, carry, (inputs_TBGH, *documents.steps()))
        return pin(h_TBH.swapaxes(0, 1), "batch", None, "mlp"), carry

    def empty(self, rows: int) -> Carry:
        """The carry of so many rows before their first step: zeros."""
        return (jnp.zeros((rows, self.size), jnp.float32),) * CELLS[self.cell].carried


def kept(valid_B1: jax.Array, new: Carry, old: Carry) -> Carry:
    """The new carry where a step was of a token, and the old one where it was of padding."""
    return tuple(pin(jnp.where(valid_B1, x, y), "batch", "mlp") for x, y in zip(new, old, strict=True))


def _orthogonal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random orthogonal matrices (H, gates, H), one for each gate: what is nearest to a normal one.

    By x <- x (3 - x' x) / 2, which brings all singular values to 1 (Higham 2008, "Functions of Matrices", equation
    8.20): products alone, since the QR decomposition of a CPU that is split into several devices waits for ever.
    """
    H, G, _ = shape
    x_GHH = jax.random.normal(key, (G, H, H))
    # No singular value is beyond the root of the product of these norms.
    largest = [jnp.max(jnp.sum(jnp.abs(x_GHH), axis=axis), axis=-1) for axis in (1, 2)]
    x_GHH /= jnp.sqrt(largest[0] * largest[1])[:, None, None]
    times = functools.partial(jnp.einsum, precision="highest")

    def nearer(_: Any, x_GHH: jax.Array) -> jax.Array:
        return 1.5 * x_GHH - 0.5 * times("gij,gkj,gkl->gil", x_GHH, x_GHH, x_GHH)

    # The smallest values, about 1e-5 of the largest for H = 1000, grow by half in each step.
    return jax.lax.fori_loop(0, 64, nearer, x_GHH).swapaxes(0, 1)


def _gates(x_BGH: jax.Array) -> list[jax.Array]:
    return [x_BGH[:, gate] for gate in range(x_BGH.shape[1])]
