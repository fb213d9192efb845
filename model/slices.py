"""What a loss needs to know of logits that are too large to be there at once: made slice by slice of the vocabulary.

Running maximum and sum as in Milakov and Gimelshein 2018; that the logits are made again in the backward pass, as in
Wijmans et al. 2024, section 4.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model import sums
from model.axes import Names, mesh_axes, on_each_device, on_one_cpu

Weights = tuple[jax.Array, ...]  # a kernel, or a kernel and a bias
Whole = tuple[jax.Array, ...]  # a kernel that was gathered, in its compute dtype, or nothing


class Form(NamedTuple):
    """The shape of a readout, `model.vocabulary.Readout`, without its numbers."""

    vocab_size: int
    vocab_axis: int
    dtype: Any
    soft_cap: float


class Terms(NamedTuple):
    """What a loss over a vocabulary is made of: log sum exp(logits), the target's logit, the mean of all logits, and
    the largest, which has no gradient.

    All (B, T), float32.
    """

    log_z_BT: jax.Array
    target_BT: jax.Array
    mean_BT: jax.Array
    largest_BT: jax.Array


def logits(x: jax.Array, kernel: jax.Array, form: Form, bias: jax.Array | None = None) -> jax.Array:
    """soft_cap(x @ kernel + bias) in float32: the last axis of x, D, becomes V."""
    y = _multiplied(x, kernel, form.vocab_axis)
    y = y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
    return form.soft_cap * jnp.tanh(y / form.soft_cap) if form.soft_cap else y


def _multiplied(x: jax.Array, kernel: jax.Array, vocab_axis: int) -> jax.Array:
    if kernel.dtype != x.dtype:  # see `model.sums`
        multiply = functools.partial(_multiplied, vocab_axis=1)
        return sums.wide(multiply, 1, x, kernel if vocab_axis else kernel.T)
    # On one CPU as a product of matrices: see `model.layers.product`.
    rows = x.reshape(-1, x.shape[-1]) if on_one_cpu() else x
    axes = ((rows.ndim - 1,), (1 - vocab_axis,)), ((), ())
    y = jax.lax.dot_general(rows, kernel, axes, preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def sliced_terms(
    x_BTD: jax.Array, weights: Weights, targets_BT: jax.Array, form: Form, slices: int, keep: bool = False
) -> Terms:
    """The terms of logits(x, kernel, bias), of which each device makes this many slices, one after the other.

    The kernel is gathered in its compute dtype: each slice forward and backward, or with `keep` all of it, once; its
    gradient goes to its owners slice by slice. No forward-mode differentiation.
    """
    fill = -x_BTD.shape[-1] % mesh_axes("embed")[1]  # as the kernel will be, where the mesh does not divide its width
    x_BTD = jnp.pad(x_BTD.astype(form.dtype), ((0, 0), (0, 0), (0, fill)))
    whole = _gathered(jax.lax.stop_gradient(weights[0]), form) if keep and mesh_axes("embed")[0] else ()
    return Terms(*_terms(x_BTD, weights, whole, targets_BT, form, slices))


def _gathered(kernel: jax.Array, form: Form) -> Whole:
    """The kernel in its compute dtype, of which each device has its group's part of the vocabulary."""
    gather = functools.partial(
        jax.lax.all_gather, axis_name=mesh_axes("embed")[0], axis=1 - form.vocab_axis, tiled=True
    )
    parts = on_each_device(
        lambda part: (gather(part.astype(form.dtype)),),
        _names((kernel,), form),
        _whole_names((kernel,), form),
        check_vma=False,
    )
    return tuple(parts(kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _terms(
    x: jax.Array, weights: Weights, whole: Whole, targets: jax.Array, form: Form, slices: int
) -> tuple[jax.Array, ...]:
    return _forward(x, weights, whole, targets, form, slices)[0]


def _forward(
    x: jax.Array, weights: Weights, whole: Whole, targets: jax.Array, form: Form, slices: int
) -> tuple[Any, Any]:
    here = functools.partial(_forward_here, form=form, slices=slices, gathered=len(whole))
    inputs = (_VECTORS, _TOKENS, *_whole_names(whole, form), *_names(weights, form))
    B, T = targets.shape
    terms = on_each_device(here, inputs, (_TOKENS,) * 4, check_vma=False)(x, targets, *whole, *weights)
    terms = tuple(term[:B, :T] for term in terms)
    return terms, (x, weights, whole, targets, terms[0])


def _backward(form: Form, slices: int, kept: tuple[Any, ...], grads: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    x, weights, whole, targets, log_z = kept
    here = functools.partial(_backward_here, form=form, slices=slices, gathered=len(whole))
    names = _names(weights, form)
    inputs = (_VECTORS, *[_TOKENS] * 5, *_whole_names(whole, form), *names)
    run = on_each_device(here, inputs, (_VECTORS, *names), check_vma=False)
    dx, *dweights = run(x, targets, log_z, *grads[:3], *whole, *weights)
    B, T = targets.shape
    # As large as they were before they were filled up.
    cut = [grad[tuple(map(slice, one.shape))] for grad, one in zip(dweights, weights, strict=True)]
    return dx[:B, :T], tuple(cut), None, None


_terms.defvjp(_forward, _backward)

_TOKENS = "batch", "length"
_VECTORS = (*_TOKENS, None)


def _names(weights: Weights, form: Form) -> Names:
    """The names of the axes of the kernel and of the bias, if there is one."""
    return (("embed", "vocab")[:: 1 if form.vocab_axis else -1], ("vocab",))[: len(weights)]


def _whole_names(whole: Whole, form: Form) -> Names:
    return ((None, "vocab")[:: 1 if form.vocab_axis else -1],)[: len(whole)]


class _Slices:
    """The slices of a device's part of a kernel. The last one reaches back over columns that the one before had."""

    def __init__(self, parts: Weights, form: Form, slices: int, gathered: int):
        self.whole, parts = parts[:gathered], parts[gathered:]
        self.part, self.form, self.axis = parts[0], form, form.vocab_axis
        self.bias = parts[1] if len(parts) > 1 else None
        self.owners, self.others = mesh_axes("embed")[0], mesh_axes("vocab")[0]
        self.columns = self.part.shape[self.axis]
        self.width = -(-self.columns // slices)
        self.numbers = jnp.arange(-(-self.columns // self.width))

    def logits(self, x_ND: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(logits (N, width), their tokens and whether they are new (both (1, width)), the kernel's slice)."""
        start = self._start(number)
        (kernel,) = self.whole or (self.part,)
        kernel = jax.lax.dynamic_slice_in_dim(kernel, start, self.width, self.axis).astype(self.form.dtype)
        if self.owners and not self.whole:
            kernel = jax.lax.all_gather(kernel, self.owners, axis=1 - self.axis, tiled=True)
        bias = None if self.bias is None else jax.lax.dynamic_slice_in_dim(self.bias, start, self.width)
        columns = start + jnp.arange(self.width)[None]
        first = jax.lax.axis_index(self.others) * self.columns if self.others else 0
        tokens, new = first + columns, columns >= number * self.width
        return logits(x_ND, kernel, self.form, bias), tokens, new & (tokens < self.form.vocab_size), kernel

    def add(self, totals: Weights, dkernel: jax.Array, dy_NV: jax.Array, number: jax.Array) -> Weights:
        """The gradients of this part of the kernel and of the bias, with those of one slice, of this device's tokens,
        in them.
        """
        dkernel = sums.rounded(dkernel, self.form.dtype)  # as autodiff does before it is summed over devices
        if self.owners:
            dkernel = jax.lax.psum_scatter(dkernel, self.owners, scatter_dimension=1 - self.axis, tiled=True)
        every = mesh_axes(*_TOKENS)[0]
        if rest := tuple(axis for axis in every if axis not in self.owners):
            dkernel = jax.lax.psum(dkernel, rest)
        if self.bias is None:
            return (self._added(totals[0], dkernel, number, self.axis),)
        dbias = jnp.sum(dy_NV, axis=0)
        dbias = jax.lax.psum(dbias, every) if every else dbias
        return self._added(totals[0], dkernel, number, self.axis), self._added(totals[1], dbias, number, 0)

    def _added(self, total: jax.Array, gradient: jax.Array, number: jax.Array, axis: int) -> jax.Array:
        start = self._start(number)
        old = jax.lax.dynamic_slice_in_dim(total, start, self.width, axis)
        return jax.lax.dynamic_update_slice_in_dim(total, old + gradient.astype(total.dtype), start, axis)

    def _start(self, number: jax.Array) -> jax.Array:
        return jnp.minimum(number * self.width, self.columns - self.width)


def _forward_here(
    x_BTD: jax.Array, targets_BT: jax.Array, *parts: jax.Array, form: Form, slices: int, gathered: int
) -> tuple[jax.Array, ...]:
    """The terms of a device's tokens."""
    cut, x_ND, targets_N1 = _Slices(parts, form, slices, gathered), _rows(x_BTD), targets_BT.reshape(-1, 1)

    def add(seen: tuple[jax.Array, ...], number: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        most_N, sum_N, target_N, total_N = seen
        y_NV, tokens_1V, new_1V, _ = cut.logits(x_ND, number)
        new_most_N = jnp.maximum(most_N, jnp.max(jnp.where(new_1V, y_NV, -jnp.inf), axis=1))
        weights_NV = jnp.where(new_1V, jnp.exp(y_NV - new_most_N[:, None]), 0)
        sum_N = sum_N * jnp.exp(most_N - new_most_N) + jnp.sum(weights_NV, axis=1)
        target_N += jnp.sum(jnp.where(new_1V & (tokens_1V == targets_N1), y_NV, 0), axis=1)
        return (new_most_N, sum_N, target_N, total_N + jnp.sum(jnp.where(new_1V, y_NV, 0), axis=1)), None

    zeros_N = jnp.zeros(len(x_ND), jnp.float32)
    most_N, sum_N, target_N, total_N = jax.lax.scan(add, (zeros_N - jnp.inf, *[zeros_N] * 3), cut.numbers)[0]
    if cut.others:
        all_N = jax.lax.pmax(most_N, cut.others)
        sum_N, target_N, total_N = jax.lax.psum((sum_N * jnp.exp(most_N - all_N), target_N, total_N), cut.others)
        most_N = all_N
    known_N = (0 <= targets_N1[:, 0]) & (targets_N1[:, 0] < form.vocab_size)
    terms = most_N + jnp.log(sum_N), jnp.where(known_N, target_N, jnp.nan), total_N / form.vocab_size, most_N
    return tuple(term_N.reshape(targets_BT.shape) for term_N in terms)


def _backward_here(
    x_BTD: jax.Array, *of_tokens_and_parts: jax.Array, form: Form, slices: int, gathered: int
) -> tuple[jax.Array, ...]:
    """The gradients of a device's vectors and of its parts of kernel and bias, from those of its tokens' terms.

    After the vectors come targets, log_z and the gradients of the first three terms, then those parts.
    """
    of_tokens, parts = of_tokens_and_parts[:5], of_tokens_and_parts[5:]
    cut, x_ND, (axis, cap) = _Slices(parts, form, slices, gathered), _rows(x_BTD), (form.vocab_axis, form.soft_cap)
    targets_N1, log_z_N1, dlog_z_N1, dtarget_N1, dmean_N1 = (x_BT.reshape(-1, 1) for x_BT in of_tokens)

    def add(seen: tuple[jax.Array, Weights], number: jax.Array) -> tuple[tuple[jax.Array, Weights], None]:
        dx_ND, dparts = seen
        y_NV, tokens_1V, new_1V, kernel = cut.logits(x_ND, number)
        dy_NV = jnp.exp(y_NV - log_z_N1) * dlog_z_N1 + dmean_N1 / form.vocab_size
        dy_NV += jnp.where(tokens_1V == targets_N1, dtarget_N1, 0)
        dy_NV *= jnp.where(new_1V, 1 - (y_NV / cap) ** 2 if cap else 1, 0)
        dx_ND += _product(dy_NV, kernel, 1, axis)
        dkernel = _product(dy_NV, x_ND, 0, 0) if axis == 0 else _product(x_ND, dy_NV, 0, 0)
        return (dx_ND, cut.add(dparts, dkernel, dy_NV, number)), None

    zeros = jnp.zeros(x_ND.shape, jnp.float32), tuple(jnp.zeros_like(part) for part in parts[gathered:])
    dx_ND, dparts = jax.lax.scan(add, zeros, cut.numbers)[0]
    if cut.others:
        dx_ND = jax.lax.psum(dx_ND, cut.others)
    return dx_ND.reshape(x_BTD.shape).astype(x_BTD.dtype), *dparts


def _rows(x_BTD: jax.Array) -> jax.Array:
    return x_BTD.reshape(-1, x_BTD.shape[-1])


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """The sum over one axis of each, in float32."""
    axes = ((a_axis,), (b_axis,)), ((), ())
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)
