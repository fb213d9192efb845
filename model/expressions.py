"""Short expressions in a config, such as `causal & window(128)`, read by a closed table and never by eval."""

import ast
import inspect
import operator
from collections.abc import Callable
from typing import Any

from model.errors import UserError

Table = dict[str, Callable[..., Any]]
_OPERATORS = {ast.BitAnd: operator.and_, ast.BitOr: operator.or_}


def parse(text: str, table: Table, key: str, combined: bool = False) -> Any:
    """What a name of the table, or a call of one with numbers (`rope_yarn(factor=4, length=2048)`), stands for.

    `combined` allows `&`, `|`, `~` and parentheses between them.

    Raises:
        UserError: anything else, or arguments that the function refuses; the sentence lists the table.
    """

    def refusal() -> UserError:
        names = ", ".join(f"{name}{_arguments(one)}" for name, one in table.items())
        joined = ", joined by & and |, or turned round by ~" if combined else ""
        return UserError(f"--config.{key}={text!r} is not an expression of {names}{joined}.")

    def number(node: ast.expr) -> int | float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and type(node.value) is not bool:
            return node.value
        raise refusal()

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
                    raise refusal()
        return function(*bound.args, **bound.kwargs)

    try:
        return build(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError):  # the latter for a thousand nested parts
        raise refusal() from None


def _arguments(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    names = [one.name if one.default is one.empty else f"{one.name}={one.default}" for one in parameters]
    return f"({', '.join(names)})" if names else ""
