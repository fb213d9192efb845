"""Output is not the run: what is shown may fail to be shown, and nothing else ends for it."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from model.errors import UserError


class ClosedOutput(BrokenPipeError):
    """Whoever read standard output has gone, as `head` does."""


class FullOutput(UserError):
    """Standard output cannot be written, such as a file on a full disk."""


class _Stream(io.RawIOBase):
    """The bytes of a file descriptor, written at once, so that nothing is left for Python's exit to fail on.

    What standard error cannot take (closed, full, a terminal that is gone) is dropped. So is that of standard output,
    unless it `matters`.
    """

    def __init__(self, number: int, matters: bool):
        self._number, self._matters = number, matters

    def write(self, data: "memoryview | bytes") -> int:  # type: ignore[override]
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._number, left) :]
        except BrokenPipeError as error:
            if self._matters:
                raise ClosedOutput(*error.args) from error
        except OSError as error:
            if self._matters:
                raise FullOutput(f"standard output cannot be written ({error.strerror}): give it a place.") from error
        return len(data)

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def writable(self) -> bool:
        return True


def open_streams() -> None:
    """Puts such streams in the place of the process's own standard output and standard error.

    A descriptor that is closed is opened on nothing first: the next file would get its number, and with it whatever a
    library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(sys.__stdout__, 1, matters=True)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(sys.__stderr__, 2, matters=False)


def _text(old: TextIO | None, number: int, matters: bool) -> TextIO:
    """Text that the terminal cannot write is shown by its numbers."""
    if old is not None:
        with contextlib.suppress(OSError):
            old.flush()
    encoding = old.encoding if old is not None else "utf-8"
    stream: Any = _Stream(number, matters)
    return io.TextIOWrapper(stream, encoding=encoding, errors="backslashreplace", line_buffering=True)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Inside, a command prints whose work is done and kept, whether anybody listens or not."""
    with contextlib.suppress(ClosedOutput, FullOutput):
        yield
