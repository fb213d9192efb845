"""What batches are made of."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np


class Rows(Protocol):
    """Rows by number, each of them made anew whenever it is asked for: windows of text, or examples of a task.

    Attributes:
        in_turn: K, of which the rows are in streams: i K to i K + K - 1 are learned from one after the other.
    """

    in_turn: int = 1

    def __len__(self) -> int:
        """How many there are."""

    def told(self) -> str:
        """Returns how much they hold, in words."""

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many rows, as arrays with a leading axis B; an index past the last gives padding of weight 0.

        What is drawn anew in each epoch, such as masked tokens, is drawn from `draws`, 64 random bits for each row;
        without them, as in evaluation, by the number of the row alone.
        """
