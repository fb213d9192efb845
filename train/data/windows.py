"""Windows of the fixed concatenation `E d1 E d2 E ...`: any of them at once, and each token a target exactly once."""

import io
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from train.data.files import make_once
from train.data.rows import Rows
from train.data.tokenizers import Tokenizer

CHUNK = 2**20  # characters that are tokenised together: enough to keep every core busy, and done in a second


class Windows(Rows):
    """Window i holds the stream's tokens i*T .. i*T+T: inputs are all but the last, targets all but the first.

    An `end` among the inputs opens a segment, where positions restart at 0; so does a window's first token. The last
    window is padded with weight 0 and segment 0; real segments count from 1.

    Attributes:
        num_tokens: targets in one pass, closing `end`s included.
        num_bytes: UTF-8 bytes of the text.
        length: T.
    """

    def __init__(self, stream: np.ndarray, end: int, length: int, num_bytes: int) -> None:
        """Takes the stream itself: a 1-D integer array that begins and closes with `end`."""
        self._stream = stream
        self._end = end
        self.length = length
        self.num_bytes = num_bytes
        self.num_tokens = len(stream) - 1

    def __len__(self) -> int:
        return -(-self.num_tokens // self.length)

    def told(self) -> str:
        """Returns how much they hold, in words."""
        return f"{self.num_tokens} tokens, {self.num_bytes} bytes"

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns window `index`: int32 tokens, targets, segment_ids and positions, float32 weights, all (T)."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        return {name: array_BT[0] for name, array_BT in self.rows([index]).items()}

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many windows, as (B, T) arrays; an index past the last window gives a row of padding."""
        start_B = np.asarray(indices, np.int64) * self.length
        at_BS = start_B[:, None] + np.arange(self.length + 1)
        tokens_BS = self._stream[np.minimum(at_BS, self.num_tokens)].astype(np.int32)  # so padding is `end`
        tokens_BT = np.ascontiguousarray(tokens_BS[:, :-1])
        real_BT = at_BS[:, 1:] <= self.num_tokens
        opens_BT = tokens_BT == self._end
        opens_BT[:, 0] = True
        at_T = np.arange(self.length, dtype=np.int32)
        opened_BT = np.maximum.accumulate(np.where(opens_BT, at_T, 0), axis=1)
        return {
            "tokens": tokens_BT,
            "targets": np.ascontiguousarray(tokens_BS[:, 1:]),
            "segment_ids": np.cumsum(opens_BT, axis=1, dtype=np.int32) * real_BT,
            "positions": (at_T - opened_BT) * real_BT,
            "weights": real_BT.astype(np.float32),
        }


class SomeWindows(Windows):
    """`count` windows out of all, spread evenly over them; its `num_tokens` and `num_bytes` are those of their targets.

    `bytes_V` says how many bytes each token stands for.
    """

    def __init__(self, windows: Windows, count: int, bytes_V: np.ndarray) -> None:
        self._windows, self._count = windows, count
        self._places = np.arange(count) * len(windows) // count
        self.length = windows.length
        chosen = windows.rows(self._places)
        self.num_tokens = int(chosen["weights"].sum())
        self.num_bytes = int((bytes_V[chosen["targets"]] * chosen["weights"]).sum())

    def __len__(self) -> int:
        return self._count

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many windows, as (B, T) arrays; an index past the last window gives a row of padding."""
        asked_B = np.asarray(indices, np.int64)
        places_B = self._places[np.minimum(asked_B, self._count - 1)]
        return self._windows.rows(np.where(asked_B < self._count, places_B, len(self._windows)))


class Streams(Rows):
    """Windows of which K in a row are a stream, `in_turn` = K: positions count on from one to the next.

    So the first position of a window is 0 where it begins a stream or a document; segments count from 1 in each
    window. What the last stream lacks is padding.
    """

    def __init__(self, windows: Windows, in_turn: int, begins: np.ndarray) -> None:
        """Takes the windows, and where their documents begin: the places of each `end` before one, in order."""
        self._windows, self.in_turn, self._begins = windows, in_turn, begins
        self.length = windows.length

    def __len__(self) -> int:
        return -(-len(self._windows) // self.in_turn) * self.in_turn

    def told(self) -> str:
        """Returns how much they hold, in words."""
        return f"{self._windows.told()}, in streams of {self.in_turn} windows"

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many windows, as (B, T) arrays; an index past the last window gives a row of padding."""
        index_B = np.asarray(indices, np.int64)
        start_B = index_B * self.length
        stream_B = start_B - index_B % self.in_turn * self.length
        document_B = self._begins[np.searchsorted(self._begins, start_B, side="right") - 1]
        before_B = (start_B - np.maximum(stream_B, document_B)).astype(np.int32)
        rows = self._windows.rows(index_B)
        rows["positions"] += before_B[:, None] * (rows["segment_ids"] == 1)
        return rows


class TokenFile:
    """A split that was tokenised once: its stream as a memory-mapped file, and where its documents lie.

    Attributes:
        stream: the tokens `E d1 E d2 E ...`.
        token_offsets: where the first token of each document is in the stream, then the stream's length.
        byte_offsets: where the first byte of each document is in the split's text, then the text's length.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Opens what `tokenise` wrote to `folder` with the same tokenizer."""
        self.stream = np.asarray(np.memmap(folder / "tokens.raw", _dtype(tokenizer), mode="r"))
        self.token_offsets, self.byte_offsets = np.load(folder / "offsets.npy")


def tokenise(
    documents: Iterable[str], tokenizer: Tokenizer, folder: Path, while_waiting: Callable[[], object] = lambda: None
) -> TokenFile:
    """Returns the token file in `folder`, made once among all processes; the documents are streamed.

    After each second's work `while_waiting` is called, and may raise.
    """

    def make(partial: Path) -> None:
        _write(documents, tokenizer, partial, while_waiting)

    return TokenFile(make_once(folder, make, lambda made: _is_whole(made, tokenizer)), tokenizer)


def _is_whole(folder: Path, tokenizer: Tokenizer) -> bool:
    try:
        token_offsets, _ = np.load(folder / "offsets.npy")
        size = (folder / "tokens.raw").stat().st_size
    except (OSError, ValueError, EOFError):
        return False
    return size == token_offsets[-1] * _dtype(tokenizer).itemsize


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _write(documents: Iterable[str], tokenizer: Tokenizer, folder: Path, while_waiting: Callable[[], object]) -> None:
    folder.mkdir()
    dtype = _dtype(tokenizer)
    token_counts, byte_counts = array("q", [1]), array("q", [0])
    with open(folder / "tokens.raw", "wb") as file:
        file.write(dtype.type(tokenizer.end).tobytes())
        for texts in _chunks(documents):
            while_waiting()  # also where the tokenizer has no reason to
            for text, ids in zip(texts, tokenizer.encode_batch(texts, while_waiting), strict=True):
                file.write(np.append(ids, tokenizer.end).astype(dtype).tobytes())
                token_counts.append(len(ids) + 1)
                byte_counts.append(len(text.encode()))
    offsets = io.BytesIO()  # for NumPy forgets why a file could not be written
    np.save(offsets, np.cumsum([token_counts, byte_counts], axis=1))
    (folder / "offsets.npy").write_bytes(offsets.getvalue())


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for text in documents:
        texts.append(text)
        size += len(text)
        if size >= CHUNK:
            yield texts
            texts, size = [], 0
    yield texts
