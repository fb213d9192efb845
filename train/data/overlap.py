"""Text that is both learned and asked: counted, and refused from a hundredth of the validation text on.

A license that opens two files is no reason to refuse, a document that was copied is.
"""

import dataclasses
import logging
from collections.abc import Iterable
from typing import Any

from model.errors import UserError

log = logging.getLogger("heed")
REFUSED = 0.01  # from this share of the validation text on; scores hardly feel less
Range = tuple[str, int, int]  # examples of a file: its name, the first, and the one after the last


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How much of the documents is told twice.

    Attributes:
        shared: documents of the validation split whose text the train split holds too; such as hold but whitespace are
            not counted.
        validation: documents of the validation split.
        repeated: documents of the train split whose text it holds before.
        example: one that is shared.
        characters: of the shared documents and of the validation split; None where only places are compared, and no
            text is read.
    """

    shared: int
    validation: int
    repeated: int
    example: str
    characters: tuple[int, int] | None = None

    @property
    def share(self) -> float:
        """How much of the validation split is shared: of its characters, or of its documents where these are unread."""
        part, whole = self.characters or (self.shared, self.validation)
        return part / max(whole, 1)

    def described(self) -> dict[str, Any]:
        """Returns what a passport says of it."""
        counts: dict[str, Any] = {"documents": self.shared, "of": self.validation}
        if self.characters:
            counts |= {"characters": self.characters[0], "of_characters": self.characters[1]}
        return {"overlap": counts, "repeated": self.repeated}

    def check(self, allowed: bool) -> None:
        """Tells what is told twice, in a line of the log.

        Raises:
            UserError: a share of `REFUSED` or more of what the model would be asked is what it has learned, and this is
                not allowed.
        """
        if self.repeated:
            log.warning("%d documents of the train split repeat the text of another.", self.repeated)
        if not self.shared:
            return
        unit = "characters" if self.characters else "examples"
        told = (
            f"{self.shared} of the {self.validation} documents of the validation split are also in the train split "
            f"({self.example}), {self.share:.2%} of its {unit}"
        )
        if self.share < REFUSED:
            log.warning("%s: it is refused only from %.0f%% on.", told, 100 * REFUSED)
        elif allowed:
            log.warning("%s, so that scores say what was learned by heart.", told)
        else:
            raise UserError(
                f"{told}, so that scores say what was learned by heart: keep them apart (below {REFUSED:.0%} is not "
                f"refused) by --config.data.path or the splits, or give --allow_overlap."
            )


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
