"""Loss by position: how well a target is predicted by how much of its document the model sees."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from train.data import Windows
from train.tasks.by_quarter import QUARTERS, quarter

_QUARTERS = tuple(f"val/loss/quarter_{number}" for number in range(1, QUARTERS + 1))
_SCORE = "val/loss/last_less_first"
NAMES = (*_QUARTERS, _SCORE)
_CHUNK = 256  # windows that are read at once


def by_position(nats_Q: Any, targets_Q: Any) -> Iterator[tuple[str, Any]]:
    """Yields the mean loss (nats per token) of the targets of each quarter of the window, then last less first.

    Both sums are (4,), or (N, 4) with seeds. The difference is below 0 where more of a document helps: the in-context
    learning score of Olsson et al. 2022 ("In-context Learning and Induction Heads"), over quarters in the place of two
    tokens. What has no target is left out.
    """
    there = [(np.asarray(targets_Q)[..., number] > 0).all() for number in range(QUARTERS)]
    losses = [nats_Q[..., number] / targets_Q[..., number] if there[number] else None for number in range(QUARTERS)]
    yield from ((name, loss) for name, loss in zip(_QUARTERS, losses, strict=True) if loss is not None)
    if losses[0] is not None and losses[-1] is not None:
        yield _SCORE, losses[-1] - losses[0]


def lacking(windows: Windows) -> tuple[str, ...]:
    """The names for which a text has no target: no document of it, or stretch of one in a window, is long enough."""
    targets_Q = np.zeros(QUARTERS)
    for first in range(0, len(windows), _CHUNK):
        rows = windows.rows(np.arange(first, min(first + _CHUNK, len(windows))))
        targets_Q += np.bincount(quarter(rows["positions"], windows.length).ravel(), rows["weights"].ravel(), QUARTERS)
    found = {name for name, _ in by_position(np.zeros(QUARTERS), targets_Q)}
    return tuple(name for name in NAMES if name not in found)


def meaning(name: str, length: int) -> str:
    """Of which targets a name speaks, of windows of so many tokens, as a sentence; '' for a name of something else."""
    ends = [-(-number * length // QUARTERS) for number in range(QUARTERS + 1)]  # quarter q holds ends[q] to ends[q + 1]
    seen = [f"see {first + 1} to {last} tokens" for first, last in zip(ends, ends[1:], strict=False)]
    of = {one: f"the mean loss of the targets that {some}" for one, some in zip(_QUARTERS, seen, strict=True)}
    of[_SCORE] = f"the mean loss of the targets that {seen[-1]}, less that of those that {seen[0]}"
    return f"{name} is {of[name]} of their document." if name in of else ""
