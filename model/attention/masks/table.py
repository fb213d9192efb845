"""Masks by name, as the expressions of a config call them; adding one is a line here."""

from model.attention.masks.band import causal, full, window
from model.attention.masks.base import Mask
from model.attention.masks.patterns import (
    chunked,
    dilated,
    fixed,
    global_tokens,
    prefix,
    random_blocks,
    sink_columns,
    strided,
)
from model.expressions import Table, parse

MASKS: Table = {
    "full": full,
    "causal": causal,
    "window": window,
    "chunked": chunked,
    "prefix": prefix,
    "sink_columns": sink_columns,
    "global_tokens": global_tokens,
    "dilated": dilated,
    "strided": strided,
    "fixed": fixed,
    "random_blocks": random_blocks,
}


def parse_mask(text: str | Mask) -> Mask:
    """The mask that an expression of names, calls with whole numbers, `&`, `|`, `~` and parentheses stands for.

    Raises:
        UserError: another name or operator, or arguments that the mask refuses.
    """
    return parse(text, MASKS, "model.mask", joints="&|~")
