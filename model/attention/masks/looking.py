"""What is true of a whole mask of any length: whether it shows anything, and anything ahead."""

from model.attention.masks.band import causal
from model.attention.masks.base import BlockState, Mask, exact_state

_PROBE = 256  # queries and keys that are asked one by one


def shows(mask: Mask, length: int) -> bool:
    """Whether any of the first `length` queries sees any of as many keys."""
    return _shows(mask, 0, length, 0, length)


def looks_ahead(mask: Mask, length: int) -> bool:
    """Whether any of the first `length` queries sees a key after its own."""
    return shows(mask & ~causal(), length)


def _shows(mask: Mask, i0: int, i1: int, j0: int, j1: int) -> bool:
    """Whether any query of a block sees any key of it; a mixed block is asked by its quarters, down to _PROBE."""
    if max(i1 - i0, j1 - j0) <= _PROBE:
        return exact_state(mask, i0, i1, j0, j1) is not BlockState.EMPTY
    state = mask.state(i0, i1, j0, j1)
    if state is not BlockState.MIXED:
        return state is BlockState.FULL
    i, j = (i0 + i1) // 2, (j0 + j1) // 2
    return any(_shows(mask, *rows, *keys) for rows in ((i0, i), (i, i1)) for keys in ((j0, j), (j, j1)))
