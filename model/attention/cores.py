"""The table of attention cores. A core is `core(q_BTHK, k_BSGK, v_BSGK, scores) -> o_BTHK`; adding one is a file and
a line here."""

import logging
from collections.abc import Callable

import jax

from model.attention.dense import dense
from model.attention.scores import Scores
from model.layers import choose

Core = Callable[[jax.Array, jax.Array, jax.Array, Scores], jax.Array]

CORES: dict[str, Core] = {"dense": dense}


def select_core(name: str) -> tuple[str, Core]:
    """The core of that name, or for `auto` the fastest one that is exact here, with its name; the choice is logged.

    Raises:
        UserError: there is no core of that name.
    """
    core = choose({"auto": dense, **CORES}, name, "model.core")
    chosen = "dense" if name == "auto" else name
    logging.getLogger("heed").debug("attention core: %s (asked for: %s)", chosen, name)
    return chosen, core
