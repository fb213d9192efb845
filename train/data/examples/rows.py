"""Examples as rows of arrays: what each task makes of its kind, in one place."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from train.data.examples.opened import ExampleData
from train.data.rows import Rows

LOOKED_AT = 4_000  # examples, at most, of which the tokens are counted to tell how many are cut
_TOGETHER = 256  # of these, that are encoded at once


class ExampleRows(Rows):
    """The examples of a split, or `count` of them spread evenly, as arrays that are made when they are asked for.

    Attributes:
        examples: those that are rows, by number.
        length: T.
    """

    def __init__(self, data: ExampleData, split: str, count: int = 0) -> None:
        self._all, self._varied = data.corpus.splits[split], data.corpus.varied
        self._rationale = data.corpus.rationale
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
        """Returns how many there are, and how many of them are cut, in words; of very many, by those looked at."""
        places = self._places[np.linspace(0, len(self) - 1, min(len(self), LOOKED_AT)).astype(int)]
        sized = (pair for some in self.parts(places) for pair in zip(some, self.sizes(some), strict=True))
        cut = [one for one, size in sized if size > self.length]
        if not cut:
            return f"{len(self)} examples"

        def about(count: int) -> str:
            return f"about {round(count * len(self) / len(places))}" if len(places) < len(self) else f"{count}"

        lost = self.lost(cut)
        return (
            f"{len(self)} examples, of which {about(len(cut))} have more than --config.data.length={self.length} "
            f"tokens and are cut{f', {about(lost)} of them before their answer ends' if lost else ''}"
        )

    def parts(self, places: np.ndarray) -> Iterator[list[Any]]:
        """Yields the examples at these places of the split, some at a time."""
        for first in range(0, len(places), _TOGETHER):
            yield [self._all[int(place)] for place in places[first : first + _TOGETHER]]

    def sizes(self, examples: Sequence[Any]) -> list[int]:
        """Returns the tokens that each of these has, with its marks, before it is cut."""
        raise NotImplementedError

    def lost(self, cut: Sequence[Any]) -> int:
        """Returns how many of these, which are cut, have lost what is asked of them."""
        return 0

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
