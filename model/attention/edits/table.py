"""Edits by name, as the expressions of a config call them; adding one is a line here."""

from model.attention.edits.base import Edits
from model.attention.edits.exclusive import exclusive
from model.attention.edits.output_gate import output_gate
from model.attention.edits.qk_norm import qk_norm
from model.attention.edits.shared_kv import give_kv, take_kv
from model.attention.edits.value_residual import value_residual
from model.expressions import Table, parse


def none() -> Edits:
    """No edit."""
    return Edits()


EDITS: Table = {
    "none": none,
    "qk_norm": qk_norm,
    "output_gate": output_gate,
    "value_residual": value_residual,
    "exclusive": exclusive,
    "give_kv": give_kv,
    "take_kv": take_kv,
}


def parse_edits(text: str | Edits) -> Edits:
    """The value of an expression such as `qk_norm & output_gate(head)`.

    Raises:
        UserError: another name or operator, arguments that the edit refuses, or an edit twice.
    """
    return parse(text, EDITS, "model.edits", joints="&")
