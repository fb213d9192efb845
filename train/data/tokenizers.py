"""Text to ids and back: bytes, and byte-level BPE. Every text comes back as it was; `end` stands for no text."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers as hf

from model.errors import UserError
from train.run.files.json_files import dumps

LONGEST = 512  # letters, or signs and spaces, without a break: what is longer is cut; source code has fewer than 200
PART = 2**18  # characters that are encoded by one core
CALL = 2**20  # characters that are encoded at once: a second's work, in which no signal is heard
_UNBROKEN = re.compile(rf"[^\W\d_]{{{LONGEST}}}|[\W_]{{{LONGEST}}}")
_BREAK = re.compile(r"[^\W_](?=\s)")  # after it every piece of the pattern ends


class Tokenizer:
    """What both tokenizers share: the bytes of each id.

    Attributes:
        vocab_size: ids are 0 <= id < vocab_size.
        end: the id that closes a document and opens the next; no text encodes to it.
        fingerprint: the same for two tokenizers only if they encode alike.
        marks: the last ids, by name: they stand for no text either, but for what a task does with it, such as masking.
    """

    def __init__(self, table: Sequence[bytes], end: int, fingerprint: str, marks: Sequence[str] = ()) -> None:
        self.marks = {name: len(table) + number for number, name in enumerate(marks)}
        self._bytes = dict(enumerate([*table, *[b""] * len(marks)]))  # a dict, so that a negative id is an error
        self.vocab_size = len(self._bytes)
        self.end = end
        self.fingerprint = "+".join([fingerprint, *marks])

    def with_marks(self, names: Sequence[str]) -> "Tokenizer":
        """Returns the same tokenizer with these marks."""
        return tokenizer_of(self._state() | {"marks": " ".join(names)})

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without `end`.

        Raises:
            UserError: the text holds a lone surrogate, which UTF-8 cannot write.
        """
        return self.encode_batch([text])[0].tolist()

    def encode_batch(
        self, texts: Sequence[str], while_waiting: Callable[[], object] = lambda: None
    ) -> list[np.ndarray]:
        """Returns one array of ids for each text; `while_waiting` is called about every second, and may raise."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; `end` is nothing, and bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._bytes[int(i)] for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """Returns the UTF-8 bytes, perhaps a part of a character, that an id stands for."""
        return self._bytes[int(id)]

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to one JSON file, which `load_tokenizer` reads."""
        marks = {"marks": " ".join(self.marks)} if self.marks else {}
        Path(path).write_text(dumps(self._state() | marks), encoding="utf-8")

    def _state(self) -> dict[str, str]:
        raise NotImplementedError


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids; `end` is 0xFF, which UTF-8 never uses."""

    def __init__(self, marks: Sequence[str] = ()) -> None:
        super().__init__([bytes([i]) for i in range(255)] + [b""], end=255, fingerprint="bytes", marks=marks)

    def encode_batch(
        self, texts: Sequence[str], while_waiting: Callable[[], object] = lambda: None
    ) -> list[np.ndarray]:
        """Returns the bytes of each text."""
        return [np.frombuffer(utf8(text), np.uint8) for text in texts]

    def _state(self) -> dict[str, str]:
        return {"kind": "bytes"}


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE over all 256 bytes, with neither normalisation nor special words; `end` is the last id."""

    def __init__(self, state: str, marks: Sequence[str] = ()) -> None:
        """Takes the JSON of a `tokenizers.Tokenizer` as `train_bpe` makes it."""
        self._state_json = state
        self._tokenizer = hf.Tokenizer.from_str(state)
        byte_of = {letter: byte for byte, letter in enumerate(letters())}
        vocab = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        table = [bytes(byte_of[letter] for letter in token) for token, _ in vocab]
        fingerprint = hashlib.sha256(state.encode()).hexdigest()
        super().__init__([*table, b""], end=len(table), fingerprint=fingerprint, marks=marks)

    def encode_batch(
        self, texts: Sequence[str], while_waiting: Callable[[], object] = lambda: None
    ) -> list[np.ndarray]:
        """Returns the ids of each text, which are encoded in parallel."""
        for text in texts:
            utf8(text)
        cut = [parts(text) for text in texts]
        ids = self._encode(list(itertools.chain.from_iterable(cut)), while_waiting)
        return [np.concatenate([np.zeros(0, np.int64), *itertools.islice(ids, len(some))]) for some in cut]

    def _encode(self, texts: list[str], while_waiting: Callable[[], object]) -> Iterator[np.ndarray]:
        starts = np.cumsum([0, *map(len, texts)]) // CALL
        for start in np.unique(starts[:-1]):
            while_waiting()
            some = texts[slice(*np.searchsorted(starts[:-1], [start, start + 1]))]
            for encoding in self._tokenizer.encode_batch_fast(some, add_special_tokens=False):
                yield np.array(encoding.ids, np.int64)

    def _state(self) -> dict[str, str]:
        return {"kind": "bpe", "tokenizer": self._state_json}


def utf8(text: str) -> bytes:
    """Returns the UTF-8 bytes of `text`.

    Raises:
        UserError: the text holds a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text holds {text[error.start]!a} at position {error.start}, a lone surrogate, which is "
            "no character of UTF-8: remove it from the text (--prompt, or the data)."
        ) from None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote to `path`."""
    return tokenizer_of(json.loads(Path(path).read_text(encoding="utf-8")))


def tokenizer_of(state: Mapping[str, str]) -> Tokenizer:
    """Returns the tokenizer whose JSON `Tokenizer.save` wrote."""
    marks = state.get("marks", "").split()
    return ByteTokenizer(marks) if state["kind"] == "bytes" else BytePairTokenizer(state["tokenizer"], marks)


def parts(text: str) -> list[str]:
    """Returns `text` cut into parts of which each is encoded, and learned from, by itself.

    Text with breaks is cut where a piece ends anyway, which changes no token. Stretches without any are cut too:
    training takes the square of their length, and the library's search for pieces gives up at ten million characters.
    """
    cuts = {at + LONGEST for at in range(0, len(text), LONGEST) if _UNBROKEN.match(text, at)}
    breaks = (_BREAK.search(text, at, at + PART) for at in range(PART, len(text), PART))
    cuts.update(found.end() for found in breaks if found)
    return [text[a:b] for a, b in itertools.pairwise(sorted(cuts | {0, len(text)}))]


def letters() -> list[str]:
    """Returns the printable letter that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in range(256 - len(plain)))
    return [chr(byte) if byte in plain else next(others) for byte in range(256)]
