"""Biases by name, as the expressions of a config call them; adding one is a line here."""

from model.attention.biases.modules import BiasMaker, alibi, fire, kerple, kerple_power, none, t5, t5_causal
from model.expressions import Table, parse

BIASES: Table = {
    "none": none,
    "alibi": alibi,
    "t5": t5,
    "t5_causal": t5_causal,
    "kerple": kerple,
    "kerple_power": kerple_power,
    "fire": fire,
}


def parse_bias(text: str | BiasMaker) -> BiasMaker:
    """What makes the bias of a name or a call with numbers, such as `t5(buckets=32, max_distance=128)`.

    Raises:
        UserError: another name, or arguments that the bias refuses.
    """
    return parse(text, BIASES, "model.bias")
