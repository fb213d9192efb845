"""One's own examples: `data.path='folder/*.jsonl'`, or CSV, with a column for each field of their kind."""

import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.errors import UserError
from train.data.examples.tables import example_of, read_rows
from train.data.examples.types import NUMBER, Corpus, Example, Labelled, Tagged, asked, fingerprint_of
from train.data.finding import find_files
from train.data.owntext import SPLITS
from train.run.files.json_files import loads

log = logging.getLogger("heed")
Label = str | tuple[str, ...] | float
Placed = list[tuple[str, Any]]  # examples, each with FILE:LINE


def own_examples(
    kind: type[Example], pattern: str, form: str = "one", names: Sequence[str] = (), apart: Path | None = None
) -> Corpus[Example]:
    """Returns the examples of the files that a pattern names.

    Files called `train...` and `validation...` are these splits, where there are any such. Otherwise a tenth of all
    rows is validation, by the sha256 of what a model is given of them, so equal ones are on one side.

    Args:
        kind: of the examples.
        pattern: of files, as `find_files` takes it.
        form: what a label is: 'one' of the names, 'several' of them, or a 'number'.
        names: of the labels or tags that are known, in their order; () for those of the train split, sorted.
        apart: a folder that is left out.

    Raises:
        UserError: a file is not of this kind, a label is missing or not known, or a split is empty.
    """
    files, _ = find_files(pattern, apart)
    read: dict[str, Placed] = {
        name: [(where, _labelled(where, example_of(kind, where, row), form)) for where, row in read_rows(path)]
        for name, path in files.items()
    }
    splits = _split(read)
    for split, rows in splits.items():
        if not rows:
            raise _empty(split, pattern, list(files))
    known = NUMBER if form == "number" else tuple(names) or _names(kind, splits["train"])
    if form == "several" and not known:
        raise UserError(f"no text of the train split of --config.data.path={pattern} has a label: add some.")
    for rows in splits.values():
        for where, one in rows:
            _check_known(where, one, known)
    found = {split: [one for _, one in rows] for split, rows in splits.items()}
    return Corpus(found, fingerprint_of(found, known), known)


def _empty(split: str, pattern: str, files: Sequence[str]) -> UserError:
    """What to say of a split without rows."""
    named = {other: [name for name in files if Path(name).name.startswith(other)] for other in SPLITS}
    others = [name for some in named.values() for name in some]
    if others and not named[split]:
        return UserError(
            f"--config.data.path={pattern} has no file whose name begins with {split!r}, though {others[0]} is named "
            "by its split: add one, or name no file by a split, so that a tenth of all rows is validation."
        )
    return UserError(
        f"the split {split!r} of --config.data.path={pattern} is empty: give at least two rows, or files whose "
        f"names begin with {' and '.join(map(repr, SPLITS))}."
    )


def _split(read: dict[str, Placed]) -> dict[str, Placed]:
    """The rows of each split."""
    named = {name: next((split for split in SPLITS if Path(name).name.startswith(split)), "") for name in read}
    if any(named.values()):
        for name, split in named.items():
            if not split:
                log.warning("%s is of no split: it is left out, as others are named by theirs.", name)
        return {split: [row for name in read if named[name] == split for row in read[name]] for split in SPLITS}
    rows = [row for some in read.values() for row in some]
    hashes = [hashlib.sha256(repr(asked(one)).encode("utf-8", "surrogatepass")).digest() for _, one in rows]
    last = sorted(set(hashes))[: max(1, len(set(hashes)) // 10)][-1] if len(set(hashes)) > 1 else b""
    held_out = [of_row <= last for of_row in hashes]
    return {
        split: [row for row, out in zip(rows, held_out, strict=True) if out == (split == "validation")]
        for split in SPLITS
    }


def _labelled(where: str, example: Any, form: str) -> Any:
    """The example with its label in the form that the task has."""
    if not isinstance(example, Labelled):
        return example
    if example.label is None or example.label == "":
        raise UserError(f"{where} has no label: add one, or remove the line.")
    return dataclasses.replace(example, label=_FORMS[form](where, example.label))


def _one(where: str, label: Any) -> str:
    if isinstance(label, tuple | dict) or (isinstance(label, float) and not label.is_integer()):
        raise UserError(f"{where}: its label {label!r} is no name of a class: mend the line, or choose another task.")
    return str(int(label)) if isinstance(label, float) else str(label)


def _several(where: str, label: Any) -> tuple[str, ...]:
    value = label
    if isinstance(label, str):
        try:
            value = loads(label)
        except ValueError:
            value = None
    if not isinstance(value, list | tuple) or not all(isinstance(one, str | int | float) for one in value):
        raise UserError(f'{where}: its label {label!r} is no list of names, ["a", "b"]: mend the line.')
    return tuple(map(str, value))


def _number(where: str, label: Any) -> float:
    try:
        value = float(label)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(label, bool) or not math.isfinite(value):
        raise UserError(f"{where}: its label {label!r} is no number: mend the line, or choose another task.")
    return value


_FORMS: dict[str, Callable[[str, Any], Label]] = {"one": _one, "several": _several, "number": _number}


def _said(example: Any) -> tuple[str, ...]:
    """The names of an example's label or tags."""
    if isinstance(example, Labelled):
        label = example.label
        return () if isinstance(label, float) else (label,) if isinstance(label, str) else label
    return example.tags if isinstance(example, Tagged) else ()


def _names(kind: type, rows: Placed) -> tuple[str, ...]:
    """The names that a split says: numbers in their order, then words; of tags, both marks of each."""
    said = {name for _, one in rows for name in _said(one)}
    if kind is Tagged:
        entities = sorted({tag[2:] for tag in said if tag != "O"})
        return ("O", *(f"{mark}-{name}" for name in entities for mark in "BI"))
    return tuple(sorted(said, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def _check_known(where: str, example: Any, known: tuple[str, ...]) -> None:
    for name in _said(example):
        if name not in known:
            what = "tag" if isinstance(example, Tagged) else "label"
            raise UserError(
                f"{where}: its {what} {name!r} is not one of those that are learned, {', '.join(known)}: mend the "
                "line, or let the train split have it."
            )
