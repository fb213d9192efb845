"""The files of a checkpoint's folder, `<step>/`: which steps there are, what they note, and whether they are whole."""

import logging
from pathlib import Path

from train.run.json_files import check_numbers, dumps, read_checked

log = logging.getLogger("heed")
FILES = "files.json"  # the size of every file that is needed
ITEM, SCORE = (
    "run",
    "score",
)  # an item of the checkpoint, {name of a file of the run: its value}, and what it holds besides
NOTES = f"{ITEM}/metadata"  # where Orbax writes that item


def saved_steps(folder: Path) -> list[int]:
    """The steps in a folder of checkpoints, oldest first."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())


def score_of(folder: Path) -> dict[str, float]:
    """{name: score} of a step, where it has one and its note can be read."""
    try:
        return dict(read_checked(folder / NOTES, lambda notes: check_numbers(notes[SCORE]))[SCORE])
    except ValueError:
        return {}


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file without which a run cannot go on; scores, copies, and what Orbax notes down are not."""
    files = [path for item in ("state", "extra") for path in (folder / item).rglob("*") if path.is_file()]
    files = [path for path in files if path.name != "commit_success.txt"]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def check_sizes(folder: Path) -> None:
    """Raises ValueError if a file of a step is not as long as it was written; steps without a list are not checked."""
    if not (folder / FILES).is_file():
        return
    try:
        listed = read_checked(folder / FILES, check_numbers)
    except ValueError as error:  # the files themselves may well be whole; Orbax will tell
        log.warning("%s is damaged (%s): the sizes of this checkpoint are not checked.", folder / FILES, error)
        return
    found = _sizes(folder)
    for name, size in listed.items():
        if found.get(name) != size:
            raise ValueError(f"{name} has {found.get(name, 0)} of {size} bytes")


def write_sizes(folder: Path) -> None:
    """Writes the list that `check_sizes` reads."""
    (folder / FILES).write_text(dumps(_sizes(folder)))
