"""Text that is both learned and asked: counted, and refused unless it is allowed."""

import dataclasses
import logging
from collections.abc import Iterable

from model.errors import UserError

log = logging.getLogger("heed")
Range = tuple[str, int, int]  # examples of a file: its name, the first, and the one after the last


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How much of the documents is told twice.

    Attributes:
        shared: documents of the validation split whose text the train split holds too.
        validation: documents of the validation split.
        repeated: documents of the train split whose text it holds before.
        example: one that is shared.
    """

    shared: int
    validation: int
    repeated: int
    example: str

    def check(self, allowed: bool) -> None:
        """Tells what is told twice, in a line of the log.

        Raises:
            UserError: the model would be asked what it has learned, and this is not allowed.
        """
        if self.repeated:
            log.warning("%d documents of the train split repeat the text of another.", self.repeated)
        if not self.shared:
            return
        told = (
            f"{self.shared} of the {self.validation} documents of the validation split are also in the train split "
            f"({self.example}), so that scores say what was learned by heart"
        )
        if not allowed:
            raise UserError(f"{told}: keep them apart by --config.data.path or the splits, or give --allow_overlap")
        log.warning("%s.", told)


def ranges_overlap(train: Iterable[Range], validation: Iterable[Range]) -> Overlap:
    """Returns the overlap of two splits that are given as ranges of examples of files."""
    learned, size = dict[str, list[tuple[int, int]]](), 0
    for file, start, stop in sorted(train):
        size += stop - start
        known = learned.setdefault(file, [])
        if known and start < known[-1][1]:
            start, stop = known[-1][0], max(stop, known.pop()[1])
        known.append((start, stop))
    asked = list(validation)
    parts = [
        (file, max(start, first), min(stop, last))
        for file, start, stop in asked
        for first, last in learned.get(file, [])
        if max(start, first) < min(stop, last)
    ]
    return Overlap(
        shared=sum(stop - start for _, start, stop in parts),
        validation=sum(stop - start for _, start, stop in asked),
        repeated=size - sum(stop - start for known in learned.values() for start, stop in known),
        example="examples {1} to {2} of {0}".format(*parts[0]) if parts else "",
    )
