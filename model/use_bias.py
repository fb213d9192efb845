"""Which linear maps and norms have a bias."""

import dataclasses
from typing import Any

from model.expressions import Table, parse


@dataclasses.dataclass(frozen=True)
class UseBias:
    """Which of them have one: the projections of queries, keys and values (`qkv`), that of the attention's output
    (`output`), the maps of the MLP (`mlp`), the norms that can have one (`norm`), and the logits (`head`).
    """

    qkv: bool = False
    output: bool = False
    mlp: bool = False
    norm: bool = False
    head: bool = False

    def __and__(self, other: "UseBias") -> "UseBias":
        names = [field.name for field in dataclasses.fields(self)]
        return UseBias(**{name: getattr(self, name) or getattr(other, name) for name in names})


BIASED: Table = {
    "false": lambda: UseBias(),
    "true": lambda: UseBias(qkv=True, output=True, mlp=True, norm=True),
    "qkv": lambda: UseBias(qkv=True),
    "output": lambda: UseBias(output=True),
    "mlp": lambda: UseBias(mlp=True),
    "norm": lambda: UseBias(norm=True),
    "head": lambda: UseBias(head=True),
}


def parse_use_bias(content: Any) -> UseBias:
    """What false, true (all but `head`), or names joined by & stand for, such as `qkv & mlp`.

    Raises:
        UserError: another name.
    """
    return parse(str(content).lower() if isinstance(content, bool) else content, BIASED, "model.use_bias", joints="&")
