"""One row of a stack of arrays, by a number that only the device knows, at the cost of one row in both directions.

Automatic differentiation makes of such a row's gradient a whole stack of zeros with one row in it, and adds that to the
gradient of the rest: for L layers, L times the whole stack. Here the stack travels along, unchanged, as what is carried
from layer to layer, and its gradient comes back the same way: each layer adds its row in place.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Number = int | jax.Array


@jax.custom_jvp
def take_row(stack: jax.Array, carried: jax.Array, number: Number) -> tuple[jax.Array, jax.Array]:
    """(row `number` of the stack, `carried`), where `carried` is the same stack, as the last call gave it back.

    The row's value is read from the first and its derivative from the second: so a loop has the stack as a constant,
    and its gradient as what it carries.
    """
    return take_row_p.bind(stack, number, axis=0)[0], carried


@take_row.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    stack, carried, number = primals
    return (take_row_p.bind(stack, number, axis=0)[0], carried), tuple(take_row_p.bind(tangents[1], number, axis=0))


# Linear maps that are each other's transposes: a stack to (row, stack), and (row, stack) to the stack plus the row.
take_row_p, give_row_p = Primitive("take_row"), Primitive("give_row")
take_row_p.multiple_results = True


def keeps_all_but_rows(primitive: Primitive, *_: Any, **__: Any) -> bool:
    """A policy for `jax.checkpoint`: everything is kept for the backward pass but the rows, which lie in the stack."""
    return primitive is not take_row_p


def _take(stack: jax.Array, number: Number, *, axis: int) -> list[jax.Array]:
    return [jax.lax.dynamic_index_in_dim(stack, number, axis, keepdims=False), stack]


def _give(row: jax.Array, stack: jax.Array, number: Number, *, axis: int) -> jax.Array:
    sum_ = jax.lax.dynamic_index_in_dim(stack, number, axis, keepdims=False) + row
    return jax.lax.dynamic_update_index_in_dim(stack, sum_, number, axis)


def _without(stack: Any, axis: int) -> Any:
    return stack.update(shape=(*stack.shape[:axis], *stack.shape[axis + 1 :]))


def _take_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], *, axis: int) -> tuple[Any, Any]:
    return take_row_p.bind(*primals, axis=axis), take_row_p.bind(tangents[0], primals[1], axis=axis)


def _give_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...], *, axis: int) -> tuple[Any, Any]:
    row, stack = map(ad.instantiate_zeros, tangents[:2])
    return give_row_p.bind(*primals, axis=axis), give_row_p.bind(row, stack, primals[2], axis=axis)


def _take_transpose(given: list[Any], stack: Any, number: Number, *, axis: int) -> list[Any]:
    row, rest = given
    if type(row) is ad.Zero:
        return [rest, None]
    return [give_row_p.bind(row, ad.instantiate_zeros(rest), number, axis=axis), None]


def _give_transpose(given: Any, row: Any, stack: Any, number: Number, *, axis: int) -> list[Any]:
    taken, rest = take_row_p.bind(given, number, axis=axis)
    return [taken if ad.is_undefined_primal(row) else None, rest if ad.is_undefined_primal(stack) else None, None]


def _take_batched(args: tuple[Any, ...], dims: tuple[Any, ...], *, axis: int) -> tuple[Any, Any]:
    (stack, number), (dim, of_number) = args, dims
    if of_number is not None:  # rows from different places: nobody's loop over layers asks for them
        return jax.vmap(functools.partial(_take, axis=axis), dims)(*args), (0, 0)
    return take_row_p.bind(jnp.moveaxis(stack, dim, 0), number, axis=axis + 1), (0, 0)


def _give_batched(args: tuple[Any, ...], dims: tuple[Any, ...], *, axis: int) -> tuple[Any, Any]:
    if dims[2] is not None:
        return jax.vmap(functools.partial(_give, axis=axis), dims)(*args), 0
    size = next(x.shape[dim] for x, dim in zip(args, dims, strict=True) if dim is not None)
    row, stack = (batching.bdim_at_front(x, dim, size) for x, dim in zip(args[:2], dims, strict=False))
    return give_row_p.bind(row, stack, args[2], axis=axis + 1), 0


for _primitive, _function in ((take_row_p, _take), (give_row_p, _give)):
    _primitive.def_impl(jax.jit(_function, static_argnames="axis"))
    mlir.register_lowering(_primitive, mlir.lower_fun(_function, multiple_results=_primitive.multiple_results))
take_row_p.def_abstract_eval(lambda stack, number, *, axis: [_without(stack, axis), stack])
give_row_p.def_abstract_eval(lambda row, stack, number, *, axis: stack)
ad.primitive_jvps[take_row_p], ad.primitive_jvps[give_row_p] = _take_jvp, _give_jvp
ad.primitive_transposes[take_row_p], ad.primitive_transposes[give_row_p] = _take_transpose, _give_transpose
batching.primitive_batchers[take_row_p], batching.primitive_batchers[give_row_p] = _take_batched, _give_batched
