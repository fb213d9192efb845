"""The table of attention cores. A core is `core(q_BTHK, k_BSGK, v_BSGK, scores) -> o_BTHK` beside what it refuses;
adding one is a file and a line here."""

import logging
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.cache import Cache, StateCache, in_order
from model.attention.contract import Choice, Core, CoreModule, HeadSizes, RecurrentCore, Request, choose_core
from model.attention.cores import blockwise, dense, fused, ring, splash, ulysses
from model.attention.scores import Scores
from model.cycles import read_cycle
from model.errors import UserError
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


def make_core(name: str, sizes: HeadSizes, rngs: nnx.Rngs) -> CoreModule | None:
    """The parameters of the core of that name, as a module under construction; a function has none."""
    call = CORES[name].call if name in CORES else None
    return call(sizes, rngs=rngs) if isinstance(call, type) else None


def recurrent(name: str) -> type[RecurrentCore] | None:
    """The core of that name, if it has a state."""
    call = CORES[name].call if name in CORES else None
    return call if isinstance(call, type) and issubclass(call, RecurrentCore) else None


def anywhere(cores: Any) -> str:
    """The same cycle of cores with `auto` for those that compute softmax attention: others may do that elsewhere."""
    return str(read_cycle(cores, "model.core").map(lambda name: "auto" if _is_softmax(name) else name))


def _is_softmax(name: str) -> bool:
    return name == "auto" or CORES[name].is_softmax


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


def attend(
    name: str, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores, module: CoreModule | None = None
) -> jax.Array:
    """Attention by the core of that name, or the one that `auto` chooses for these shapes; returns o_BTHK.

    `module` holds the parameters of a core that has some.

    Raises:
        UserError: shapes that do not agree, a mask or bias of other sizes, or a core that refuses.
    """
    choice = select_core(name, Request.of(q_BTHK, k_BSGK, v_BSGK, scores))
    if not isinstance(choice.call, type):
        return choice.call(q_BTHK, k_BSGK, v_BSGK, scores)
    if module is None:
        raise UserError(f"--config.model.core={name!r} has parameters; call it as a part of MultiHeadAttention.")
    return module(q_BTHK, k_BSGK, v_BSGK, scores)


def decode(
    name: str,
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    scores: Scores,
    cache: Cache | StateCache,
    positions_BT: jax.Array,
    module: CoreModule | None = None,
) -> tuple[jax.Array, Cache | StateCache]:
    """What new tokens at these positions take of the past and of each other, o_BTHK, and the cache with them in it.

    New tokens are few: see `attend_few`. A core with a state goes on from that; any other than softmax attention
    computes it itself, if it takes given positions.

    Raises:
        UserError: a core of another function refuses.
    """
    placed = scores.replace(query_positions_BT=positions_BT)
    if isinstance(cache, StateCache):
        assert isinstance(module, RecurrentCore)
        select_core(name, Request.of(q_BTHK, k_BTGK, v_BTGK, scores))
        fits_BT, newest_B = in_order(cache.newest_B, positions_BT)
        # A state cannot go back: that is told.
        v_BTGK = jnp.where(fits_BT[..., None, None], v_BTGK, jnp.nan)
        o_BTHK, state = module.decode(q_BTHK, k_BTGK, v_BTGK, placed, cache.state)
        return o_BTHK, StateCache(state, newest_B)
    cache, seen = cache.write(k_BTGK, v_BTGK, positions_BT)
    placed = placed.replace(key_positions_BS=seen.positions_BS)
    return attend_few(name, q_BTHK, seen.k_BSGK, seen.v_BSGK, placed, module), cache


def attend_few(
    name: str, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores, module: CoreModule | None = None
) -> jax.Array:
    """`attend` for few queries: softmax attention by `dense` whatever the name, for the matrix of weights is small.

    Raises:
        UserError: a core of another function refuses.
    """
    if _is_softmax(name):
        return dense.dense(q_BTHK, k_BSGK, v_BSGK, scores)
    return attend(name, q_BTHK, k_BSGK, v_BSGK, scores, module)
