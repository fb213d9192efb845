"""Masks as short expressions in a config, such as `causal & window(128)`, read by a closed table and never by eval."""

import ast
from collections.abc import Callable

from model.attention.masks import Mask, causal, full, window
from model.errors import UserError

MASKS: dict[str, Callable[..., Mask]] = {"full": full, "causal": causal, "window": window}


def parse_mask(text: str) -> Mask:
    """The mask that an expression of names, calls with whole numbers, `&`, `|` and parentheses stands for.

    Raises:
        UserError: another name or operator, or arguments that the mask refuses.
    """
    try:
        return _build(ast.parse(text, mode="eval").body, text)
    except SyntaxError:
        raise _refusal(text) from None


def _build(node: ast.expr, text: str) -> Mask:
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _build(left, text) & _build(right, text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _build(left, text) | _build(right, text)
        case ast.Name(id="full" | "causal" as name):
            return MASKS[name]()
        case ast.Call(func=ast.Name(id="window"), args=[_] | [_, _] as arguments, keywords=[]):
            return window(*(_number(argument, text) for argument in arguments))
    raise _refusal(text)


def _number(node: ast.expr, text: str) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    raise _refusal(text)


def _refusal(text: str) -> UserError:
    return UserError(
        f"--config.model.mask={text!r} is not an expression of full, causal, window(left) or window(left, right), "
        "joined by & and |."
    )
