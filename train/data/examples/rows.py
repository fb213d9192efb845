"""Examples as rows of arrays: what each task makes of its kind, in one place."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from train.data.examples.opened import ExampleData
from train.data.rows import Rows


class ExampleRows(Rows):
    """The examples of a split, or `count` of them spread evenly, as arrays that are made when they are asked for.

    Attributes:
        examples: those that are rows, by number.
        length: T.
    """

    def __init__(self, data: ExampleData, split: str, count: int = 0) -> None:
        self._all, self._varied = data.corpus.splits[split], data.corpus.varied
        self._tokenizer, self.names, self.length = data.tokenizer, data.names, data.length
        some = 0 < count < len(self._all)
        self._places = np.arange(count) * len(self._all) // count if some else np.arange(len(self._all))

    def __len__(self) -> int:
        return len(self._places)

    @property
    def examples(self) -> list[Any]:
        """Those that are rows."""
        return [self._all[int(place)] for place in self._places]

    def told(self) -> str:
        """Returns how many there are, in words."""
        return f"{len(self)} examples"

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many rows, as arrays with a leading axis B; an index past the last gives zeros."""
        indices_B = np.asarray(indices, np.int64)
        there_B = indices_B < len(self)
        some = [self._all[int(place)] for place in self._places[indices_B[there_B]]] or [self._all[0]]
        if draws is not None and self._varied is not None:
            some = [self._varied(one, int(bits)) for one, bits in zip(some, draws[there_B], strict=False)]
        made = self.arrays(some)
        found = {name: np.zeros((len(indices_B), *x.shape[1:]), x.dtype) for name, x in made.items()}
        for name, x in made.items():
            found[name][there_B] = x[: there_B.sum()]
        return found

    def arrays(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
        """Returns the rows of these examples."""
        raise NotImplementedError

    def joined(self, parts: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        """Returns rows of one or two texts each, as `laid`."""
        ids = iter(self._tokenizer.encode_batch([text for row in parts for text in row]))
        return self.laid([[next(ids) for _ in row] for row in parts])

    def laid(self, parts: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns `start first separator`, with `second separator` behind it where there is one, for each row of ids.

        What is too long is cut: of two texts the longer one, piece by piece. int32 tokens, types (0 or 1), segment_ids
        and positions, and bool valid, all (B, T).
        """
        marks, (B, T) = self._tokenizer.marks, (len(parts), self.length)
        found = {name: np.zeros((B, T), np.int32) for name in ("tokens", "types", "positions")}
        valid_BT = np.zeros((B, T), bool)
        for row, texts in enumerate(parts):
            tokens, types = [marks["start"]], [0]
            for number, one in enumerate(_cut(texts, T - 1 - len(texts))):
                tokens += [*one.tolist(), marks["separator"]]
                types += [number] * (len(one) + 1)
            found["tokens"][row, : len(tokens)], found["types"][row, : len(types)] = tokens, types
            valid_BT[row, : len(tokens)] = True
        found["positions"][:] = np.arange(T)
        return found | {"segment_ids": valid_BT.astype(np.int32), "valid": valid_BT}


def _cut(texts: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """The beginnings of one or two texts, which together fit into the room."""
    sizes = [len(one) for one in texts]
    while sum(sizes) > room:
        longest = max(range(len(sizes)), key=lambda number: (sizes[number], number))
        rest = max([0, *(size for number, size in enumerate(sizes) if number != longest)])
        sizes[longest] -= max(1, min(sum(sizes) - room, sizes[longest] - rest))
    return [one[:size] for one, size in zip(texts, sizes, strict=True)]
