"""One's own text files as a data set: `data.path='folder/*.txt'`."""

import codecs
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError
from train.data.finding import find_files
from train.data.overlap import Overlap

log = logging.getLogger("heed")
SPLITS = ("train", "validation")


class OwnText:
    """Text files, one document each; a tenth of them, by the sha256 of their relative paths, is validation.

    Where that leaves a split without text (few files), the text is split by position: its last tenth is validation.
    A file of nothing but whitespace is no text.

    Attributes:
        rule: how it is split, 'by file' or 'by position'.
    """

    def __init__(self, pattern: str, apart: Path | None = None) -> None:
        """Takes the pattern of `find_files` and the folder that it leaves out, and reads each file once.

        Raises:
            UserError: no file matches, or one cannot be read or is not UTF-8.
        """
        self._files, again = find_files(pattern, apart)
        if again:
            log.warning(
                "--config.data.path: links that lead to what is read anyway: %d, such as %s.", len(again), again[0]
            )
        self._hashes: dict[str, bytes] = {}
        self._lengths: dict[str, int] = {}
        self._told: set[str] = set()  # the files that hold more than whitespace
        for name, path in self._files.items():
            text = _read(path)
            self._hashes[name], self._lengths[name] = _hash(text), len(text)
            if text.strip():
                self._told.add(name)
        self.rule = "by file" if {_split_of(name) for name in self._told} == set(SPLITS) else "by position"

    def check(self, split: str, flag: str) -> None:
        """As `check_split`."""
        check_split(split, flag)

    def documents(self, split: str) -> Iterator[str]:
        """Yields the documents of a split, in the order of their paths.

        Raises:
            UserError: a file is no longer what it was.
        """
        for name, part in self._parts(split).items():
            text = _read(self._files[name])
            if _hash(text) != self._hashes[name]:
                raise UserError(f"{self._files[name]} was changed while it was read: start again when it rests.")
            yield text[part]

    def fingerprint(self, split: str) -> str:
        """Returns the sha256 of the rule, the split, and every path and text."""
        digest = hashlib.sha256(f"{self.rule} {split}".encode())
        for name, of_text in self._hashes.items():
            digest.update(_hash(name) + of_text)
        return digest.hexdigest()

    def overlap(self, train: str, validation: str) -> Overlap:
        """Returns how many documents share their text; of two splits by position, files of the same text."""
        learned: dict[bytes, list[str]] = {}
        for name in filter(self._told.__contains__, self._parts(train)):
            learned.setdefault(self._hashes[name], []).append(name)
        asked = {name: len(range(*part.indices(self._lengths[name]))) for name, part in self._parts(validation).items()}
        shared = {}
        for name in asked:
            # A file that is cut in two is its own twin, and its parts are not the same.
            twins = [twin for twin in learned.get(self._hashes[name], ()) if twin != name or train == validation]
            if twins:
                shared[name] = twins[0]
        return Overlap(
            shared=len(shared),
            validation=len(asked),
            repeated=sum(len(names) - 1 for names in learned.values()),
            example=next((f"{self._files[name]} is {self._files[twin]}" for name, twin in shared.items()), ""),
            characters=(sum(asked[name] for name in shared), sum(asked.values())),
        )

    def _parts(self, split: str) -> dict[str, slice]:
        """Returns which part of which file is a document of the split."""
        if self.rule == "by file":
            return {name: slice(None) for name in self._files if _split_of(name) == split}
        left = sum(self._lengths.values()) * 9 // 10
        parts = {}
        for name, length in self._lengths.items():
            cut = min(left, length)
            left -= cut
            if cut if split == "train" else cut < length:
                parts[name] = slice(0, cut) if split == "train" else slice(cut, length)
        return parts


def check_split(split: str, flag: str) -> None:
    """Raises UserError for a split that is neither 'train' nor 'validation'; `flag` is the key that chose it."""
    if split not in SPLITS:
        raise UserError(
            f"--config.data.{flag}={split!r} is not one of: {', '.join(SPLITS)}, as one's own text is split."
        )


def _split_of(name: str) -> str:
    return "validation" if int(_hash(name).hex()[:8], 16) % 10 == 0 else "train"


def _hash(text: str) -> bytes:
    """Returns the sha256 of a text, or of a file's name, which need not be UTF-8."""
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).digest()


def _read(path: Path) -> str:
    """Returns the text of a file, without a byte-order mark."""
    try:
        data = path.read_bytes()
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): change --config.data.path.") from None
    except UnicodeDecodeError as error:
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        kind = "UTF-16 or UTF-32, not UTF-8" if data.startswith(marks) else f"not UTF-8 at byte {error.start}"
        raise UserError(f"{path} is {kind}: convert it, or change --config.data.path.") from None
