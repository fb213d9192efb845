"""Context parallelism as a ring: queries stay where they are, keys and values travel from device to device.

The sequence is cut into 2C chunks for the C devices that share it, and device c works on chunks c and 2C - 1 - c, so
that a causal mask leaves all of them the same work (Brandon et al. 2023; Llama 3, 2024, section 3.3.2).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model.attention.contract import Refusals, Request, needs
from model.attention.cores.blockwise import (
    add_blocks,
    add_gradients,
    begin,
    end,
    in_dtypes,
    known_rows,
    no_gradients,
    sink_gradient,
)
from model.attention.cores.plan import Plan, block_sizes
from model.attention.cores.seen import over_first, over_seen
from model.attention.cores.sharded import per_device, uneven
from model.attention.masks.base import BlockState, Mask, exact_state
from model.attention.scores import Scores
from model.axes import mesh_axes

Pair = tuple[int, int]


class Blocks(NamedTuple):
    """The blocks of one size and kind that each pair of a query chunk and a key chunk needs, known before tracing.

    Pairs that need the same ones share a list: list `number_CC[a, b]` has `counts_U` blocks, that begin at `starts_UN2`
    (query, key) of their chunks.
    """

    rows: int
    columns: int
    visible: bool
    number_CC: np.ndarray
    counts_U: np.ndarray
    starts_UN2: np.ndarray

    @property
    def counts_CC(self) -> np.ndarray:
        """How many blocks each pair needs."""
        return self.counts_U[self.number_CC]


class Trip:
    """The way of keys and values round the ring, as far as the mask needs it: device c sees first those of device
    c - first, then those of the device before, for `stops` devices in all. Hashable, as custom_vjp wants it.
    """

    def __init__(self, axis: Any, C: int, mask: Mask, T: int, S: int):
        self.axis, self.C = axis, C
        self.rows, self.columns = T // (2 * C), S // (2 * C)
        self.blocks = make_blocks(mask, C, T, S)
        self.first, self.stops = _shortest(self.blocks, C)


def ring(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """softmax(scale * q k^T) v over a length that is split over devices (Liu et al. 2023); returns o_BTHK.

    Each device adds, block by block, what its queries take from the keys that pass by. A block that the mask is known
    to empty before tracing is not computed, nor one of which nobody sees anything at run time, and keys travel no
    further than the mask may let them be seen. The backward pass is a second trip, on which the gradients of keys and
    values travel with them.
    """
    axis, C = mesh_axes("length")
    trip = Trip(axis, C, scores.mask, q_BTHK.shape[1], k_BSGK.shape[1])
    k_BSGK, v_BSGK = scores.without_hidden(k_BSGK, v_BSGK, q_BTHK.shape[1])
    return per_device(functools.partial(_on_a_device, trip), q_BTHK, k_BSGK, v_BSGK, scores)


def make_blocks(mask: Mask, C: int, T: int, S: int) -> list[Blocks]:
    """The blocks that are not known to be empty, for all pairs of 2C query chunks and 2C key chunks."""
    (height, width), sizes = (T // (2 * C), S // (2 * C)), block_sizes(mask, T, S)
    starts: dict[Pair, list[Pair]] = {}
    for (i, rows), (j, columns) in itertools.product(_strips(height, sizes[0]), _strips(width, sizes[1])):
        starts.setdefault((rows, columns), []).append((i, j))
    needed: dict[tuple[int, int, bool], dict[Pair, list[Pair]]] = {}
    for a, b in np.ndindex(2 * C, 2 * C):
        i0, j0 = a * height, b * width
        # Of whole chunks only what the mask can tell by itself: nothing as large as they are is counted.
        state = mask.state(i0, i0 + height, j0, j0 + width)
        for size, places in starts.items() if state is not BlockState.EMPTY else ():
            whole = state is BlockState.FULL
            found = {BlockState.FULL: places} if whole else _by_state(mask, (i0, j0), size, places)
            for one in found.keys() - {BlockState.EMPTY}:
                needed.setdefault((*size, one is BlockState.FULL), {})[a, b] = found[one]
    return [_shared(kind, needed[kind], C) for kind in sorted(needed)]


def _by_state(mask: Mask, corner: Pair, size: Pair, places: list[Pair]) -> dict[BlockState, list[Pair]]:
    found: dict[BlockState, list[Pair]] = {}
    for i, j in places:
        i0, j0 = corner[0] + i, corner[1] + j
        state = exact_state(mask, i0, i0 + size[0], j0, j0 + size[1])
        found.setdefault(state, []).append((i, j))
    return found


def _strips(length: int, size: int) -> list[Pair]:
    """(start, size) of pieces of a chunk, the last one smaller where they do not fill it."""
    return [(start, min(size, length - start)) for start in range(0, length, size)]


def _shared(kind: tuple[int, int, bool], pairs: dict[Pair, list[Pair]], C: int) -> Blocks:
    lists: dict[tuple[Pair, ...], int] = {(): 0}
    number_CC = np.zeros((2 * C, 2 * C), np.int32)
    for pair, starts in pairs.items():
        number_CC[pair] = lists.setdefault(tuple(starts), len(lists))
    starts_UN2 = np.zeros((len(lists), max(map(len, lists)), 2), np.int32)
    for one, number in lists.items():
        starts_UN2[number, : len(one)] = np.array(one, np.int32).reshape(-1, 2)
    return Blocks(*kind, number_CC, np.array([len(one) for one in lists], np.int32), starts_UN2)


def _shortest(blocks: list[Blocks], C: int) -> Pair:
    """(first, stops) of the shortest way on which every device meets all keys that its queries need."""
    a, b = np.nonzero(sum((one.counts_CC for one in blocks), np.zeros((2 * C, 2 * C), np.int32)))
    back = {int(x) for x in (np.minimum(a, 2 * C - 1 - a) - np.minimum(b, 2 * C - 1 - b)) % C} or {0}
    stops, first = min((max((other - first) % C for other in back) + 1, first) for first in back)
    return first, stops


def _on_a_device(trip: Trip, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    q_BHTK = _zigzag(trip, (q_BTHK * scores.scale).astype(q_BTHK.dtype).swapaxes(1, 2))
    k_BGSK, v_BGSK = (_zigzag(trip, x.swapaxes(1, 2), trip.first) for x in (k_BSGK, v_BSGK))
    rest = scores.replace(bias=None, sinks_H=None)
    return _straight(trip, _attend(trip, q_BHTK, k_BGSK, v_BGSK, scores.learned(), rest)).swapaxes(1, 2)


def _zigzag(trip: Trip, x: jax.Array, shift: int = 0) -> jax.Array:
    """From chunks 2c and 2c + 1 on device c to chunks d and 2C - 1 - d on device d + shift; the length is axis 2."""
    C = trip.C
    even, odd = jnp.split(x, 2, axis=2)
    even = jax.lax.ppermute(even, trip.axis, [(c, (_home(2 * c, C) + shift) % C) for c in range(C)])
    odd = jax.lax.ppermute(odd, trip.axis, [(c, (_home(2 * c + 1, C) + shift) % C) for c in range(C)])
    is_even = (jax.lax.axis_index(trip.axis) - shift) % C % 2 == 0
    return jnp.concatenate([jnp.where(is_even, even, odd), jnp.where(is_even, odd, even)], axis=2)


def _straight(trip: Trip, x: jax.Array) -> jax.Array:
    """The way back of `_zigzag`."""
    C = trip.C
    low, high = jnp.split(x, 2, axis=2)
    is_even = jax.lax.axis_index(trip.axis) % 2 == 0
    even, odd = jnp.where(is_even, low, high), jnp.where(is_even, high, low)
    even = jax.lax.ppermute(even, trip.axis, [(_home(2 * c, C), c) for c in range(C)])
    odd = jax.lax.ppermute(odd, trip.axis, [(_home(2 * c + 1, C), c) for c in range(C)])
    return jnp.concatenate([even, odd], axis=2)


def _home(chunk: int, C: int) -> int:
    """The device that works on a chunk."""
    return min(chunk, 2 * C - 1 - chunk)


def _hop(trip: Trip, tree: Any, by: int = 1) -> Any:
    """To the device `by` further round the ring."""
    there = [(c, (c + by) % trip.C) for c in range(trip.C)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, trip.axis, there), tree)


def _visit(trip: Trip, stop: Any, carry: Any, add: Callable[..., Any], mask: Mask) -> Any:
    """Calls add(carry, plan, at) for each block between this device's queries and the keys that it has at a stop."""
    C, here = trip.C, jax.lax.axis_index(trip.axis)
    owner = (here - trip.first - stop) % C

    def pair(number: jax.Array, carry: Any) -> Any:
        x, y = number // 2, number % 2  # the first or the second chunk, of the queries and of the keys
        a, b = jnp.where(x, 2 * C - 1 - here, here), jnp.where(y, 2 * C - 1 - owner, owner)
        corner_2 = jnp.stack([x * trip.rows, y * trip.columns])
        at = (a - x) * trip.rows, (b - y) * trip.columns  # from places in the arrays to places in the sequence
        for blocks in trip.blocks:
            which = jnp.asarray(blocks.number_CC)[a, b]
            starts_N2, count = (
                corner_2[None] + jnp.asarray(blocks.starts_UN2)[which],
                jnp.asarray(blocks.counts_U)[which],
            )
            one = functools.partial(_add_one, blocks, at, add)
            if blocks.visible or mask.is_static:
                carry = over_first(count, starts_N2, one, carry)
            else:
                carry = over_seen(mask, count, starts_N2, (blocks.rows, blocks.columns), at, one, carry)
        return carry

    return jax.lax.fori_loop(0, 4, pair, carry)


def _add_one(blocks: Blocks, at: Any, add: Callable[..., Any], carry: Any, place: Any) -> Any:
    full, mixed = ([place], []) if blocks.visible else ([], [place])
    return add(carry, Plan(blocks.rows, blocks.columns, full, mixed), at)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(trip: Trip, q_BHTK: jax.Array, k: jax.Array, v: jax.Array, learned: Any, rest: Scores) -> jax.Array:
    return _forward(trip, q_BHTK, k, v, learned, rest)[0]


def _forward(
    trip: Trip, q_BHTK: jax.Array, k: jax.Array, v: jax.Array, learned: Any, rest: Scores
) -> tuple[jax.Array, Any]:
    bias, sinks_H = learned
    scores = rest.replace(bias=bias)

    def visit(softmax: Any, kv: Any, stop: Any) -> Any:
        k, v = kv
        return _visit(
            trip, stop, softmax, lambda x, plan, at: add_blocks(x, plan, q_BHTK, k, v, scores, at), scores.mask
        )

    softmax, kv = _travel(trip, visit, begin(q_BHTK, v, sinks_H), (k, v))
    softmax = visit(softmax, kv, trip.stops - 1)
    o_BHTK, most_BHT, share_BHT = end(softmax, v.dtype)
    return o_BHTK, (q_BHTK, k, v, learned, rest, o_BHTK, most_BHT, share_BHT)


def _backward(trip: Trip, kept: Any, do_BHTK: jax.Array) -> tuple[Any, ...]:
    q_BHTK, k, v, learned, rest, o_BHTK, most_BHT, share_BHT = kept
    bias, sinks_H = learned
    scores, rows = rest.replace(bias=bias), known_rows(most_BHT, share_BHT, o_BHTK, do_BHTK)

    def visit(grads: Any, kv: Any, stop: Any) -> Any:
        (dq, dk, dv, dbias), (k, v) = grads, kv

        def add(grads: Any, plan: Plan, at: Any) -> Any:
            return add_gradients(grads, plan, q_BHTK, k, v, do_BHTK, rows, scores, at)

        # What other devices have found for these keys is on its way while this one works, and is added when it is here.
        arriving = _hop(trip, (dk, dv))
        dq, dk, dv, dbias = _visit(trip, stop, (dq, jnp.zeros_like(dk), jnp.zeros_like(dv), dbias), add, scores.mask)
        return dq, dk + arriving[0], dv + arriving[1], dbias

    grads, kv = _travel(trip, visit, no_gradients(q_BHTK, k, v, bias), (k, v))
    dq, dk, dv, dbias = visit(grads, kv, trip.stops - 1)
    dk, dv = _hop(trip, (dk, dv), 1 - trip.stops)
    dsinks_H = None if sinks_H is None else sink_gradient(sinks_H, rows)
    found = in_dtypes((dq, dk, dv, dbias), (q_BHTK, k, v, bias))
    return *found[:3], (found[3], dsinks_H), None


def _travel(trip: Trip, visit: Callable[..., Any], carry: Any, kv: Any) -> Any:
    """All stops but the last: (carry, the keys and values that are here then)."""

    def step(state: Any, stop: jax.Array) -> tuple[Any, None]:
        carry, kv = state
        # The next keys and values are asked for without waiting for the work on these.
        return (visit(carry, kv, stop), _hop(trip, kv)), None

    return jax.lax.scan(step, (carry, kv), jnp.arange(trip.stops - 1))[0]


_attend.defvjp(_forward, _backward)


def refusals(request: Request) -> Refusals:
    """Queries out of order, a sequence in one piece, and lengths that cannot be cut into two chunks a device."""
    C, scores = request.ways["length"], request.scores
    yield from needs(
        scores.query_positions_BT is None, "queries at given positions are computed by dense", "write dense"
    )
    yield from needs(
        C > 1, "the mesh does not split the sequence, so nothing travels", "write blockwise, or --config.mesh.context=2"
    )
    yield from needs(
        request.T % (2 * C) == request.S % (2 * C) == 0,
        f"with context={C} it cuts {request.T} queries and {request.S} keys into {2 * C} chunks, which must be equal",
        f"change --config.data.length to a multiple of {2 * C}, or write ulysses",
    )
    yield from uneven(request)
