"""In what type the devices add their gradients of a parameter: that of the computation, or float32.

A parameter is rounded to the type in which it is computed with. So autodiff rounds its gradient, on each device, before
the devices add theirs. Inside of `in_float32` it keeps float32 as its type, with the numbers of the other, to the very
product: what the gradient is made of is added up without being rounded.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from model.axes import platform

Place = Callable[[jax.Array], jax.Array]
Product = Callable[[jax.Array, jax.Array], jax.Array]
_FLOAT32: contextvars.ContextVar[bool] = contextvars.ContextVar("_FLOAT32", default=False)


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """Inside, what is traced adds gradients in float32. It has no forward-mode differentiation then."""
    token = _FLOAT32.set(True)
    try:
        yield
    finally:
        _FLOAT32.reset(token)


def cast(parameter: jax.Array, dtype: DTypeLike, place: Place = lambda x: x) -> jax.Array:
    """The parameter's numbers in `dtype`, sent to their place in it; inside of `in_float32` in its own type again."""
    if _FLOAT32.get() and parameter.dtype != dtype:
        return _kept(dtype, place, parameter)
    return place(parameter.astype(dtype))


def rounded(gradient: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A device's gradient as it is added to the others'."""
    return gradient if _FLOAT32.get() else gradient.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _kept(dtype: DTypeLike, place: Place, parameter: jax.Array) -> jax.Array:
    return place(parameter.astype(dtype)).astype(parameter.dtype)


def _kept_backward(dtype: DTypeLike, place: Place, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (place(gradient),)


_kept.defvjp(lambda *given: (_kept(*given), None), _kept_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def wide(product: Product, inputs: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """product(x, kernel in the type of x), a sum over the last `inputs` axes of x and the first of the kernel, whose
    gradient has the kernel's own type.
    """
    return product(x, kernel.astype(x.dtype))


def _forward(product: Product, inputs: int, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    narrow = kernel.astype(x.dtype)
    return product(x, narrow), (x, narrow)


def _backward(product: Product, inputs: int, kept: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
    x, kernel = kept
    rows = tuple(range(x.ndim - inputs))
    (dx,) = jax.vjp(lambda x: product(x, kernel), x)[1](dy)
    if platform() == "cpu":  # which has no such product of every shape
        x, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    return dx, jax.lax.dot_general(x, dy, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)


wide.defvjp(_forward, _backward)
