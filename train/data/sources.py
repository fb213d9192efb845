"""Where documents come from: TFDS builders, prepared ArrayRecord folders, and one's own text files."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from model.errors import UserError
from train.data.files import quiet
from train.data.stdlib import stdlib_builder

SAMPLED = 256  # documents that are read to tell one prepared data set from another of the same name and version


class Source(Protocol):
    """Documents in splits."""

    def documents(self, split: str) -> Iterator[str]:
        """Yields the documents of a split, always in the same order."""

    def fingerprint(self, split: str) -> str:
        """Returns a hash of what a split holds."""

    def check(self, split: str, flag: str) -> None:
        """Raises UserError where there is no such split; `flag` is the key that chose it."""


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
                f"change --config.data.feature"
            )

    def check(self, split: str, flag: str) -> None:
        """Raises UserError where a split that is named does not exist; parts such as 'train[:90%]' do."""
        known = list(self._builder.info.splits)
        named = {part.strip().split("[")[0] for part in split.split("+")}
        if known and not named <= {*known, "all"}:
            raise UserError(
                f"{self._builder.info.full_name} has no split {split!r}, it has {', '.join(known)} (and "
                f"parts of them, as in 'train[:90%]'): change --config.data.{flag}"
            )

    def documents(self, split: str) -> Iterator[str]:
        """Yields the texts of a split in the order of its records."""
        rows = self._rows(split)
        for index in range(len(rows)):
            yield self._text(rows, index)

    def fingerprint(self, split: str) -> str:
        """Returns the sha256 of name, version, feature, split, size, and of up to `SAMPLED` texts."""
        rows = self._rows(split)
        digest = hashlib.sha256(repr((self._builder.info.full_name, self._feature, split, len(rows))).encode())
        for index in np.unique(np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int)):
            digest.update(hashlib.sha256(self._text(rows, int(index)).encode()).digest())
        return digest.hexdigest()

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
                f"prepare it with file_format='array_record' in another folder and set --config.data.dir"
            )
        return UserError(
            f"the split {split!r} of {info.full_name} cannot be read ({first_line(error)}): change "
            f"--config.data.train_split or --config.data.validation_split"
        )

    def _text(self, rows: Sequence[dict[str, Any]], index: int) -> str:
        value = rows[index][self._feature]
        try:
            return value if isinstance(value, str) else value.decode("utf-8")
        except (AttributeError, UnicodeDecodeError):
            raise UserError(
                f"feature {self._feature!r} of {self._builder.info.full_name} is no UTF-8 text in example {index}: "
                f"change --config.data.feature"
            ) from None


def tfds_source(name: str, folder: Path, feature: str) -> TfdsSource:
    """Returns the TFDS data set `name`: `python_stdlib`, a name that TFDS knows, or a prepared folder.

    A prepared folder is given by its path, or as it lies below `folder`, where a builder also finds its data.

    Raises:
        UserError: it cannot be had.
    """
    if name == "python_stdlib":
        return TfdsSource(stdlib_builder(folder), feature)
    for place in (Path(name).expanduser(), folder / name):
        if (place / "dataset_info.json").is_file():
            return TfdsSource(tfds.builder_from_directory(place), feature)
    if name.startswith(("/", ".", "~")):
        raise UserError(
            f"the folder {name} holds no prepared data set (no dataset_info.json): change --config.data.name"
        )
    try:
        with quiet():
            builder = tfds.builder(name, data_dir=folder)
    except (ValueError, ImportError) as error:  # an unknown name or config; a builder that needs TensorFlow
        raise unprepared(name, folder, first_line(error.__cause__ or error)) from None
    return TfdsSource(builder, feature)


def unprepared(name: str, folder: Path | str, reason: str) -> UserError:
    """Returns the refusal of a data set that is not there; a download may take hours, so it is never begun unasked."""
    command = (
        f'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{folder}', file_format='array_record').download_and_prepare()\""
    )
    return UserError(
        f"the data set {name!r} is not prepared in {folder} ({reason}): prepare it with `{command}`, or change "
        f"--config.data.name or --config.data.dir"
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 200 letters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
