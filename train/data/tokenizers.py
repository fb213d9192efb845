"""Text to ids and back: bytes, and byte-level BPE. Every text comes back as it was; `end` stands for no text."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers as hf

from model.errors import UserError
from train.data.files import make_once

# The pieces inside which bytes may be joined: blank lines with the signs before them and the indentation after them;
# a word with the space or sign before it; up to three digits; signs; other spaces. Other patterns: see the README.
PATTERN = r"[^\s\p{L}\p{N}]*\s*\n[ \t]*|[^\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
TRAINING_BYTES = 2**28  # of the train split's beginning (TFDS shuffles at preparation); more text changes little


class Tokenizer:
    """What both tokenizers share: the bytes of each id.

    Attributes:
        vocab_size: ids are 0 <= id < vocab_size.
        end: the id that closes a document and opens the next; no text encodes to it.
        fingerprint: the same for two tokenizers only if they encode alike.
    """

    def __init__(self, table: Sequence[bytes], end: int, fingerprint: str) -> None:
        self._bytes = dict(enumerate(table))  # a dict, so that a negative id is an error
        self.vocab_size = len(table)
        self.end = end
        self.fingerprint = fingerprint

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without `end`.

        Raises:
            UserError: the text holds a lone surrogate, which UTF-8 cannot write.
        """
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns one array of ids for each text."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; `end` is nothing, and bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self._bytes[int(i)] for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """Returns the UTF-8 bytes, perhaps a part of a character, that an id stands for."""
        return self._bytes[int(id)]

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to one JSON file, which `load_tokenizer` reads."""
        Path(path).write_text(json.dumps(self._state()), encoding="utf-8")

    def _state(self) -> dict[str, str]:
        raise NotImplementedError


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as ids; `end` is 0xFF, which UTF-8 never uses."""

    def __init__(self) -> None:
        super().__init__([bytes([i]) for i in range(255)] + [b""], end=255, fingerprint="bytes")

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the bytes of each text."""
        return [np.frombuffer(utf8(text), np.uint8) for text in texts]

    def _state(self) -> dict[str, str]:
        return {"kind": "bytes"}


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE over all 256 bytes, with neither normalisation nor special words; `end` is the last id."""

    def __init__(self, state: str) -> None:
        """Takes the JSON of a `tokenizers.Tokenizer` as `train_bpe` makes it."""
        self._state_json = state
        self._tokenizer = hf.Tokenizer.from_str(state)
        byte_of = {letter: byte for byte, letter in enumerate(_letters())}
        vocab = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        table = [bytes(byte_of[letter] for letter in token) for token, _ in vocab]
        fingerprint = hashlib.sha256(state.encode()).hexdigest()
        super().__init__([*table, b""], end=len(table), fingerprint=fingerprint)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the ids of each text, which are encoded in parallel."""
        for text in texts:
            utf8(text)
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

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
            f"no character of UTF-8: remove it from the text (--prompt, or the data)"
        ) from None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote to `path`."""
    state = json.loads(Path(path).read_text(encoding="utf-8"))
    return ByteTokenizer() if state["kind"] == "bytes" else BytePairTokenizer(state["tokenizer"])


def cached_bpe(documents: Iterable[str], vocab_size: int, fingerprint: str, folder: Path) -> BytePairTokenizer:
    """Returns the BPE of `documents`, whose `fingerprint` is known, trained once and kept in `folder`."""
    recipe = json.dumps([fingerprint, vocab_size, PATTERN, TRAINING_BYTES, hf.__version__])
    name = f"bpe-{vocab_size}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.json"
    path = make_once(folder / name, lambda path: train_bpe(documents, vocab_size).save(path))
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer


def train_bpe(documents: Iterable[str], vocab_size: int) -> BytePairTokenizer:
    """Returns a BPE of at most `vocab_size` ids, `end` included; fewer where the text has no more pairs to join."""
    tokenizer = hf.Tokenizer(hf.models.BPE())
    split = hf.pre_tokenizers.Split(hf.Regex(PATTERN), "isolated")
    letters = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Sequence([split, letters])
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=_letters(), min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(_beginning(documents), trainer)
    return BytePairTokenizer(tokenizer.to_str())


def _beginning(documents: Iterable[str]) -> Iterator[str]:
    taken = 0
    for text in documents:
        yield text
        taken += len(text.encode())
        if taken >= TRAINING_BYTES:
            return


def _letters() -> list[str]:
    """Returns the printable letter that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in range(256 - len(plain)))
    return [chr(byte) if byte in plain else next(others) for byte in range(256)]
