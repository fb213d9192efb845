"""Examples as rows of JSONL or CSV, with a column for each field of their kind; what we write ourselves is JSONL."""

import csv
import dataclasses
import io
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

from model.errors import UserError
from train.data.examples.types import Example
from train.run.files.json_files import dumps, loads

Row = tuple[str, dict[str, Any]]  # where it stands, FILE:LINE, and its columns
SUFFIXES = (".jsonl", ".csv")


def write_rows(file: Path, examples: Iterable[Example]) -> None:
    """Writes examples as JSONL, a line each."""
    with open(file, "w", encoding="utf-8") as lines:
        for one in examples:
            lines.write(dumps({field.name: getattr(one, field.name) for field in dataclasses.fields(one)}) + "\n")


def read_rows(file: Path) -> Iterator[Row]:
    """Yields the rows of a file.

    Raises:
        UserError: the file cannot be read, or a line is no row.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file} is neither .jsonl nor .csv: convert it, or change --config.data.path.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): change --config.data.path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 at byte {error.start}: convert it.") from None
    yield from (_csv if file.suffix == ".csv" else _jsonl)(file, text)


def _jsonl(file: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = loads(line)
        except ValueError as error:
            raise UserError(f"{file}:{number} is no JSON ({error}): mend the line.") from None
        if not isinstance(row, dict):
            raise UserError(f"{file}:{number} is no object of columns, {{...}}: mend the line.")
        yield f"{file}:{number}", row


def _csv(file: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    number = 1
    try:
        header = next(reader, [])
        if len(header) == 1 and (other := next((sign for sign in ";\t|" if sign in header[0]), "")):
            raise UserError(f"{file}:1 has {other!r} between its cells, and CSV has commas: convert it.")
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise UserError(
                        f"{file}:{number + 1} has {len(cells)} cells, and the header has {len(header)}: mend the line "
                        'or quote what holds a comma or a newline, "a, b".'
                    )
                yield f"{file}:{number + 1}", dict(zip(header, cells, strict=True))
            number = reader.line_num
    except csv.Error as error:
        raise UserError(f"{file}:{number + 1} is no CSV ({error}): mend the line.") from None


def example_of(kind: type[Example], where: str, row: dict[str, Any]) -> Example:
    """Returns the example of a row; a list in a cell of CSV is written as in JSON, `["a", "b"]`.

    Raises:
        UserError: the columns are not those of the kind, a value is of another type, or the example has a fault.
    """
    hints = get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    must = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    if not set(must) <= row.keys() <= fields.keys():
        optional = ", ".join(name for name in fields if name not in must)
        raise UserError(
            f"{where} has the columns {', '.join(row) or 'none'}, and those of the task are {', '.join(must)}"
            f"{f' (and {optional}, if wanted)' if optional else ''}: rename or remove columns, or change "
            "--config.data.path."
        )
    example = kind(**{name: _value(where, name, value, fields[name]) for name, value in row.items()})
    fault = example.fault()
    if fault:
        raise UserError(f"{where}: {fault}: mend or remove the line.")
    return example


def _value(where: str, name: str, value: Any, hint: Any) -> Any:
    """The value of a column as its field has it; a label may be a name, a list of names, or a number."""
    if isinstance(hint, types.UnionType):  # a label, which `own.py` looks at
        return tuple(value) if isinstance(value, list) else value
    if hint is str:
        if not isinstance(value, str):
            raise UserError(f"{where}: its {name} is {value!r}, and must be a text: mend the line.")
        return value
    item = int if hint == tuple[int, ...] else str
    if isinstance(value, str):
        try:
            value = loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list) or not all(type(one) is item for one in value):
        kind = "whole numbers" if item is int else "texts"
        raise UserError(f"{where}: its {name} must be a list of {kind}, as JSON writes it: mend the line.")
    return tuple(value)
