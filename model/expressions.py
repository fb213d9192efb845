"""Short expressions in a config, such as `causal & window(128)`, read by a closed table and never by eval."""

import ast
import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from model.errors import INT32, UserError

Table = dict[str, Callable[..., Any]]
_OPERATORS = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_}
_OPERATORS_MOST = 50  # a mask of so many parts is asked part by part, block by block
_SHOWN = 200  # letters of an expression that a sentence repeats
_FLOAT32 = float(np.finfo(np.float32).max)


def parse(text: str, table: Table, key: str, combined: bool = False) -> Any:
    """What a name of the table, or a call of one with numbers (`rope_yarn(factor=4, length=2048)`), stands for.

    `combined` allows `&`, `|`, `~` and parentheses between them.

    Raises:
        UserError: anything else, or arguments that the function refuses; the sentence lists the table.
    """

    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."

    def refusal() -> UserError:
        names = ", ".join(f"{name}{_arguments(one)}" for name, one in table.items())
        joined = ", joined by & and |, or turned round by ~" if combined else ""
        return UserError(f"--config.{key}={shown!r} is not an expression of {names}{joined}.")

    def number(node: ast.expr) -> int | float:
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        content = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(content, int | float) or isinstance(content, bool):
            raise refusal()
        if abs(content) > (INT32 if isinstance(content, int) else _FLOAT32):
            raise UserError(
                f"--config.{key}={shown!r}: a whole number of at most {INT32}, or another of at most {_FLOAT32:.1e}, "
                "is needed."
            )
        return sign * content

    def build(node: ast.expr) -> Any:
        match node:
            case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr() as joint, right=right) if combined:
                return _OPERATORS[type(joint)](build(left), build(right))
            case ast.UnaryOp(op=ast.Invert(), operand=operand) if combined:
                return ~build(operand)
            case ast.Name(id=name) if name in table:
                return call(table[name], [], {})
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in table:
                if not arguments and not keywords:
                    raise refusal()
                named = {str(one.arg): number(one.value) for one in keywords}
                if len(named) < len(keywords):
                    raise refusal()
                return call(table[name], [number(one) for one in arguments], named)
        raise refusal()

    def call(function: Callable[..., Any], arguments: list[int | float], named: dict[str, int | float]) -> Any:
        try:
            bound = inspect.signature(function).bind(*arguments, **named)
        except TypeError:
            raise refusal() from None
        for name, content in bound.arguments.items():
            # A whole number may stand for a number, and not the other way round.
            if inspect.signature(function, eval_str=True).parameters[name].annotation not in (float, float | None):
                if isinstance(content, float):
                    raise UserError(f"--config.{key}={shown!r}: {name}={content} must be a whole number.")
        return function(*bound.args, **bound.kwargs)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python only warns of, such as 1or 2, is no expression either
            tree = ast.parse(text, mode="eval").body
    # The last three for characters that are none, and for a thousand nested parts.
    except (SyntaxError, UnicodeEncodeError, RecursionError, MemoryError):
        raise refusal() from None
    operators = sum(isinstance(node, ast.operator | ast.unaryop) for node in ast.walk(tree))
    if operators > _OPERATORS_MOST:
        raise UserError(f"--config.{key}={shown!r} has {operators} operators, and at most {_OPERATORS_MOST} are read.")
    return build(tree)


def _arguments(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    names = [one.name if one.default is one.empty else f"{one.name}={one.default}" for one in parameters]
    return f"({', '.join(names)})" if names else ""
