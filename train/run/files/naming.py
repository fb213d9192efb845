"""Names of files and folders that cannot be used, told before anything is looked for under them."""

import os
from pathlib import Path

from model.errors import UserError

_PART, _WHOLE = 240, 3500  # bytes; Linux takes 255 and 4095, of which names made from these need some
_SHOWN = 60  # letters of a name that a sentence repeats
_GLOB = "*?["


def check_length(flag: str, name: str | Path) -> None:
    """Refuses a name that no file system takes.

    Raises:
        UserError: a part of it, or all of it, is too long.
    """
    parts = [len(part) for part in os.fsencode(name).split(b"/")]
    shown = f"{flag}={name}"[: len(flag) + 1 + _SHOWN]
    if max(parts) > _PART:
        raise UserError(
            f"{shown}... has {max(parts)} bytes between two slashes: give a name that has at most {_PART} there."
        )
    whole = len(os.fsencode(Path(name).absolute()))
    if whole > _WHOLE:
        raise UserError(f"{shown}... is {whole} bytes long: give a name of at most {_WHOLE}, its folders included.")


def check_run_name(path: Path) -> None:
    """Refuses an absolute path under which Orbax would lose checkpoints: it looks for them as for a pattern.

    Raises:
        UserError: the path is too long, no UTF-8, or holds a letter that means something in a pattern.
    """
    check_length("--workdir", path)
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--workdir={str(path)!r} is not UTF-8, as checkpoints need: give another folder.") from error
    found = [letter for letter in _GLOB if letter in str(path)]
    if found:
        raise UserError(
            f"--workdir={path} holds {' and '.join(found)}, under which checkpoints are not found again: give a folder"
            f" whose whole path is without {', '.join(_GLOB)}."
        )
