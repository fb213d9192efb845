"""Tags of words, such as named entities (Devlin et al. 2019, section 5.3)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from train.data.examples import Tagged
from train.data.examples.rows import ExampleRows
from train.tasks.classification import Classification

_TOGETHER = 256  # examples that are encoded at once to read predictions


class TaggedRows(ExampleRows):
    """`start word word ... separator`; `labels` (B, T) are those of the words, and have weight at their first pieces.

    Words beyond the length are cut: they are foretold as `O`, and what is true of them counts.
    """

    def arrays(self, examples: Sequence[Tagged]) -> dict[str, np.ndarray]:
        """Returns the rows of these examples."""
        B, T = len(examples), self.length
        found = {name: np.zeros((B, T), np.int32) for name in ("tokens", "types", "labels", "positions")}
        valid_BT, weights_BT = np.zeros((B, T), bool), np.zeros((B, T), np.float32)
        marks, number_of = self._tokenizer.marks, {name: number for number, name in enumerate(self.names)}
        ids = iter(self._tokenizer.encode_batch([f" {word}" for one in examples for word in one.words]))
        for row, one in enumerate(examples):
            tokens, firsts = [marks["start"]], list[int]()
            for pieces in [next(ids) for _ in one.words]:
                firsts.append(len(tokens))
                tokens += pieces.tolist()
            tokens = [*tokens[: T - 1], marks["separator"]]
            firsts = [place for place in firsts if place < T - 1]
            found["tokens"][row, : len(tokens)], valid_BT[row, : len(tokens)] = tokens, True
            found["labels"][row, firsts] = [number_of[tag] for tag in one.tags[: len(firsts)]]
            weights_BT[row, firsts] = 1
        found["positions"][:] = np.arange(T)
        return found | {"segment_ids": valid_BT.astype(np.int32), "valid": valid_BT, "weights": weights_BT}

    def sizes(self, examples: Sequence[Tagged]) -> list[int]:
        """Returns the tokens that each has, with its marks, before it is cut."""
        ids = iter(self._tokenizer.encode_batch([f" {word}" for one in examples for word in one.words]))
        return [2 + sum(len(next(ids)) for _ in one.words) for one in examples]

    def predicted(self, answers_BT: np.ndarray) -> list[tuple[str, ...]]:
        """Returns the tags of the words of each row, as far as it holds them."""
        found: list[tuple[str, ...]] = []
        for first in range(0, len(self), _TOGETHER):
            weights_BT = self.rows(np.arange(first, min(first + _TOGETHER, len(self))))["weights"]
            for answers_T, weights_T in zip(answers_BT[first:].astype(int), weights_BT, strict=False):
                found.append(tuple(self.names[number] for number in answers_T[weights_T > 0]))
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagging(Classification):
    """To tell the tag of each word, from its first piece: one of the names that the data have."""

    HEAD: ClassVar[str] = "tag"
    ARRAYS: ClassVar[dict[str, str]] = Classification.ARRAYS | {"labels": "BT int32", "weights": "BT float32"}
    KIND: ClassVar[type] = Tagged
    ROWS: ClassVar[type[ExampleRows]] = TaggedRows
