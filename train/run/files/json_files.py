"""JSON that every reader reads: `NaN` and `Infinity` are no JSON, so what is not finite is written as null.

The one place that writes JSON. Losses and parameters that are not finite end a run before they get here; null is left
for what may overflow beside a finite loss, such as a perplexity.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

log = logging.getLogger("heed")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # missing, cut, not UTF-8, or JSON of something else


def finite(value: Any) -> Any:
    """The value with None for each number in it that is not finite."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON text; null stands for what is not finite."""
    return json.dumps(finite(value), indent=indent, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is not JSON; `NaN` and `Infinity` are not.
    """
    return json.loads(text, parse_constant=_refuse)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def read_lines(file: Path) -> tuple[list[dict[str, Any]], list[tuple[int, bytes]]]:
    """The lines of a metrics.jsonl, and (number, bytes) of those that are none: torn, empty, or without a step.

    A last line without its newline counts if it is whole. A file that is missing has no lines.
    """
    data = file.read_bytes() if file.is_file() else b""
    pieces = data.split(b"\n")
    good: list[dict[str, Any]] = []
    bad: list[tuple[int, bytes]] = []
    for number, piece in enumerate(pieces if pieces[-1] else pieces[:-1], 1):
        try:
            line = loads(piece)
            if type(line["step"]) is not int:
                raise ValueError("its step is no whole number")
            good.append(line)
        except _UNREADABLE:
            bad.append((number, piece))
    return good, bad


def read_checked(file: Path, check: Callable[[Any], object]) -> Any:
    """The value of a JSON file, which `check` has looked at.

    Raises:
        ValueError: it cannot be read, is not JSON, or `check` raised; in one line.
    """
    try:
        value = loads(file.read_bytes())
        check(value)
    except _UNREADABLE as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return value


def read_cache(file: Path, check: Callable[[Any], object]) -> Any:
    """The value of a file that can be made again; None where it is missing, or damaged, which is said and set aside."""
    if not file.exists():
        return None
    try:
        return read_checked(file, check)
    except ValueError as error:
        log.warning("%s is damaged (%s): it is kept as %s, and made anew.", file, error, set_aside(file).name)
        return None


def write(file: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    _write(file, [dumps(value, indent=2)])


def write_lines(file: Path, values: Iterable[Any]) -> None:
    """Writes a JSONL file, a value a line, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    _write(file, map(dumps, values))


def _write(file: Path, texts: Iterable[str]) -> None:
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        with open(new, "w", encoding="utf-8") as lines:
            lines.writelines(f"{text}\n" for text in texts)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


def set_aside(file: Path) -> Path:
    """Renames a damaged file to `broken-<name>`, with a number where that exists; returns the new path."""
    return file.rename(free_name(file, "broken"))


def free_name(file: Path, prefix: str) -> Path:
    """`<prefix>-<name>` beside a file or folder, with a number where that exists."""
    names = (f"{prefix}-{file.stem}{n}{file.suffix}" for n in ("", *(f"-{i}" for i in range(2, 1000))))
    return next(file.with_name(name) for name in names if not file.with_name(name).exists())


def check_numbers(value: Any) -> None:
    """Raises ValueError for anything but names and finite numbers."""
    if not (isinstance(value, dict) and all(type(one) in (int, float) for one in value.values())):
        raise ValueError("it does not hold names and numbers")
