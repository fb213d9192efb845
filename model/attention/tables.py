"""Masks and biases by name, as the expressions of a config call them; adding one is a line here."""

from model.attention.bias_modules import BiasMaker, alibi, fire, kerple, kerple_power, none, t5, t5_causal
from model.attention.masks import Mask, causal, full, window
from model.attention.patterns import (
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
BIASES: Table = {
    "none": none,
    "alibi": alibi,
    "t5": t5,
    "t5_causal": t5_causal,
    "kerple": kerple,
    "kerple_power": kerple_power,
    "fire": fire,
}


def parse_mask(text: str) -> Mask:
    """The mask that an expression of names, calls with whole numbers, `&`, `|`, `~` and parentheses stands for.

    Raises:
        UserError: another name or operator, or arguments that the mask refuses.
    """
    return parse(text, MASKS, "model.mask", combined=True)


def parse_bias(text: str) -> BiasMaker:
    """What makes the bias of a name or a call with numbers, such as `t5(buckets=32, max_distance=128)`.

    Raises:
        UserError: another name, or arguments that the bias refuses.
    """
    return parse(text, BIASES, "model.bias")
