"""The table of attention cores. A core is `core(q_BTHK, k_BSGK, v_BSGK, scores) -> o_BTHK` beside what it refuses;
adding one is a file and a line here."""

import logging

import jax
import jax.numpy as jnp

from model.attention.contract import Choice, Core, Request, choose_core
from model.attention.cores import blockwise, dense, fused, ring, splash, ulysses
from model.attention.scores import Scores
from model.layers import choose

# From the fastest to the slowest, which is the order in which `auto` asks them. Where C devices share a sequence,
# ring moves C x G / (H + G) times as much between them as ulysses, which only as many devices as key heads can share.
CORES: dict[str, Core] = {
    "splash": Core(splash.splash, splash.refusals, platform="tpu", evidence="interpreted", largest_score=128),
    "fused": Core(
        fused.fused, fused.refusals, platform="gpu", dtype="bfloat16", evidence="untested", largest_score=None
    ),
    "blockwise": Core(blockwise.blockwise, blockwise.refusals),
    "ulysses": Core(ulysses.ulysses, ulysses.refusals, context=2),
    "ring": Core(ring.ring, ring.refusals, context=2),
    "dense": Core(dense.dense, dense.refusals),
}
_logged: set[str] = set()


def check_name(name: str) -> None:
    """Refuses a name that is not in the table.

    Raises:
        UserError: it lists the names.
    """
    choose({"auto": None, **CORES}, name, "model.core")


def select_core(name: str, request: Request) -> Choice:
    """The core of that name, or for `auto` the fastest that is exact for the request; the choice is logged once.

    Raises:
        UserError: there is no core of that name, or it refuses the request.
    """
    check_name(name)
    choice = choose_core(CORES, name, request)
    if name == "auto":
        reasons = "".join(f"; not {one}: {no.reason}" for one, no in choice.refused.items())
        text = f"attention core: {choice.name}, chosen by auto on {request.platform}{reasons}"
        if text not in _logged:
            _logged.add(text)
            logging.getLogger("heed").info(text)
    return choice


def attend(name: str, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """Attention by the core of that name, or the one that `auto` chooses for these shapes; returns o_BTHK.

    Raises:
        UserError: shapes that do not agree, a mask or bias of other sizes, or a core that refuses.
    """
    choice = select_core(name, Request.of(q_BTHK, k_BSGK, v_BSGK, scores))
    return choice.call(q_BTHK, k_BSGK, v_BSGK, scores)


def matrix(name: str, q_BTHK: jax.Array, k_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """The weights (B, H, T, S) that the core of that name really applies.

    A core is linear in v: with rows of the identity as values, K columns at a time, its output is its matrix.

    Raises:
        UserError: as `attend`.
    """
    (B, S, G, K), slabs = k_BSGK.shape, []
    for start in range(0, S, K):
        columns_SK = jnp.eye(S, K, -start, dtype=k_BSGK.dtype)
        values_BSGK = jnp.broadcast_to(columns_SK[None, :, None], (B, S, G, K))
        slabs.append(attend(name, q_BTHK, k_BSGK, values_BSGK, scores))
    return jnp.concatenate(slabs, axis=-1)[..., :S].swapaxes(1, 2)
