"""Which blocks of a T x S matrix are computed: those that a mask is not known to empty, in sizes that devices like."""

from collections.abc import Iterator
from typing import NamedTuple

from model.attention.masks.base import BlockState, Mask, exact_state
from model.attention.masks.patterns import FirstKeys
from model.axes import platform

Pair = tuple[int, int]
_SHORT = 1024  # queries and keys of which each strip of queries takes all that it sees at once
_NARROW = 512  # keys that a strip of a longer sequence takes at once
_PIECE = 64  # places in whose multiples it is known what a strip sees


class Plan(NamedTuple):
    """The blocks of `rows` queries and `columns` keys that are computed, as (first query, first key)."""

    rows: int
    columns: int
    full: list[Pair]  # the mask hides nothing in these
    mixed: list[Pair]
    whole: bool = False  # each has all keys that its queries may see

    @property
    def places(self) -> int:
        """How many pairs of a query and a key are computed."""
        return (len(self.full) + len(self.mixed)) * self.rows * self.columns


def make_plans(mask: Mask, T: int, S: int) -> list[Plan]:
    """The blocks that are not known to be empty, by what is known of each before tracing; a plan for each size.

    On a CPU, queries of a short sequence, and those that see few keys, as in a window, take all of them as one strip:
    then nothing is rescaled (on two cores, 6 heads, causal: 0.79 of the time of blocks of 128 x 128 for T = 512, 0.60
    for 1024, and as long for 256; 0.66 with a window of 257 keys).
    """
    grid = _grid(mask, T, S, *block_sizes(mask, T, S))
    if platform() != "cpu":
        return [grid]
    if max(T, S) <= _SHORT:
        rows = _equal(T, max(_PIECE, T // 8))
        return [Plan(rows, width, *kinds, True) for width, kinds in _strips(mask, T, S, rows, S).items()]
    return _narrow(mask, T, S, grid) or [grid]


def block_sizes(mask: Mask, T: int, S: int) -> tuple[int, int]:
    """Rows and columns of a block: a quarter of the length, so that a causal mask empties enough of them, within what a
    TPU's products like, or what was fastest on two CPU cores: the largest of which at most half have hidden places.

    A product of more rows is shared by a CPU's cores. What arrays hide is not known here: a middle size is taken.
    """
    quarters = max(T // 4, 64), max(S // 4, 64)
    most = (512, 256), (256, 256), (128, 128)
    sizes = [(_equal(T, min(quarters[0], rows)), _equal(S, min(quarters[1], columns))) for rows, columns in most]
    if platform() != "cpu":
        return sizes[0]
    if not mask.is_static:
        return sizes[1]
    plans = (_grid(mask, T, S, *size) for size in sizes[:-1])
    return next(((plan.rows, plan.columns) for plan in plans if len(plan.mixed) <= len(plan.full)), sizes[-1])


def _equal(length: int, most: int) -> int:
    """The size of the fewest equal blocks of about `most` places: 131 places make three of 48, not three of 64."""
    return min(length, -(-length // -(-length // most) // 8) * 8)


def _grid(mask: Mask, T: int, S: int, rows: int, columns: int) -> Plan:
    if S % columns:
        mask = mask & FirstKeys(S)
    plan = Plan(rows, columns, [], [])
    for i0 in range(0, T, rows):
        for j0 in range(0, S, columns):
            state = exact_state(mask, i0, i0 + rows, j0, j0 + columns)
            if state is not BlockState.EMPTY:
                (plan.full if state is BlockState.FULL else plan.mixed).append((i0, j0))
    return plan


def _narrow(mask: Mask, T: int, S: int, grid: Plan) -> list[Plan]:
    """Strips of one width, where they compute fewer places than a grid; else none."""
    strips = _strips(mask, T, S, _PIECE, _NARROW)
    if not strips or max(strips) > _NARROW:
        return []
    places = [(i0, min(j0, S - max(strips))) for kinds in strips.values() for kind in kinds for i0, j0 in kind]
    plan = Plan(_PIECE, max(strips), [], sorted(places), True)
    return [plan] if plan.places < grid.places else []


def _strips(mask: Mask, T: int, S: int, rows: int, enough: int) -> dict[int, tuple[list[Pair], list[Pair]]]:
    """{width: (full, mixed)} of one block for all keys of its rows, up to the first that is wider than `enough`."""
    strips: dict[int, tuple[list[Pair], list[Pair]]] = {}
    for i0 in range(0, T, rows):
        coarse = list(_seen(mask, i0, rows, 0, S, _NARROW))
        if not coarse:
            continue
        first = next(_seen(mask, i0, rows, coarse[0], min(coarse[0] + _NARROW, S), _PIECE), coarse[0])
        *_, last = coarse[-1], *_seen(mask, i0, rows, coarse[-1], min(coarse[-1] + _NARROW, S), _PIECE)
        end = min(last + _PIECE, S)
        state = exact_state(mask, i0, i0 + rows, first, end)
        strips.setdefault(end - first, ([], []))[state is not BlockState.FULL].append((i0, first))
        if end - first > enough:
            break
    return strips


def _seen(mask: Mask, i0: int, rows: int, j0: int, j1: int, columns: int) -> Iterator[int]:
    """The starts of pieces of keys j0 to j1 of which one of the rows may see one."""
    for start in range(j0, j1, columns):
        if exact_state(mask, i0, i0 + rows, start, min(start + columns, j1)) is not BlockState.EMPTY:
            yield start
