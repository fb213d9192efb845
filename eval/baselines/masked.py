"""Masked pieces without a model: the piece that stands most often beside the neighbours that are seen."""

import hashlib
from collections.abc import Mapping

import numpy as np

from eval.baselines.keeping import kept
from train.data import Data, eval_batches
from train.tasks.base import Task

MAX_TRAIN_TOKENS = 20_000_000  # that are counted: the first ones
_TOGETHER = 256  # rows that are asked at once


class Neighbours:
    """Guesses each piece by its left neighbour, its right one, both, or none.

    Where neighbours were never seen so, 'both' asks 'left', then 'right'; these ask 'none', which is the commonest
    piece of all. Of two pieces as common the lower id is taken.
    """

    def __init__(self, stream_N: np.ndarray, vocab_size: int) -> None:
        """Counts a stream of ids below `vocab_size`, which may be that of a token file, ends of documents included."""
        ids_N = np.asarray(stream_N, np.int64)
        left_N, piece_N, right_N = ids_N[:-2], ids_N[1:-1], ids_N[2:]
        self._vocab_size = vocab_size
        self._commonest = int(np.bincount(ids_N).argmax())
        self._tables = {
            "left": _table(ids_N[:-1], ids_N[1:], vocab_size),
            "right": _table(ids_N[1:], ids_N[:-1], vocab_size),
            "both": _table(left_N * vocab_size + right_N, piece_N, vocab_size),
        }

    def guesses(self, inputs_BT: np.ndarray) -> dict[str, np.ndarray]:
        """Returns for every place of a (B, T) input what each rule would put there, as (B, T) ids.

        A place at the border of its row has no neighbour there. What was masked or replaced in the input is seen so.
        """
        ids_BT = np.where(np.asarray(inputs_BT) < self._vocab_size, inputs_BT, -1)  # a mark was never seen beside any
        none = np.full((len(ids_BT), 1), -1)
        left_BT, right_BT = np.hstack([none, ids_BT[:, :-1]]), np.hstack([ids_BT[:, 1:], none])
        commonest_BT = np.full(ids_BT.shape, self._commonest)
        by_left_BT = self._ask("left", left_BT, np.full(ids_BT.shape, -1))
        by_right_BT = self._ask("right", right_BT, np.full(ids_BT.shape, -1))
        one_BT = np.where(by_left_BT >= 0, by_left_BT, by_right_BT)
        both_BT = np.where((left_BT < 0) | (right_BT < 0), -1, left_BT * self._vocab_size + right_BT)
        found = {
            "none": commonest_BT,
            "left": by_left_BT,
            "right": by_right_BT,
            "both": self._ask("both", both_BT, one_BT),
        }
        return {name: np.where(ids >= 0, ids, commonest_BT) for name, ids in found.items()}

    def accuracy_sums(
        self, inputs_BT: np.ndarray, targets_BT: np.ndarray, weights_BT: np.ndarray
    ) -> Mapping[str, tuple[float, float]]:
        """Returns (sum, count) of what each rule guesses right of the targets that have a weight, by its name.

        The inputs are the corrupted ones of the model, so a mask or a false piece is a neighbour like any other.
        """
        count = float(weights_BT.sum())
        return {
            name: (float((weights_BT * (guessed_BT == targets_BT)).sum()), count)
            for name, guessed_BT in self.guesses(inputs_BT).items()
        }

    def _ask(self, name: str, contexts_BT: np.ndarray, otherwise_BT: np.ndarray) -> np.ndarray:
        known, pieces = self._tables[name]
        at_BT = np.minimum(np.searchsorted(known, contexts_BT), len(known) - 1)
        return np.where(known[at_BT] == contexts_BT, pieces[at_BT], otherwise_BT)


def known_neighbours(task: Task, data: Data) -> dict[str, float]:
    """The accuracy of each rule on the rows that a task measures, computed once and then kept in the cache folder."""

    def accuracies() -> dict[str, float]:
        marks, rows = data.tokenizer.marks, task.measured(data)
        counted = Neighbours(data.tokens("train")[:MAX_TRAIN_TOKENS], data.tokenizer.vocab_size - len(marks))
        found: dict[str, np.ndarray] = {}
        for batch in eval_batches(rows, _TOGETHER):
            one = counted.accuracy_sums(batch["tokens"], batch["targets"], batch["weights"])
            found = {name: found.get(name, 0) + np.array(pair) for name, pair in one.items()}
        return {name: float(right / count) for name, (right, count) in found.items()}

    digest = hashlib.sha256(f"{data.fingerprint} {data.length} {task}".encode()).hexdigest()
    return kept(digest, accuracies)


def _table(contexts_N: np.ndarray, pieces_N: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The contexts that were seen, sorted, and the commonest piece of each."""
    # A context of two pieces with the piece itself may not fit in 64 bits: so contexts are numbered.
    known, number_N = np.unique(contexts_N, return_inverse=True)
    codes, counts = np.unique(number_N * vocab_size + pieces_N, return_counts=True)
    order = np.lexsort((codes % vocab_size, -counts, codes // vocab_size))  # by context, the commonest first
    firsts = order[np.unique(codes[order] // vocab_size, return_index=True)[1]]
    return known, codes[firsts] % vocab_size
