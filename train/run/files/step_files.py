"""The files of a checkpoint's folder, `<step>/`: which steps there are, what they note, and whether they are whole."""

import logging
import zlib
from pathlib import Path
from typing import Any

from train.run.bucket.address import in_bucket
from train.run.bucket.objects import objects_of
from train.run.files.json_files import check_numbers, dumps, read_checked

log = logging.getLogger("heed")
FILES = "files.json"  # size and checksum of every file that is needed
ITEM, SCORE = (
    "run",
    "score",
)  # an item of the checkpoint, {name of a file of the run: its value}, and what it holds besides
COMMITTED = "commit_success.txt"  # Orbax's mark of a step, or of an item, that is whole
_NEEDED = "state/", "extra/"
_SUMMED = 2**16  # bytes of a file that are summed up: all of what Orbax notes down, of which one may be altered unseen
NOTES = f"{ITEM}/metadata"  # where Orbax writes that item


def saved_steps(folder: Path) -> list[int]:
    """The steps in a folder of checkpoints, oldest first."""
    found = [path for path in folder.glob("[0-9]*") if path.name.isdigit()]
    if in_bucket(folder):
        found = [path for path in found if (path / COMMITTED).exists()]
    return sorted(int(path.name) for path in found)


def score_of(folder: Path) -> dict[str, float]:
    """{name: score} of a step, where it has one and its note can be read."""
    try:
        return dict(read_checked(folder / NOTES, lambda notes: check_numbers(notes[SCORE]))[SCORE])
    except ValueError:
        return {}


def _sizes(folder: Path) -> dict[str, list[int]]:
    """Bytes, and CRC-32 of the first `_SUMMED`, of each file without which a run cannot go on; in a bucket, its own
    CRC-32C of the whole.

    Scores, copies, and what Orbax notes down of the whole step are not among them.
    """
    if in_bucket(folder):
        listed = objects_of(str(folder)).listed()
        return {name: [one.size, one.checksum] for name, one in listed.items() if _needed(name)}
    files = [path for item in _NEEDED for path in (folder / item).rglob("*") if path.is_file()]
    named = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: _size_and_sum(path) for name, path in named.items() if _needed(name)}


def _needed(name: str) -> bool:
    return name.startswith(_NEEDED) and not name.endswith(COMMITTED)


def _size_and_sum(file: Path) -> list[int]:
    with file.open("rb") as opened:
        return [file.stat().st_size, zlib.crc32(opened.read(_SUMMED))]


def _check_list(value: Any) -> None:
    if not value or any([type(number) for number in one] != [int, int] for one in value.values()):
        raise ValueError("it does not hold sizes and checksums")


def check_sizes(folder: Path) -> None:
    """Raises ValueError if a file of a step is not as it was written; steps without a list are not checked."""
    if not (folder / FILES).is_file():
        return
    try:
        listed = read_checked(folder / FILES, _check_list)
    except ValueError as error:  # the files themselves may well be whole; Orbax will tell
        log.warning("%s is damaged (%s): this checkpoint's files are not compared with it.", folder / FILES, error)
        return
    found = _sizes(folder)
    for name, (size, checksum) in listed.items():
        here, summed = found.get(name, (0, 0))
        if here != size:
            raise ValueError(f"{name} has {here} of {size} bytes")
        if summed != checksum:
            raise ValueError(f"{name} is altered")


def write_sizes(folder: Path) -> None:
    """Writes the list that `check_sizes` reads."""
    (folder / FILES).write_text(dumps(_sizes(folder)))
