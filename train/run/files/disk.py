"""A full disk is told in one sentence, wherever something is written."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class FullDisk(UserError):
    """The disk is full; the libraries' threads will complain of it, too."""


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
