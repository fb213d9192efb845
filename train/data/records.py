"""Prepared TFDS data sets: found by name or folder, and read record by record, without TensorFlow."""

import difflib
import hashlib
import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from model.errors import UserError
from train.data.files import quiet
from train.data.overlap import Overlap, Range, ranges_overlap
from train.data.stdlib import stdlib_builder
from train.run.bucket.address import bucket_path, in_bucket
from train.run.bucket.objects import objects_of
from train.run.command import interpreter

SAMPLED = 256  # records that are read to tell one prepared data set from another of the same name and version
# Where TFDS keeps what it finds by name only once these are imported: its own loader stops before them, at a module
# that needs h5py.
ROOMS = ("text", "translate", "summarization")
# What is prepared without TensorFlow although its family is not: downloads that are no archives.
NO_ARCHIVE = ("glue/mrpc", "glue/ax")
ARCHIVES = ("glue", "imdb_reviews", "conll2003", "wmt", "lm1b", "ted_hrlr_translate", "para_crawl", "cnn_dailymail")

# What every machine can make (`stdlib.py`, and `EMBEDDED` of `examples/`), with a task that takes it.
CORPORA = {
    "python_stdlib": "language_model",
    "packages": "classification",
    "roles": "tagging",
    "questions": "span_qa",
    "numbers": "translation",
    "dates": "translation",
    "parity": "translation",
    "rationales": "rationale",
}


class Records:
    """The splits of a prepared TFDS builder, by random access."""

    def __init__(self, builder: tfds.core.DatasetBuilder) -> None:
        self.builder = builder

    @property
    def name(self) -> str:
        """What TFDS calls the data set."""
        return str(self.builder.info.full_name)

    def check(self, split: str, flag: str) -> None:
        """Raises UserError where a split that is named does not exist; parts such as 'train[:90%]' do."""
        known = list(self.builder.info.splits)
        named = {part.strip().split("[")[0] for part in split.split("+")}
        if known and not named <= {*known, "all"}:
            raise UserError(
                f"{self.name} has no split {split!r}, it has {', '.join(known)} (and parts of them, as in "
                f"'train[:90%]'): change --config.data.{flag}."
            )

    def rows(self, split: str) -> Sequence[dict[str, Any]]:
        """Returns the records of a split, which are read as they are asked for; `record` says what is wrong with one.

        Raises:
            UserError: the split cannot be read.
        """
        try:
            return self.builder.as_data_source(split=split)
        except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
            raise self._refusal(split, error) from error

    def record(self, split: str, rows: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
        """Returns record `index` of what `rows` gave for a split.

        Raises:
            UserError: its file is damaged.
        """
        try:
            found = rows[index]
        except RuntimeError as error:  # of the reader of ArrayRecord
            raise self._damaged(split, index, first_line(error)) from error
        if None in [value for value in found.values() if not isinstance(value, np.ndarray)]:
            raise self._damaged(split, index, "no such record")  # what the reader finds in a file that was cut just so
        return found

    def fingerprint(self, split: str, read: str, hashed: Callable[[int], str]) -> str:
        """Returns the sha256 of name, version, what is read, split, size, and of up to `SAMPLED` records as a text."""
        length = len(self.rows(split))
        digest = hashlib.sha256(repr((self.name, read, split, length)).encode())
        for index in sampled(length):
            digest.update(hashlib.sha256(hashed(index).encode()).digest())
        return digest.hexdigest()

    def overlap(self, train: str, validation: str) -> Overlap:
        """Returns how many examples of the validation split lie in the train split, by their places in the files."""
        return ranges_overlap(self._ranges(train), self._ranges(validation))

    def _damaged(self, split: str, index: int, reason: str) -> UserError:
        folder, parts = self.builder.data_path, self._ranges(split)
        ends = np.cumsum([stop - start for _, start, stop in parts])
        file = parts[int(np.searchsorted(ends, index, side="right"))][0]
        return UserError(
            f"{folder}/{file} is missing or damaged at example {index} of {split!r} ({reason}): copy it "
            f"anew, or remove {folder} and prepare the data set again."
        )

    def _ranges(self, split: str) -> list[Range]:
        """Returns which examples of which files a split is made of, in its order."""
        rows, splits = self.rows(split), self.builder.info.splits
        if not splits:  # as those that `tfds.testing.mock_data` draws, which lie nowhere
            return [(split, 0, len(rows))]
        parts = splits[split].file_instructions
        return [(Path(part.filename).name, part.skip, part.skip + part.take) for part in parts]

    def _refusal(self, split: str, error: Exception) -> UserError:
        info, folder = self.builder.info, self.builder.data_path
        if not self.builder.is_prepared():
            module = type(self.builder).__module__
            return unprepared(self.name, self.builder.data_dir_root, f"nothing is in {folder}", module)
        if isinstance(error, NotImplementedError):
            return UserError(
                f"{self.name} in {folder} is stored as {info.file_format.value}, which has no random access: "
                f"prepare it with file_format='array_record' in another folder and set --config.data.dir."
            )
        return UserError(
            f"the split {split!r} of {self.name} cannot be read ({first_line(error)}): change "
            "--config.data.train_split or --config.data.validation_split."
        )


def sampled(length: int) -> list[int]:
    """Returns up to `SAMPLED` indices, spread evenly over `length`."""
    return [int(index) for index in np.unique(np.linspace(0, length - 1, min(SAMPLED, length)).astype(int))]


def find_builder(name: str, folder: Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of the TFDS data set `name`: `python_stdlib`, a name that TFDS knows, or a prepared folder.

    A prepared folder is given by its path, by its address in a bucket, or as it lies below `folder`, where a builder
    also finds its data.

    Raises:
        UserError: it cannot be had.
    """
    if name == "python_stdlib":
        return stdlib_builder(folder)
    if in_bucket(name, "--config.data.name"):
        if objects_of(name, "--config.data.name").read("dataset_info.json") is None:
            raise UserError(f"--config.data.name={name}: no prepared data set is there (no dataset_info.json).")
        return _builder_of(bucket_path(name))
    # By os.path: a Path raises for a name that is no file's, where this is False.
    for place in (Path(os.path.expanduser(name)), folder / name):
        if os.path.isfile(place / "dataset_info.json"):
            return _builder_of(place)
    if name.startswith(("/", ".", "~")):
        raise UserError(
            f"--config.data.name={name}: that folder holds no prepared data set (no dataset_info.json); give another."
        )
    try:
        with quiet():
            for room in ROOMS:
                importlib.import_module(f"tensorflow_datasets.{room}")
            return tfds.builder(name, data_dir=folder)
    except (ValueError, ImportError, ParseError) as error:  # an unknown name or config; one that needs TensorFlow
        raise unprepared(name, folder, first_line(error.__cause__ or error)) from None


def _builder_of(folder: Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder_from_directory(folder)
    except (ValueError, ParseError) as error:  # of its JSON files
        raise UserError(
            f"the data set in {folder} is damaged ({first_line(error)}): copy dataset_info.json and features.json "
            "anew, or change --config.data.name."
        ) from None


def unprepared(name: str, folder: Path | str, reason: str, module: str = "") -> UserError:
    """Returns the refusal of a data set that is not there; a download may take hours, so it is never begun unasked.

    `module` is that of its builder, where it was found.
    """
    if name in CORPORA:
        return UserError(
            f"--config.data.name={name!r} holds examples for --config.task={CORPORA[name]}, and no text: take that "
            "task, or change --config.data.name."
        )
    near = difflib.get_close_matches(name, CORPORA, n=1, cutoff=0.75)
    meant = f": the nearest corpus that is made here is {near[0]!r}; as a TFDS set it" if near else ""
    base = name.split(":")[0]
    of_archives = base.startswith(ARCHIVES) and not base.startswith(NO_ARCHIVE)
    where = (
        ", where TensorFlow is installed (it unpacks the archives; to read them it is not needed),"
        if of_archives
        else ""
    )
    room = next((f"tensorflow_datasets.{room}, " for room in ROOMS if f".{room}." in module), "")
    command = (
        f'{interpreter()} -c "import {room}tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record').download_and_prepare()\""
    )
    return UserError(
        f"--config.data.name={name!r}{meant} is not prepared in {folder} ({reason}): prepare it{where} with "
        f"`{command}`, or change --config.data.name or --config.data.dir."
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 letters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
