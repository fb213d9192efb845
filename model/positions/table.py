"""Positions by name, as the expressions of a config call them; adding one is a line here."""

from typing import Any

from flax import nnx

from model.cycles import Cycle
from model.errors import UserError
from model.expressions import Table, parse
from model.positions.base import PositionMaker
from model.positions.embedded import learned, none, sinusoidal
from model.positions.rotary import rope, rope_linear, rope_llama3, rope_ntk, rope_yarn

POSITIONS: Table = {
    "rope": rope,
    "rope_linear": rope_linear,
    "rope_ntk": rope_ntk,
    "rope_yarn": rope_yarn,
    "rope_llama3": rope_llama3,
    "learned": learned,
    "sinusoidal": sinusoidal,
    "none": none,
}


def parse_position(text: str | PositionMaker) -> PositionMaker:
    """What makes the position of a name or a call with numbers, such as `rope_yarn(4, length=2048)`.

    Raises:
        UserError: another name, or numbers that the position refuses.
    """
    return parse(text, POSITIONS, "model.position")


def positions_in_turn(cycle: Cycle[Any], width: int, head_width: int, max_length: int, rngs: nnx.Rngs) -> Cycle[Any]:
    """What layers take for positions, in turn; equal ones are one.

    Raises:
        UserError: a cycle with one that acts at the embedding.
    """
    positions = cycle.map(lambda one: parse_position(one)(width, head_width, max_length, rngs))
    if len(positions) > 1 and any(one.at_embedding for one in positions.values):
        raise UserError(
            f"--config.model.position='{cycle}': learned and sinusoidal positions act at the embedding, once for all "
            "layers; write one of them alone, or a cycle of others."
        )
    return positions
