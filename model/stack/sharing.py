"""What layers hand on to later ones, and whose keys and values each attends to."""

from typing import Any

import jax

from model.attention.cores.table import recurrent
from model.attention.edits.base import Handed, nothing_handed
from model.attention.edits.shared_kv import GiveKV
from model.attention.edits.table import parse_edits
from model.cycles import Cycle
from model.errors import UserError
from model.stack.config import StackConfig


def begin(config: StackConfig, x_BTD: jax.Array) -> tuple[jax.Array, Handed]:
    """What the first layer gets: the residual stream, and zeros for all that layers hand on."""
    return x_BTD, nothing_handed(config.cycles["edits"].map(parse_edits).values, config.attention(), x_BTD)


def key_places(cycles: dict[str, Cycle[Any]], unit: int) -> tuple[int, ...]:
    """For each place of the unit, the one whose keys and values it attends to: its own, or the nearest before it that
    gives them, in the same turn of the cycle of edits.

    Raises:
        UserError: there is none, or keys are turned in another way there, or a core has none.
    """
    edits, found = cycles["edits"].map(parse_edits), []
    for place in range(unit):
        if edits[place].own_keys:
            found.append(place)
            continue
        begin = place - place % len(edits)
        giving = [n for n in range(begin, place) if edits[n].own_keys and _gives(edits[n])]
        if not giving:
            raise UserError(
                f"--config.model.edits={str(cycles['edits'])!r}: layer {place % len(edits) + 1} of it takes keys and "
                "values that none before it gives; begin the cycle with a layer that has give_kv."
            )
        found.append(giving[-1])
        if core := next((core for core in (cycles["core"][n] for n in (giving[-1], place)) if recurrent(core)), None):
            raise UserError(
                f"--config.model.core={core!r} goes on from a state, and has no keys and values to share; "
                "take another core for layers with give_kv and take_kv, or leave these out of --config.model.edits."
            )
        if (position := cycles.get("position")) and position[place] != position[found[-1]]:
            raise UserError(
                f"--config.model.position={str(position)!r}: layer {place + 1} takes the keys of layer "
                f"{found[-1] + 1}, which are turned by {position[found[-1]]} and not by {position[place]}; give both "
                "the same."
            )
    return tuple(found)


def shared_places(cycles: dict[str, Cycle[Any]], unit: int) -> frozenset[int]:
    """The places of the unit whose keys and values later layers take."""
    return frozenset(source for place, source in enumerate(key_places(cycles, unit)) if source != place)


def _gives(edits: Any) -> bool:
    return any(part.kind is GiveKV for part in edits.parts)
