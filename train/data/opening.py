"""One call from a config to windows: `open_data(config.data)`."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from model.errors import Range, UserError, check_ranges
from model.layers import choose
from train.data.files import make_folder
from train.data.owntext import OwnText, check_split
from train.data.pipeline import RANGES
from train.data.sources import Source, tfds_source
from train.data.tokenizers import ByteTokenizer, Tokenizer
from train.data.training import cached_bpe
from train.data.windows import SomeWindows, TokenFile, Windows, tokenise
from train.run.files.disk import remove_empty

TOKENIZERS = ("bpe", "bytes")


class Data:
    """A data set with its tokenizer.

    Attributes:
        tokenizer: text to ids and back.
        length: T, of the windows.
        fingerprint: a hash of the text of both splits and of the tokenizer.
        overlap: what of it is told twice.
    """

    names: tuple[str, ...] = ()  # of labels, which text has not

    def __init__(
        self,
        source: Source,
        splits: dict[str, str],
        tokenizer: Tokenizer,
        length: int,
        cache: Path,
        while_waiting: Callable[[], object],
    ) -> None:
        """Takes the source, its names of our 'train' and 'validation', and the folder of token files."""
        self._while_waiting = while_waiting
        self._source = source
        self._splits = splits
        self._cache = cache
        self._files: dict[str, TokenFile] = {}
        self.tokenizer = tokenizer
        self.length = length
        self._fingerprints = {split: source.fingerprint(name) for split, name in splits.items()}
        self.fingerprint = hashlib.sha256(
            "".join([*self._fingerprints.values(), tokenizer.fingerprint]).encode()
        ).hexdigest()
        self.overlap = source.overlap(splits["train"], splits["validation"])

    def described(self) -> dict[str, Any]:
        """Returns what a passport says of it."""
        return {"fingerprint": self.fingerprint, **self.overlap.described()}

    def windows(self, split: str, times: int = 1) -> Windows:
        """Returns the windows of 'train' or 'validation', tokenised the first time, or such as are `times` as long.

        Raises:
            UserError: the split holds fewer tokens than one window.
        """
        stream = self._tokens(split).stream
        if len(stream) - 1 < self.length:
            raise UserError(
                f"the split {self._splits[split]!r} holds {len(stream) - 1} tokens, fewer than one window "
                f"of --config.data.length={self.length}: lower it, or add text."
            )
        return Windows(stream, self.tokenizer.end, self.length * times, int(self.byte_offsets(split)[-1]))

    def measured(self, count: int, times: int = 1) -> Windows:
        """Returns the windows of 'validation' of an evaluation: all (0), or `count` spread evenly over them."""
        windows = self.windows("validation", times)
        if not 0 < count < len(windows):
            return windows
        bytes_V = np.array([len(self.tokenizer.token_bytes(token)) for token in range(self.tokenizer.vocab_size)])
        return SomeWindows(windows, count, bytes_V)

    def tokens(self, split: str) -> np.ndarray:
        """Returns the tokens `E d1 E d2 E ...` of 'train' or 'validation'."""
        return self._tokens(split).stream

    def token_offsets(self, split: str) -> np.ndarray:
        """Returns where each document begins in `tokens(split)`, and at last its length: int64, documents + 1."""
        return self._tokens(split).token_offsets

    def documents(self, split: str) -> Iterator[str]:
        """Yields the documents of 'train' or 'validation' in their order."""
        return self._source.documents(self._splits[split])

    def text(self, split: str) -> bytes:
        """Returns the UTF-8 bytes of all documents of a split, end to end; `byte_offsets` says where each begins."""
        return b"".join(document.encode() for document in self.documents(split))

    def byte_offsets(self, split: str) -> np.ndarray:
        """Returns where each document begins in `text(split)`, and at last its length: int64, documents + 1."""
        return self._tokens(split).byte_offsets

    def _tokens(self, split: str) -> TokenFile:
        if split not in self._files:
            name = f"tokens-{self._fingerprints[split][:16]}-{self.tokenizer.fingerprint[:16]}"
            self._files[split] = tokenise(
                self.documents(split), self.tokenizer, self._cache / name, self._while_waiting
            )
        return self._files[split]


def open_data(
    config: ConfigDict,
    tokenizer: Tokenizer | None = None,
    *,
    marks: Sequence[str] = (),
    allow_overlap: bool = False,
    while_waiting: Callable[[], object] = lambda: None,
) -> Data:
    """Returns the data set that `config.data` names, prepared if it was not yet.

    Without a `tokenizer` it has that of the config, trained if it was not yet, with these marks besides; a run that has
    begun brings its own.
    While one is trained, or text is tokenised, `while_waiting` is called about every second, and may raise.

    Raises:
        UserError: a value cannot be used, the data set cannot be had, or its splits overlap and may not.
    """
    check_data(config)
    folder = data_folder(config.dir)
    cache = folder / "heed"
    made = make_folder(folder)
    made = make_folder(cache) + made
    try:
        source = _source(config, folder, cache)
        source.overlap(config.train_split, config.validation_split).check(allow_overlap)
    except UserError:
        remove_empty(made)
        raise
    if tokenizer is None:
        tokenizer = ByteTokenizer()
        if config.tokenizer == "bpe":
            fingerprint = source.fingerprint(config.train_split)
            documents = source.documents(config.train_split)
            tokenizer = cached_bpe(documents, config.vocab_size, fingerprint, cache, while_waiting)
        tokenizer = tokenizer.with_marks(marks)
    splits = {"train": config.train_split, "validation": config.validation_split}
    return Data(source, splits, tokenizer, config.length, cache, while_waiting)


def _source(config: ConfigDict, folder: Path, cache: Path) -> Source:
    source: Source = OwnText(config.path, cache) if config.path else tfds_source(config.name, folder, config.feature)
    source.check(config.train_split, "train_split")
    source.check(config.validation_split, "validation_split")
    return source


def data_folder(folder: str) -> Path:
    """Returns the folder of prepared data sets: `folder`, or where TFDS keeps them ($TFDS_DATA_DIR).

    Raises:
        UserError: `folder` is a URL.
    """
    if "://" in folder:
        raise UserError(
            f"--config.data.dir={folder!r} is no folder of this machine: give one; what is prepared in a bucket "
            "is --config.data.name=gs://BUCKET/FOLDER."
        )
    return Path(os.path.expanduser(folder or tfds.core.constants.DATA_DIR)).absolute()


def check_data(config: ConfigDict) -> None:
    """Refuses what needs no look at the data.

    Raises:
        UserError: a number out of its range, a tokenizer that there is not, or a split that one's own text has not.
    """
    check_ranges("config.data", config, RANGES)
    choose(dict.fromkeys(TOKENIZERS), config.tokenizer, "data.tokenizer")
    if config.tokenizer == "bpe":  # the bytes, and the end of a document
        check_ranges("config.data", config, {"vocab_size": Range(257, 2**24)})
    if config.path:
        for flag in ("train_split", "validation_split"):
            check_split(config[flag], flag)
