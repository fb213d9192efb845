"""Where documents come from: TFDS builders, prepared ArrayRecord folders, and one's own text files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds

from model.errors import UserError
from train.data.overlap import Overlap
from train.data.records import Records, find_builder


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
    """The texts of a prepared TFDS data set."""

    def __init__(self, builder: tfds.core.DatasetBuilder, feature: str) -> None:
        """Takes a prepared builder and the name of the feature that holds the text.

        Raises:
            UserError: there is no such feature.
        """
        self._records = Records(builder)
        self._feature = feature
        features = builder.info.features
        if feature not in features:
            raise UserError(
                f"{builder.info.full_name} has no feature {feature!r}, it has {', '.join(sorted(features))}: "
                "change --config.data.feature."
            )

    def check(self, split: str, flag: str) -> None:
        """Raises UserError where a split that is named does not exist; parts such as 'train[:90%]' do."""
        self._records.check(split, flag)

    def documents(self, split: str) -> Iterator[str]:
        """Yields the texts of a split in the order of its records."""
        rows = self._records.rows(split)
        for index in range(len(rows)):
            yield self._text(split, rows, index)

    def fingerprint(self, split: str) -> str:
        """Returns the sha256 of name, version, feature, split, size, and of up to `SAMPLED` texts."""
        rows = self._records.rows(split)
        return self._records.fingerprint(split, self._feature, lambda index: self._text(split, rows, index))

    def overlap(self, train: str, validation: str) -> Overlap:
        """Returns how many examples of the validation split lie in the train split, by their places in the files."""
        return self._records.overlap(train, validation)

    def _text(self, split: str, rows: Sequence[dict[str, Any]], index: int) -> str:
        value = self._records.record(split, rows, index)[self._feature]
        try:
            return value if isinstance(value, str) else value.decode("utf-8")
        except (AttributeError, UnicodeDecodeError):
            raise UserError(
                f"feature {self._feature!r} of {self._records.name} is no UTF-8 text in example {index}: "
                "change --config.data.feature."
            ) from None


def tfds_source(name: str, folder: Path, feature: str) -> TfdsSource:
    """Returns the texts of the TFDS data set that `find_builder` finds.

    Raises:
        UserError: it cannot be had.
    """
    return TfdsSource(find_builder(name, folder), feature)
