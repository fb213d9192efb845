"""The matrix products of a program, counted in what is traced and compiled, and not by a formula.

XLA's own cost analysis counts the body of a loop once, and no formula knows what a backward pass computes again, which
blocks of a mask are left out, or what an edit adds. So the program is run with every array but the trips of its loops
thrown away: what remains adds up a number for each product, as often as it would be computed. A loop that ends early,
as over the blocks that a packed document sees, is counted for the batch that is given.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.sharding import PartitionSpec

from model.errors import UserError

Count = jax.Array  # float32, (): multiplications and additions so far
_UNIT = 2.0**20  # what a count counts in: float32 ends at 3e38, and a pod's step is 1e18
# Kernels that no jaxpr shows: what one multiplies, from the shapes of q (B, T, H, K) and k (B, S, G, K), in products.
_KERNELS = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}


def products(function: Callable[..., Any], *args: Any, given: Any = ()) -> float:
    """Floating-point operations of the matrix products and convolutions of `function(*args, *given)`, 2 for each term.

    `args` may be abstract: their values are taken for zeros. `given` are values, on which the trips of loops may
    depend. Both lie where the program's devices are; the count is that of all of them together.

    Raises:
        UserError: a kernel does not show what it multiplies.
    """
    traced = jax.make_jaxpr(function)(*args, *given)
    leaves = jax.tree.leaves(args)

    def count(*values: Any) -> Count:
        zeros = [jax.lax.full(x.shape, 0, x.dtype) if not _is_key(x) else _keys(x) for x in leaves]
        return _evaluate(traced.jaxpr, traced.consts, [*zeros, *values])[1]

    return float(jax.jit(count)(*jax.tree.leaves(given))) * _UNIT


def _is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def _keys(x: Any) -> jax.Array:
    return jnp.broadcast_to(jax.random.key(0), x.shape)


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> tuple[list[Any], Count]:
    """The outputs of a program, and what it multiplies."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    total = _zero()
    for equation in jaxpr.eqns:
        inputs = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
        rule = _RULES.get(equation.primitive.name, _plain)
        outputs, added = rule(equation, inputs)
        values.update(zip(equation.outvars, outputs, strict=True))
        total += added
    return [x.val if isinstance(x, Literal) else values[x] for x in jaxpr.outvars], total


def _zero() -> Count:
    """A count that has begun; where devices run by hand, each has its own."""
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    zero = jnp.zeros((), jnp.float32)
    return jax.lax.pcast(zero, axes, to="varying") if axes else zero


def _bound(equation: Any, inputs: list[Any]) -> list[Any]:
    """What the operation itself gives; its parts that are programs are not entered."""
    found = equation.primitive.bind(*inputs, **equation.primitive.get_bind_params(equation.params))
    return list(found) if equation.primitive.multiple_results else [found]


def _plain(equation: Any, inputs: list[Any]) -> tuple[list[Any], Any]:
    name, params = equation.primitive.name, equation.params
    inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if key in params), None)
    if isinstance(inner, ClosedJaxpr):
        return _evaluate(inner.jaxpr, inner.consts, inputs)
    if isinstance(inner, Jaxpr):
        return _evaluate(inner, (), inputs)
    if name in _KERNELS:
        (B, T, H, K), S = inputs[0].shape, inputs[1].shape[1]
        return _bound(equation, inputs), _KERNELS[name] * 2.0 * B * T * S * H * K / _UNIT
    if "custom_call" in name or name.endswith("_wrapper") or name == "ffi_call":
        raise UserError(f"what the kernel {name!r} multiplies cannot be seen: write --config.model.core=dense.")
    return _bound(equation, inputs), 0.0


def _dot(equation: Any, inputs: list[Any]) -> tuple[list[Any], float]:
    return _bound(equation, inputs), _terms(equation)


def _terms(equation: Any) -> float:
    """Two operations for each term of a product or a convolution, by the shapes of what it takes and gives."""
    numbers, (left, right) = equation.params["dimension_numbers"], (x.aval.shape for x in equation.invars[:2])
    if equation.primitive.name == "dot_general":
        summed = math.prod(left[axis] for axis in numbers[0][0])
    else:
        summed = math.prod(right[axis] for axis in numbers.rhs_spec[1:])  # the first is that of the outputs
    return 2.0 * summed * math.prod(equation.outvars[0].aval.shape) / _UNIT


def _scan(equation: Any, inputs: list[Any]) -> tuple[list[Any], Count]:
    params = equation.params
    consts, carry, rows = _parted(params, inputs)

    def body(carried: Any, row: Any) -> tuple[Any, Any]:
        found, added = _evaluate(params["jaxpr"].jaxpr, params["jaxpr"].consts, [*consts, *carried[0], *row])
        return (found[: len(carry)], carried[1] + added), found[len(carry) :]

    (last, total), stacked = jax.lax.scan(body, (carry, _zero()), rows, params["length"], params["reverse"])
    return [*last, *stacked], total


def _parted(params: dict[str, Any], inputs: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The inputs of a scan: constants, what it carries, and rows."""
    if "ft_in" in params:  # how jax says it from 0.12 on
        consts, carry, rows = params["ft_in"].update(inputs).unpack()
        return list(consts), list(carry), list(rows)
    a, b = params["num_consts"], params["num_carry"]
    return inputs[:a], inputs[a : a + b], inputs[a + b :]


def _while(equation: Any, inputs: list[Any]) -> tuple[list[Any], Count]:
    params, (a, b) = equation.params, (equation.params["cond_nconsts"], equation.params["body_nconsts"])
    asked, given, carry = inputs[:a], inputs[a : a + b], inputs[a + b :]
    cond, inner = params["cond_jaxpr"], params["body_jaxpr"]

    def body(carried: Any) -> Any:
        found, added = _evaluate(inner.jaxpr, inner.consts, [*given, *carried[0]])
        return found, carried[1] + added

    def goes_on(carried: Any) -> Any:
        return _evaluate(cond.jaxpr, cond.consts, [*asked, *carried[0]])[0][0]

    return jax.lax.while_loop(goes_on, body, (list(carry), _zero()))


def _cond(equation: Any, inputs: list[Any]) -> tuple[list[Any], Count]:
    branches = [
        functools.partial(lambda one, *args: _evaluate(one.jaxpr, one.consts, args), branch)
        for branch in equation.params["branches"]
    ]
    return jax.lax.switch(inputs[0], branches, *inputs[1:])


def _shard_map(equation: Any, inputs: list[Any]) -> tuple[list[Any], Count]:
    """What all devices multiply: each counts its own."""
    params = equation.params
    axes = tuple(params["newly_manual_axes"])

    def inner(*args: Any) -> tuple[Any, ...]:
        found, added = _evaluate(params["jaxpr"], (), args)
        return (*found, jax.lax.psum(added, axes))

    *found, total = jax.shard_map(
        inner,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=(*params["out_specs"], PartitionSpec()),
        axis_names=set(axes),
        check_vma=params["check_vma"],
    )(*inputs)
    return found, total


def _pallas(equation: Any, inputs: list[Any]) -> tuple[list[Any], float]:
    """A kernel's body, as often as its grid says: a block that it finds empty when it runs is counted, too."""
    grid = math.prod(equation.params["grid_mapping"].grid)
    return _bound(equation, inputs), grid * _static(equation.params["jaxpr"])


def _static(jaxpr: Jaxpr) -> float:
    """What a kernel's body multiplies at most; it cannot be run outside of its kernel."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        total += _terms(equation) if name in ("dot_general", "conv_general_dilated") else 0.0
        inner = [one for value in params.values() for one in (value if isinstance(value, tuple | list) else [value])]
        programs = [one.jaxpr if isinstance(one, ClosedJaxpr) else one for one in inner]
        parts = [_static(one) for one in programs if isinstance(one, Jaxpr)]
        total += (params["length"] if name == "scan" else 1) * (max(parts) if name == "cond" else sum(parts))
    return total


_RULES: dict[str, Callable[[Any, list[Any]], tuple[list[Any], Any]]] = {
    "dot_general": _dot,
    "conv_general_dilated": _dot,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
    "pallas_call": _pallas,
}
