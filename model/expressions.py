"""Short expressions in a config, such as `causal & window(128)`, read by a closed table and never by eval."""

import ast
import difflib
import inspect
import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np

from model.errors import INT32, UserError

Table = dict[str, Callable[..., Any]]
_OPERATORS_MOST = 50  # a mask of so many parts is asked part by part, block by block
_SHOWN = 200  # letters of an expression that a sentence repeats
_FLOAT32 = float(np.finfo(np.float32).max)
_ELSEWHERE = {"and": "&", "&&": "&", "or": "|", "||": "|", "not": "~", "!": "~"}  # what other languages write
_JOINTS = re.compile(r"\b(?:and|or|not)\b|&&|\|\||!")


def parse(text: Any, table: Table, key: str, joints: str = "") -> Any:
    """What a name of the table, or a call of one with numbers (`rope_yarn(factor=4, length=2048)`), stands for.

    `joints` are those of `&`, `|` and `~` that may stand between them, with parentheses. What is no text is such a
    value already.

    Raises:
        UserError: anything else, or arguments that the function refuses; the sentence says what is wrong, or lists the
            table.
    """
    if text is None or isinstance(text, bool | int | float | list | tuple | dict):
        raise UserError(f"--config.{key}={text!r} is no text, and no value that its functions make; write a text.")
    if not isinstance(text, str):
        return text
    reader = _Reader(text, table, key, joints)
    return reader.build(reader.tree())


class _Reader(NamedTuple):
    """One expression, and the words of a refusal."""

    text: str
    table: Table
    key: str
    joints: str

    def refusal(self, what: str) -> UserError:
        """The sentence that says what is wrong."""
        shown = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        return UserError(f"--config.{self.key}={shown!r}{what}.")

    def unknown(self, problem: str = "is not") -> UserError:
        """The refusal that lists the table."""
        names = ", ".join(f"{name}{_arguments(one)}" for name, one in self.table.items())
        joined = {"": "", "&": ", joined by &"}.get(self.joints, ", joined by & and |, or turned round by ~")
        return self.refusal(f" {problem} an expression of {names}{joined}")

    def tree(self) -> ast.expr:
        """The text as Python reads it, of no more parts than can be asked."""
        if not self.text.strip():
            raise self.unknown("is empty: write")
        depths = [0, *itertools.accumulate((letter == "(") - (letter == ")") for letter in self.text)]
        if depths[-1] or min(depths) < 0:
            raise self.refusal(f" has {self.text.count('(')} '(' and {self.text.count(')')} ')', which do not pair")
        joint = _JOINTS.search(self.text)
        if joint and _ELSEWHERE[joint[0]] in self.joints:
            raise self.refusal(f": write {_ELSEWHERE[joint[0]]} for {joint[0]}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # what Python only warns of, such as 1or 2, is no expression either
                tree = ast.parse(self.text.strip(), mode="eval").body
        # The last three for characters that are none, and for a thousand nested parts.
        except (SyntaxError, UnicodeEncodeError, RecursionError, MemoryError):
            raise self.unknown() from None
        operators = sum(isinstance(node, ast.operator | ast.unaryop) for node in ast.walk(tree))
        if operators > _OPERATORS_MOST:
            raise self.refusal(f" has {operators} operators, and at most {_OPERATORS_MOST} are read")
        return tree

    def build(self, node: ast.expr) -> Any:
        """What a part of the tree stands for."""
        match node:
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right) if "&" in self.joints:
                return self.build(left) & self.build(right)
            case ast.BinOp(left=left, op=ast.BitOr(), right=right) if "|" in self.joints:
                return self.build(left) | self.build(right)
            case ast.UnaryOp(op=ast.Invert(), operand=operand) if "~" in self.joints:
                return ~self.build(operand)
            case ast.Name(id=name) if name in self.table:
                return self.call(name, [], {})
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in self.table:
                if not arguments and not keywords:
                    self.call(name, [], {})
                    raise self.refusal(f": without numbers, {name} is written without parentheses")
                if any(one.arg is None for one in keywords):
                    raise self.unknown()
                words = [str(one.arg) for one in keywords]
                if twice := next((word for word in words if words.count(word) > 1), None):
                    raise self.refusal(f": {name} is given {twice} twice")
                named = {str(one.arg): self.argument(name, one.value) for one in keywords}
                return self.call(name, [self.argument(name, one) for one in arguments], named)
            case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
                if near := difflib.get_close_matches(name, self.table, n=1):
                    raise self.refusal(f": there is no {name}; the nearest is {near[0]}{self.signature(near[0])}")
        raise self.unknown()

    def argument(self, name: str, node: ast.expr) -> int | float | str:
        """An argument of a call of `name`: a number, or a word where the function takes one of a few."""
        parameters = inspect.signature(self.table[name], eval_str=True).parameters.values()
        if isinstance(node, ast.Name) and any(_words(one) for one in parameters):
            return node.id
        sign = 1
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -1, node.operand
        content = node.value if isinstance(node, ast.Constant) else None
        if not isinstance(content, int | float) or isinstance(content, bool):
            raise self.refusal(f": {ast.unparse(node)} is no number, of which {name}{self.signature(name)} is made")
        if abs(content) > (INT32 if isinstance(content, int) else _FLOAT32):
            raise self.refusal(f": a whole number of at most {INT32}, or another of at most {_FLOAT32:.1e}, is needed")
        return sign * content

    def call(self, name: str, arguments: list[int | float | str], named: dict[str, int | float | str]) -> Any:
        """What the function of that name makes of numbers and words."""
        function, instead = self.table[name], f"; write {name}{self.signature(name)}"
        if unknown := [one for one in named if one not in inspect.signature(function).parameters]:
            raise self.refusal(f": {name} has no {unknown[0]}{instead}")
        try:
            bound = inspect.signature(function).bind(*arguments, **named)
        except TypeError as error:  # such as: missing a required argument: 'left'
            raise self.refusal(f": {name}: {error}{instead}") from None
        for one, content in bound.arguments.items():
            parameter = inspect.signature(function, eval_str=True).parameters[one]
            if words := _words(parameter):
                if content not in words:
                    raise self.refusal(f": {one}={content} is not one of: {', '.join(words)}")
            elif isinstance(content, str):
                raise self.refusal(f": {one}={content} must be a number")
            # A whole number may stand for a number, and not the other way round.
            elif isinstance(content, float) and parameter.annotation not in (float, float | None):
                raise self.refusal(f": {one}={content} must be a whole number")
        return function(*bound.args, **bound.kwargs)

    def signature(self, name: str) -> str:
        """The arguments of the function of that name."""
        return _arguments(self.table[name])


def _words(parameter: inspect.Parameter) -> tuple[str, ...]:
    """Those that may stand for an argument, if it takes words."""
    return get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()


def _arguments(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    names = [one.name if one.default is one.empty else f"{one.name}={one.default}" for one in parameters]
    return f"({', '.join(names)})" if names else ""
