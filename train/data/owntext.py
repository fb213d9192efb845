"""One's own text files as a data set: `data.path='folder/*.txt'`."""

import glob
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError

SPLITS = ("train", "validation")


class OwnText:
    """Text files, one document each; a tenth of them, by the sha256 of their relative paths, is validation.

    Where that leaves a split empty (few files), the text is split by position: its last tenth is validation.

    Attributes:
        rule: how it is split, 'by file' or 'by position'.
    """

    def __init__(self, pattern: str) -> None:
        """Takes a glob, in which `**` stands for any folders.

        Raises:
            UserError: no file matches, or one is not UTF-8.
        """
        root = _fixed_folder(os.path.expanduser(pattern))
        paths = sorted(map(Path, glob.glob(os.path.expanduser(pattern), recursive=True)))
        self._files = {path.relative_to(root).as_posix(): path for path in paths if path.is_file()}
        if not self._files:
            raise UserError(f"data.path={pattern!r} matches no file: change --config.data.path")
        self.rule = "by file" if {_split_of(name) for name in self._files} == set(SPLITS) else "by position"
        self._cut = sum(map(len, self._texts())) * 9 // 10 if self.rule == "by position" else 0
        logging.getLogger(__name__).info("%s: %d files, split %s", pattern, len(self._files), self.rule)

    def check(self, split: str, flag: str) -> None:
        """Raises UserError for a split that is neither 'train' nor 'validation'."""
        if split not in SPLITS:
            raise UserError(
                f"one's own text has no split {split!r}, it has train and validation: change --config.data.{flag}"
            )

    def documents(self, split: str) -> Iterator[str]:
        """Yields the documents of a split, in the order of their paths."""
        if self.rule == "by file":
            return (_read(path) for name, path in self._files.items() if _split_of(name) == split)
        return self._by_position(split)

    def fingerprint(self, split: str) -> str:
        """Returns the sha256 of the rule, the split, and every path and text."""
        digest = hashlib.sha256(f"{self.rule} {split}".encode())
        for name, text in zip(self._files, self._texts(), strict=True):
            digest.update(hashlib.sha256(name.encode()).digest() + hashlib.sha256(text.encode()).digest())
        return digest.hexdigest()

    def _texts(self) -> Iterator[str]:
        return map(_read, self._files.values())

    def _by_position(self, split: str) -> Iterator[str]:
        start = 0
        for text in self._texts():
            cut = max(self._cut - start, 0)
            part = text[:cut] if split == "train" else text[cut:]
            start += len(text)
            if part:
                yield part


def _fixed_folder(pattern: str) -> Path:
    """Returns the folders before the first wildcard: paths below it are the same wherever the text lies."""
    parts = Path(pattern).parts
    wild = [glob.has_magic(part) for part in parts[:-1]]
    return Path(*parts[: wild.index(True) if True in wild else len(parts) - 1])


def _split_of(name: str) -> str:
    return "validation" if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10 == 0 else "train"


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {error.start}: convert it, or change --config.data.path"
        ) from None
