"""Masked pieces without a model: the piece that stands most often beside the neighbours that are seen."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

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

    def guesses(self, left_BT: np.ndarray, right_BT: np.ndarray) -> dict[str, np.ndarray]:
        """Returns for every place what each rule would put there, as (B, T) ids, by the ids of its neighbours.

        What is below 0 or no piece of text was never seen beside any.
        """
        left_BT, right_BT = (np.where(side < self._vocab_size, side, -1) for side in (left_BT, right_BT))
        commonest_BT = np.full(left_BT.shape, self._commonest)
        by_left_BT = self._ask("left", left_BT, np.full(left_BT.shape, -1))
        by_right_BT = self._ask("right", right_BT, np.full(right_BT.shape, -1))
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
        self, sides: tuple[np.ndarray, np.ndarray], targets_BT: np.ndarray, weights_BT: np.ndarray
    ) -> Mapping[str, tuple[float, float]]:
        """Returns (sum, count) of what each rule guesses right of the targets that have a weight, by its name."""
        count = float(weights_BT.sum())
        return {
            name: (float((weights_BT * (guessed_BT == targets_BT)).sum()), count)
            for name, guessed_BT in self.guesses(*sides).items()
        }

    def _ask(self, name: str, contexts_BT: np.ndarray, otherwise_BT: np.ndarray) -> np.ndarray:
        known, pieces = self._tables[name]
        at_BT = np.minimum(np.searchsorted(known, contexts_BT), len(known) - 1)
        return np.where(known[at_BT] == contexts_BT, pieces[at_BT], otherwise_BT)


def beside(inputs_BT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids on the left and on the right of every place of a (B, T) input; -1 at the border of its row.

    What was masked or replaced in the input is seen so: a mask or a false piece is a neighbour like any other.
    """
    ids_BT, none_B1 = np.asarray(inputs_BT, np.int64), np.full((len(inputs_BT), 1), -1)
    return np.hstack([none_B1, ids_BT[:, :-1]]), np.hstack([ids_BT[:, 1:], none_B1])


def beside_spans(batch: Mapping[str, np.ndarray], start: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids on the left and on the right of every place of the targets (B, T), in the text that they were taken from;
    -1 where they are no text or the right one is still to be written. Ids above `start` are sentinels.

    A span's last token is told the one that was kept behind it, and so that it is the last, which no model is.
    """
    sources_BS, tokens_BT, targets_BT = (batch[name].astype(np.int64) for name in ("sources", "tokens", "targets"))
    place_K = np.flatnonzero(sources_BS > start)  # the n-th sentinel of the sources is the n-th one of the targets
    before_K = np.where(batch["source_positions"].ravel()[place_K] > 0, sources_BS.ravel()[place_K - 1], -1)
    number_BT = np.cumsum(targets_BT > start).reshape(targets_BT.shape) - 1
    before_BT, after_BT = before_K[number_BT], sources_BS.ravel()[place_K + 1][number_BT]
    text_BT = targets_BT < start - 1  # neither sentinels nor ends
    ends_BT = ~np.hstack([text_BT[:, 1:], np.zeros((len(text_BT), 1), bool)])
    left_BT = np.where(tokens_BT > start, before_BT, tokens_BT)
    return np.where(text_BT, left_BT, -1), np.where(text_BT & ends_BT, after_BT, -1)


def known_neighbours(task: Task, data: Data) -> dict[str, float]:
    """The accuracy of each rule on the rows that a task measures, computed once and then kept in the cache folder."""

    def sums(counted: Neighbours, batch: dict[str, np.ndarray]) -> Mapping[str, tuple[float, float]]:
        return counted.accuracy_sums(beside(batch["tokens"]), batch["targets"], batch["weights"])

    return _known(task, data, sums)


def known_neighbours_of_spans(task: Task, data: Data) -> dict[str, float]:
    """The same of text that was taken out in spans: of each token of it, those before it are given, as to the model."""
    start = data.tokenizer.marks["start"]

    def sums(counted: Neighbours, batch: dict[str, np.ndarray]) -> Mapping[str, tuple[float, float]]:
        weights_BT = batch["weights"] * (batch["targets"] < data.tokenizer.end)
        return counted.accuracy_sums(beside_spans(batch, start), batch["targets"], weights_BT)

    return _known(task, data, sums)


def _known(task: Task, data: Data, sums: Callable[[Neighbours, dict[str, np.ndarray]], Any]) -> dict[str, float]:
    def accuracies() -> dict[str, float]:
        marks, rows = data.tokenizer.marks, task.measured(data)
        counted = Neighbours(data.tokens("train")[:MAX_TRAIN_TOKENS], data.tokenizer.vocab_size - len(marks))
        found: dict[str, np.ndarray] = {}
        for batch in eval_batches(rows, _TOGETHER):
            found = {name: found.get(name, 0) + np.array(pair) for name, pair in sums(counted, batch).items()}
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
