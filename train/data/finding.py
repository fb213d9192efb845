"""Which files a pattern names: each once, however many links lead to it."""

import fnmatch
import glob
import os
from collections.abc import Iterator
from pathlib import Path

from model.errors import UserError


def find_files(pattern: str, apart: Path | None = None) -> tuple[dict[str, Path], list[Path]]:
    """Returns the files that `pattern` names, by their names below its fixed folder, and the links to what is found.

    `**` stands for any folders, and a folder by itself for all files below it; names that begin with a dot match only
    a dot. A part with brackets that exists as it is written is meant so. Of several names of one file the one that
    passes no link stays, else the first. What lies in the folder `apart` is left out: files that heed made itself.

    Raises:
        UserError: nothing matches, or what cannot be read: a folder, a pipe, a link to nothing.
    """
    root, parts = _fixed_folder(os.path.expanduser(pattern))
    again: list[Path] = []
    found = {Path(path) for path in _expand(root, parts, again)}
    ours = None if apart is None else Path(os.path.realpath(apart))
    names = {
        path: path.relative_to(root).as_posix()
        for path in sorted(found)
        if not path.is_dir() and ours not in Path(os.path.realpath(path)).parents
    }
    plain = Path(os.path.realpath(root))
    by_file: dict[Path, Path] = {}
    for path, name in names.items():
        if not path.is_file():
            raise UserError(
                f"--config.data.path={pattern!r} names {path}, which is no file of text, but a pipe, a device or a "
                "link to nothing: take it away, or give another pattern."
            )
        real = Path(os.path.realpath(path))
        if real not in by_file or real == plain / name:
            by_file[real] = path
    if not by_file:
        where = "" if os.path.isabs(os.path.expanduser(pattern)) else f" in {os.getcwd()}"
        hint = ", but folders: write /** behind it" if found else ": give files that are there"
        raise UserError(f"--config.data.path={pattern!r} matches no file{where}{hint}.")
    kept = sorted(by_file.values())
    return {names[path]: path for path in kept}, again + sorted(names.keys() - {*kept})


def _fixed_folder(pattern: str) -> tuple[str, list[str]]:
    """Returns the folders before the first wildcard, below which names are the same wherever the text lies, and the
    rest of the pattern.
    """
    folder, parts = "", list(Path(pattern).parts)
    while parts and _as_written(folder, parts[0]) and os.path.isdir(os.path.join(folder, parts[0])):
        folder = os.path.join(folder, parts.pop(0))
    return folder, parts or ["**"]


def _as_written(folder: str, part: str) -> bool:
    """Whether a part of a pattern is a name; brackets may belong to it."""
    return not glob.has_magic(part) or not {*"*?"} & {*part} and os.path.lexists(os.path.join(folder, part))


def _expand(folder: str, parts: list[str], again: list[Path]) -> Iterator[str]:
    """Yields what these parts of a pattern name in a folder."""
    if not parts:
        yield folder
    elif parts[0] == "**":
        for below in _folders(folder, again):
            yield from _expand(below, parts[1:] or ["*"], again)
    elif _as_written(folder, parts[0]):
        if os.path.lexists(path := os.path.join(folder, parts[0])):
            yield from _expand(path, parts[1:], again)
    else:
        for name in fnmatch.filter(_names(folder, hidden=parts[0].startswith(".")), parts[0]):
            yield from _expand(os.path.join(folder, name), parts[1:], again)


def _folders(top: str, again: list[Path]) -> Iterator[str]:
    """Yields `top` and the folders below it, each once: through a link only if nothing else leads there."""
    seen: set[str] = set()
    plain, links = [top], list[str]()
    while plain or links:
        folder = (plain or links).pop(0)
        if (real := os.path.realpath(folder)) in seen:
            again.append(Path(folder))
            continue
        seen.add(real)
        yield folder
        for path in (os.path.join(folder, name) for name in _names(folder)):
            if os.path.isdir(path):
                (links if os.path.islink(path) else plain).append(path)


def _names(folder: str, hidden: bool = False) -> list[str]:
    if not os.path.isdir(folder or "."):
        return []
    try:
        names = sorted(os.listdir(folder or "."))
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read ({error.strerror}): change --config.data.path.") from None
    return [name for name in names if hidden or not name.startswith(".")]
