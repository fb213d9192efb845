"""Which parameters weight decay applies to, as a value: `kernel`, `kernel | embedding`, `~(bias | scale)`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from model.errors import UserError
from model.expressions import Table, parse


@dataclasses.dataclass(frozen=True)
class Leaves:
    """Some of the parameters, told by their own names: `&`, `|` and `~` combine them."""

    hold: Callable[[str], bool]

    def __and__(self, other: "Leaves") -> "Leaves":
        return Leaves(lambda name: self.hold(name) and other.hold(name))

    def __or__(self, other: "Leaves") -> "Leaves":
        return Leaves(lambda name: self.hold(name) or other.hold(name))

    def __invert__(self) -> "Leaves":
        return Leaves(lambda name: not self.hold(name))

    def of(self, params: Any) -> Any:
        """True for each leaf of a nested dict that is one of them."""
        return jax.tree_util.tree_map_with_path(lambda path, leaf: self.hold(path[-1].key), params)


def _named(name: str) -> Callable[[], Leaves]:
    return lambda: Leaves(lambda own: own == name)


LEAVES: Table = {
    "all": lambda: Leaves(lambda name: True),
    "none": lambda: Leaves(lambda name: False),
    "kernel": _named("kernel"),  # of every linear map, that of the head too
    "embedding": _named("embedding"),  # of tokens
    "table": _named("table"),  # of learned positions and of T5's biases
    "bias": _named("bias"),  # of linear maps and norms
    "scale": _named("scale"),  # of norms
}


def parse_decayed(text: str) -> Leaves:
    """The parameters that an expression of `config.optimizer.decayed` stands for.

    Raises:
        UserError: another name, or what no parameter can be.
    """
    leaves: Leaves = parse(text, LEAVES, "optimizer.decayed", joints="&|~")
    if text.strip() != "none" and not any(map(leaves.hold, (*LEAVES, "another"))):
        raise UserError(
            f"--config.optimizer.decayed={text!r} is no parameter; write '|' for one and the other, as in "
            "'kernel | embedding', or 'none'."
        )
    return leaves
