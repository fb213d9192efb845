"""What layers take in turn: a value for each place of a cycle, which repeats over the depth.

As text: `5 * (causal & window(127)) + causal`, `3 * rope + none`, `5 * 50.0 + 0.0`. As Python values:
`5 * cycle(causal() & window(127)) + cycle(causal())`. `n *` and `+` always mean layers, and stand outermost.
"""

import ast
import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from model.errors import UserError

Element = TypeVar("Element")
_MOST = 10_000  # places of a cycle: as many as layers
_MOST_JOINTS = 100
_SHOWN = 200  # letters of a text that a sentence repeats


@dataclasses.dataclass(frozen=True)
class Cycle(Generic[Element]):
    """Layer n takes number n modulo their number of the values."""

    values: tuple[Element, ...]

    def __getitem__(self, layer: int) -> Element:
        return self.values[layer % len(self.values)]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Element]:
        return iter(self.values)  # else Python would take one layer after the other, without an end

    def __add__(self, other: "Cycle[Element]") -> "Cycle[Element]":
        return Cycle(self.values + other.values)

    def __rmul__(self, count: int) -> "Cycle[Element]":
        return Cycle(self.values * count)

    def map(self, function: Callable[[Element], Any]) -> "Cycle[Any]":
        """The cycle of what a function makes of each value; it is called once for equal ones."""
        made: list[tuple[Element, Any]] = []
        for one in self.values:
            if not any(one == known for known, _ in made):
                made.append((one, function(one)))
        return Cycle(tuple(next(result for known, result in made if one == known) for one in self.values))

    def __str__(self) -> str:
        counted = [(str(one), len(list(same))) for one, same in itertools.groupby(self.values)]
        inner = [f"({text})" if len(counted) > 1 and {*text} & {*"&|"} else text for text, _ in counted]
        return " + ".join(
            text if count == 1 or len(counted) == 1 else f"{count} * {text}"
            for text, (_, count) in zip(inner, counted, strict=True)
        )

    def shortest(self) -> "Cycle[Element]":
        """The same without repetition: of `a + b + a + b`, `a + b`."""
        size = len(self)
        lengths = (n for n in range(1, size + 1) if size % n == 0)
        return Cycle(next(self.values[:n] for n in lengths if self.values[:n] * (size // n) == self.values))


def cycle(*values: Element) -> Cycle[Element]:
    """The cycle of these values, of which `+` and `n *` make longer ones."""
    return Cycle(values)


def read_cycle(content: Any, key: str, kind: type = str) -> Cycle[Any]:
    """The cycle that a key's content stands for: text by its algebra, anything else is what all layers take.

    The values of a text are texts (`kind` str), numbers (float), or true and false (bool).

    Raises:
        UserError: `n *` or `+` is not outermost, a count is none, or a value is not of its kind.
    """
    if isinstance(content, Cycle):
        return content.shortest()
    if not isinstance(content, str):
        return Cycle((content,))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tree = ast.parse(content.strip(), mode="eval").body
    except (SyntaxError, UnicodeEncodeError, RecursionError, MemoryError):
        return Cycle((content,))  # whoever reads the text says what is wrong with it
    joints = [node for node in ast.walk(tree) if isinstance(node, ast.Add | ast.Mult)]
    if len(joints) > _MOST_JOINTS:
        raise UserError(f"--config.{key} has {len(joints)} signs of + and *, and at most {_MOST_JOINTS} are read.")
    read = {str: _text if joints else _whole, float: _number, bool: _truth}[kind]
    return Cycle(tuple(_places(tree, _Text(content, key, read)))).shortest()


class _Text(NamedTuple):
    """A text, the key that it is for, and what reads the text of one place."""

    content: str
    key: str
    read: Callable[[ast.expr, "_Text"], Any]

    def refusal(self, rule: str) -> UserError:
        shown = self.content if len(self.content) <= _SHOWN else f"{self.content[:_SHOWN]}..."
        return UserError(f"--config.{self.key}={shown!r}: {rule}.")


def _places(node: ast.expr, text: _Text) -> list[Any]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            places = _places(left, text) + _places(right, text)
        case ast.BinOp(left=ast.Constant(value=int(count)), op=ast.Mult(), right=right) if not isinstance(count, bool):
            inner = _places(right, text)
            if not 1 <= count * len(inner) <= _MOST:
                raise text.refusal(f"{count} * is no count of layers, from 1 to {_MOST}")
            places = inner * count
        case ast.BinOp(op=ast.Mult()):
            raise text.refusal("`*` repeats layers, and needs their whole number to its left")
        case _:
            if any(isinstance(part, ast.Add | ast.Mult) for part in ast.walk(node)):
                raise text.refusal(
                    "`+` and `n *` join layers and stand outermost; put what one layer takes into parentheses, as in "
                    "'5 * (causal & window(127)) + causal'"
                )
            places = [text.read(node, text)]
    if len(places) > _MOST:
        raise text.refusal(f"a cycle has at most {_MOST} layers")
    return places


def _whole(node: ast.expr, text: _Text) -> str:
    return text.content


def _text(node: ast.expr, text: _Text) -> str:
    return ast.unparse(node)


def _number(node: ast.expr, text: _Text) -> float:
    sign, inner = 1, node
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, inner = -1, node.operand
    match inner:
        case ast.Constant(value=int(value) | float(value)) if not isinstance(value, bool):
            return float(sign * value)
    raise text.refusal("numbers are needed, such as '5 * 50.0 + 0.0'")


def _truth(node: ast.expr, text: _Text) -> bool:
    match node:
        case ast.Name(id="true" | "false" as name):
            return name == "true"
        case ast.Constant(value=bool(value)):
            return value
    raise text.refusal("true and false are needed, such as '5 * true + false'")
