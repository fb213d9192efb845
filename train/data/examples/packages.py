"""Classification: which package of the standard library is this snippet from?"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from model.errors import UserError
from train.data.examples.types import Labelled, Made
from train.data.stdlib import source_files

# Those of at least 6 files that Python 3.11, 3.12 and 3.13 all have, but for `encodings`, whose files are near-twins.
PACKAGES = (
    "asyncio",
    "ctypes",
    "email",
    "importlib",
    "multiprocessing",
    "tkinter",
    "turtledemo",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
)
LINES = 8  # of a snippet; blank ones are dropped, and so are those that hold the package's own name
STRIDE = 2  # lines between the beginnings of two snippets of training; those of validation share no line
VALIDATION = 0.25  # of the files of each package


def packages(
    folder: Path,
    among: tuple[str, ...] = PACKAGES,
    lines: int = LINES,
    stride: int = STRIDE,
    while_waiting: Callable[[], object] = lambda: None,
) -> Made:
    """Returns snippets of the library in `folder`, each labelled by the one `among` these packages that it is from.

    Within each package the files are ordered by the sha256 of their path, and the first quarter, of those that hold a
    snippet, is validation: so every package is in both splits.

    Raises:
        UserError: a package has not enough files.
    """
    files: dict[str, list[tuple[str, list[str]]]] = {name: [] for name in among}
    for path, text in source_files(folder):
        while_waiting()
        name = path.split("/")[0]
        if "/" in path and name in files:
            kept = [line for line in text.split("\n") if line.strip() and name not in line.lower()]
            if len(kept) >= lines:
                files[name].append((path, kept))
    splits: dict[str, list[Labelled]] = {"train": [], "validation": []}
    for name, known in files.items():
        if len(known) < 2:
            raise UserError(
                f"the package {name!r} has {len(known)} files of {lines} lines in {folder}, and at least 2 are needed, "
                "one for each split: leave it out of the packages."
            )
        known.sort(key=lambda file: hashlib.sha256(file[0].encode()).digest())
        first = max(1, round(VALIDATION * len(known)))
        for rank, (_, kept) in enumerate(known):
            split, step = ("validation", lines) if rank < first else ("train", stride)
            starts = range(0, len(kept) - lines + 1, step)
            splits[split] += [Labelled("\n".join(kept[at : at + lines]), name) for at in starts]
    held_out = {one.text for one in splits["validation"]}  # a few lines, such as a license's, stand in several files
    splits["train"] = [one for one in splits["train"] if one.text not in held_out]
    return Made(splits)
