"""Files of inputs, and of what belongs to each of them: a line each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import UserError
from train.run.files.json_files import loads


def lines_of(flag: str, path: str) -> list[str]:
    """The lines of a file, which only line feeds end: what else breaks lines may stand in a text.

    Raises:
        UserError: it cannot be read, or a line is empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or "it is no text in UTF-8"
        raise UserError(f"--{flag}={path} cannot be read ({reason}); give a file of lines.") from None
    lines = lines[:-1] if lines[-1] == "" else lines
    if empty := [number for number, line in enumerate(lines, 1) if not line.strip()]:
        raise UserError(f"--{flag}={path}: line {empty[0]} is empty; give a line for each input.")
    return lines


def examples(texts: Sequence[str], path: str, column: str) -> list[dict[str, Any]]:
    """The inputs, with the columns of a task: plain texts are this one, lines of JSON name theirs.

    Raises:
        UserError: there is none, or a file that cannot be read.
    """
    found: list[dict[str, Any]] = [{column: text} for text in texts]
    for number, line in enumerate(lines_of("inputs", path) if path else (), 1):
        try:
            one = loads(line) if path.endswith(".jsonl") else {column: line}
        except ValueError as error:
            raise UserError(f"--inputs={path}: line {number} is no JSON ({error}); mend it.") from None
        if not isinstance(one, dict):
            raise UserError(f'--inputs={path}: line {number} holds no columns; write them as {{"{column}": "..."}}.')
        found.append(one)
    if not found:
        raise UserError("there is no input; give --input=TEXT, or --inputs=FILE.")
    return found
