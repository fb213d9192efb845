"""Where documents come from: TFDS builders, prepared ArrayRecord folders, and one's own text files."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError

from model.errors import UserError
from train.data.files import quiet
from train.data.overlap import Overlap, Range, ranges_overlap
from train.data.stdlib import stdlib_builder
from train.run.command import interpreter

SAMPLED = 256  # documents that are read to tell one prepared data set from another of the same name and version


class Source(Protocol):
    """Documents in splits."""

    def documents(self, split: str) -> Iterator[str]:
        """Yields the documents of a split, always in the same order."""

    def fingerprint(self, split: str) -> str:
        """Returns a hash of what a split holds."""

    def check(self, split: str, flag: str) -> None:
        """Raises UserError where there is no such split; `flag` is the key that chose it."""

    def overlap(self, train: str, validation: str) -> Overlap:
        """Returns what the two splits share."""


class TfdsSource:
    """The splits of a prepared TFDS builder, read by random access without TensorFlow."""

    def __init__(self, builder: tfds.core.DatasetBuilder, feature: str) -> None:
        """Takes a prepared builder and the name of the feature that holds the text.

        Raises:
            UserError: there is no such feature.
        """
        self._builder = builder
        self._feature = feature
        features = builder.info.features
        if feature not in features:
            raise UserError(
                f"{builder.info.full_name} has no feature {feature!r}, it has {', '.join(sorted(features))}: "
                "change --config.data.feature."
            )

    def check(self, split: str, flag: str) -> None:
        """Raises UserError where a split that is named does not exist; parts such as 'train[:90%]' do."""
        known = list(self._builder.info.splits)
        named = {part.strip().split("[")[0] for part in split.split("+")}
        if known and not named <= {*known, "all"}:
            raise UserError(
                f"{self._builder.info.full_name} has no split {split!r}, it has {', '.join(known)} (and "
                f"parts of them, as in 'train[:90%]'): change --config.data.{flag}."
            )

    def documents(self, split: str) -> Iterator[str]:
        """Yields the texts of a split in the order of its records."""
        rows = self._rows(split)
        for index in range(len(rows)):
            yield self._text(split, rows, index)

    def fingerprint(self, split: str) -> str:
        """Returns the sha256 of name, version, feature, split, size, and of up to `SAMPLED` texts."""
        rows = self._rows(split)
        digest = hashlib.sha256(repr((self._builder.info.full_name, self._feature, split, len(rows))).encode())
        for index in np.unique(np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int)):
            digest.update(hashlib.sha256(self._text(split, rows, int(index)).encode()).digest())
        return digest.hexdigest()

    def overlap(self, train: str, validation: str) -> Overlap:
        """Returns how many examples of the validation split lie in the train split, by their places in the files."""
        return ranges_overlap(self._ranges(train), self._ranges(validation))

    def _ranges(self, split: str) -> list[Range]:
        """Returns which examples of which files a split is made of, in its order."""
        rows, splits = self._rows(split), self._builder.info.splits
        if not splits:  # as those that `tfds.testing.mock_data` draws, which lie nowhere
            return [(split, 0, len(rows))]
        parts = splits[split].file_instructions
        return [(Path(part.filename).name, part.skip, part.skip + part.take) for part in parts]

    def _rows(self, split: str) -> Sequence[dict[str, Any]]:
        try:
            return self._builder.as_data_source(split=split)
        except (AssertionError, KeyError, NotImplementedError, ValueError) as error:
            raise self._refusal(split, error) from error

    def _refusal(self, split: str, error: Exception) -> UserError:
        info, folder = self._builder.info, self._builder.data_path
        if not self._builder.is_prepared():
            return unprepared(info.full_name, self._builder.data_dir_root, f"nothing is in {folder}")
        if isinstance(error, NotImplementedError):
            return UserError(
                f"{info.full_name} in {folder} is stored as {info.file_format.value}, which has no random access: "
                f"prepare it with file_format='array_record' in another folder and set --config.data.dir."
            )
        return UserError(
            f"the split {split!r} of {info.full_name} cannot be read ({first_line(error)}): change "
            "--config.data.train_split or --config.data.validation_split."
        )

    def _text(self, split: str, rows: Sequence[dict[str, Any]], index: int) -> str:
        try:
            value = rows[index][self._feature]
        except RuntimeError as error:  # of the reader of ArrayRecord
            raise self._damaged(split, index, first_line(error)) from error
        if value is None:  # what the reader finds in a file that was cut just so
            raise self._damaged(split, index, "no such record")
        try:
            return value if isinstance(value, str) else value.decode("utf-8")
        except (AttributeError, UnicodeDecodeError):
            raise UserError(
                f"feature {self._feature!r} of {self._builder.info.full_name} is no UTF-8 text in example {index}: "
                "change --config.data.feature."
            ) from None

    def _damaged(self, split: str, index: int, reason: str) -> UserError:
        folder, parts = self._builder.data_path, self._ranges(split)
        ends = np.cumsum([stop - start for _, start, stop in parts])
        file = parts[int(np.searchsorted(ends, index, side="right"))][0]
        return UserError(
            f"{folder}/{file} is missing or damaged at example {index} of {split!r} ({reason}): copy it "
            f"anew, or remove {folder} and prepare the data set again."
        )


def tfds_source(name: str, folder: Path, feature: str) -> TfdsSource:
    """Returns the TFDS data set `name`: `python_stdlib`, a name that TFDS knows, or a prepared folder.

    A prepared folder is given by its path, or as it lies below `folder`, where a builder also finds its data.

    Raises:
        UserError: it cannot be had.
    """
    if name == "python_stdlib":
        return TfdsSource(stdlib_builder(folder), feature)
    # By os.path: a Path raises for a name that is no file's, where this is False.
    for place in (Path(os.path.expanduser(name)), folder / name):
        if os.path.isfile(place / "dataset_info.json"):
            return TfdsSource(_builder_of(place), feature)
    if name.startswith(("/", ".", "~")):
        raise UserError(
            f"--config.data.name={name}: that folder holds no prepared data set (no dataset_info.json); give another."
        )
    try:
        with quiet():
            builder = tfds.builder(name, data_dir=folder)
    except (ValueError, ImportError, ParseError) as error:  # an unknown name or config; one that needs TensorFlow
        raise unprepared(name, folder, first_line(error.__cause__ or error)) from None
    return TfdsSource(builder, feature)


def _builder_of(folder: Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder_from_directory(folder)
    except (ValueError, ParseError) as error:  # of its JSON files
        raise UserError(
            f"the data set in {folder} is damaged ({first_line(error)}): copy dataset_info.json and features.json "
            "anew, or change --config.data.name."
        ) from None


def unprepared(name: str, folder: Path | str, reason: str) -> UserError:
    """Returns the refusal of a data set that is not there; a download may take hours, so it is never begun unasked."""
    command = (
        f'{interpreter()} -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record').download_and_prepare()\""
    )
    return UserError(
        f"--config.data.name={name!r} is not prepared in {folder} ({reason}): prepare it with `{command}`, or change "
        "--config.data.name or --config.data.dir."
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 letters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
