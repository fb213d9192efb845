"""The small layers that every family shares: linear maps, MLPs and dropout."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from model import sums
from model.axes import mesh_axes, on_one_cpu, pin
from model.errors import UserError
from model.parameters import Module, parameter

Variant = TypeVar("Variant")


def choose(table: dict[str, Variant], name: str, key: str) -> Variant:
    """The entry of a table of variants.

    Raises:
        UserError: the name is not in the table; the sentence lists those that are.
    """
    if name not in table:
        raise UserError(f"--config.{key}={name!r} is not one of: {', '.join(table)}.")
    return table[name]


class Linear(Module):
    """y = x @ kernel (+ bias) from the last `len(inputs)` axes of x to the axes `outputs`, computed in `dtype`.

    The kernel keeps each axis, e.g. (D, H, K), so that heads can be sharded, pruned and normalised as heads.
    Initialised from a normal distribution with standard deviation gain / sqrt(fan in); biases from zero.
    """

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        *,
        bias: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        gain: float = 1.0,
    ):
        self.num_inputs, self.dtype = len(inputs), dtype
        sizes, axes = (*inputs.values(), *outputs.values()), (*inputs, *outputs)
        stddev = gain / math.sqrt(math.prod(inputs.values()))
        self.kernel = parameter(rngs, nnx.initializers.normal(stddev), sizes, axes)
        self.bias = parameter(rngs, nnx.initializers.zeros, tuple(outputs.values()), tuple(outputs)) if bias else None

    def __call__(self, x: jax.Array, result: DTypeLike | None = None) -> jax.Array:
        """The map of x, from its last axes to the output axes; `result` is a dtype for them wider than its own."""
        x, apply = self.ready(x)
        return apply(x, result)

    def ready(self, x: jax.Array) -> tuple[jax.Array, Callable[..., jax.Array]]:
        """(x, the map, whose kernel is gathered once before x is used): for a loop, in which it is called each time."""
        x, kernel = gathered(x, self.kernel[...], self.kernel.axes, self.dtype)

        def apply(x: jax.Array, result: DTypeLike | None = None) -> jax.Array:
            y = product(x.astype(self.dtype), kernel, self.num_inputs, result)
            if self.bias is None:
                return y
            return y + jnp.broadcast_to(sums.cast(self.bias[...], self.dtype), y.shape).astype(y.dtype)

        return x, apply


def gathered(x: jax.Array, kernel: jax.Array, axes: tuple[str, ...], dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """(x, the kernel in `dtype`), which is gathered here where the mesh splits its axis 'embed', once for its uses.

    Then the gradient of x also waits until that of the kernel is summed over the devices: else XLA keeps the gradients
    of several whole kernels, and what they are made of, until a layer's end. (Llama 3.1 8B on 256 v5e: see
    configs/published.py.)
    """
    if mesh_axes("embed")[1] == 1:
        return x, sums.cast(kernel, dtype)
    x, kernel = jax.lax.optimization_barrier((x, kernel))
    names = [None if name == "embed" else name for name in axes[-kernel.ndim :]]
    return x, sums.cast(kernel, dtype, lambda whole: pin(whole, *names))


def product(x: jax.Array, kernel: jax.Array, inputs: int, result: DTypeLike | None = None) -> jax.Array:
    """The sum over the last `inputs` axes of x and the first of the kernel, as `result` (default: in their dtype).

    On one CPU it is a product of two matrices. The gradient of a kernel sums over all rows: over two axes, batch and
    length, XLA would first write x or its gradient out transposed, which takes as long as the product, over one not.
    Elsewhere the axes stay as they are: a TPU would copy what is merged, and a mesh gather what is split.
    """
    if kernel.dtype != x.dtype:  # see `model.sums`
        return sums.wide(functools.partial(product, inputs=inputs, result=result), inputs, x, kernel)
    if not on_one_cpu():
        axes = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs))
        return jax.lax.dot_general(x, kernel, (axes, ((), ())), preferred_element_type=result)
    matrix = kernel.reshape(math.prod(kernel.shape[:inputs]), -1)
    y = jax.lax.dot(x.reshape(-1, len(matrix)), matrix, preferred_element_type=result)
    return y.reshape(*x.shape[: x.ndim - inputs], *kernel.shape[inputs:])


def squared_relu(x: jax.Array) -> jax.Array:
    """max(x, 0)^2 (So et al. 2021, section 3): without a tanh, the cheapest of all on a CPU."""
    return jnp.square(jax.nn.relu(x))


def exact_gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function at x (Hendrycks and Gimpel 2016, section 2), not its fit by a tanh."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "gelu_exact": exact_gelu,
    "relu": jax.nn.relu,
    "relu2": squared_relu,
    "silu": jax.nn.silu,
    "geglu": jax.nn.gelu,
    "geglu_exact": exact_gelu,
    "reglu": jax.nn.relu,
    "swiglu": jax.nn.silu,
}
GATED = ("geglu", "geglu_exact", "reglu", "swiglu")


class MLP(Module):
    """activation(x @ up) @ down; the gated kinds multiply by a second projection first (Shazeer 2020, equation 6)."""

    def __init__(
        self, kind: str, width: int, hidden: int, *, bias: bool, dtype: DTypeLike, gain: float, rngs: nnx.Rngs
    ):
        self.activation = choose(ACTIVATIONS, kind, "model.mlp")
        inner, outer = {"mlp": hidden}, {"embed": width}
        self.up = Linear(outer, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.gate = Linear(outer, inner, bias=bias, dtype=dtype, rngs=rngs) if kind in GATED else None
        self.down = Linear(inner, outer, bias=bias, dtype=dtype, rngs=rngs, gain=gain)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """(B, T, D) to (B, T, D)."""
        if self.gate is None:
            hidden_BTF = self.activation(self.up(x_BTD))
        else:
            hidden_BTF = self.activation(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(pin(hidden_BTF, "batch", "length", "mlp"))


def dropout(x: jax.Array, rate: float, keys_B: jax.Array | None, site: int) -> jax.Array:
    """Zeroes entries with probability `rate` and scales the rest by 1 / (1 - rate); without keys it returns x.

    Row b of the batch draws from its own key, folded with `site`, so that neither the split into micro-batches
    nor the mesh changes a draw.
    """
    if keys_B is None or rate == 0.0:
        return x
    keep = row_bernoulli(keys_B, site, 1 - rate, x.shape[1:])
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def row_bernoulli(keys_B: jax.Array, site: int, probability: float, shape: Sequence[int]) -> jax.Array:
    """Booleans (B, *shape), row b drawn from keys_B[b] folded with `site`."""

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, site), probability, tuple(shape))

    return jax.vmap(draw)(keys_B)
