"""Folders that are made and taken back, and a full disk, told in one sentence wherever something is written."""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from model.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class FullDisk(UserError):
    """The disk is full; the libraries' threads will complain of it, too."""


def make_folders(folder: Path) -> list[Path]:
    """Makes a folder with its parents, and returns those that were not there, the innermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes those of the folders, the innermost first, in which nothing is."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def full_disk(path: Path, flag: str = "--workdir") -> Iterator[None]:
    """Turns the errors of a full disk into a FullDisk, which names the flag that chose `path`; leaves all others."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # TensorStore and ArrayRecord give the system's text alone
        codes = {os.strerror(code) for code in NO_SPACE}
        if getattr(error, "errno", None) in NO_SPACE or any(text in str(error) for text in codes):
            raise FullDisk(
                f"{flag}: the disk under {path} is full; what was saved before is intact: "
                f"make room and start again, or give another {flag}."
            ) from error
        raise
