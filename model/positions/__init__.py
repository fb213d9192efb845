"""How a model learns where a token is: added to the embeddings, or turned into the queries and keys."""

from model.positions.base import NoPosition, PositionMaker, Rotation
from model.positions.rotary import Rotary, rotate
from model.positions.table import POSITIONS, parse_position, positions_in_turn

__all__ = [
    "POSITIONS",
    "NoPosition",
    "PositionMaker",
    "Rotary",
    "Rotation",
    "parse_position",
    "positions_in_turn",
    "rotate",
]
