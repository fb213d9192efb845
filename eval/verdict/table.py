"""Runs of any framework, read from a CSV file with a line for each run: arm, seed, value."""

import csv
import difflib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.verdict.declared import LARGEST, LEAST, MOST_SEEDS, is_judged
from model.errors import UserError

COLUMNS = ("arm", "seed", "value")
_SHOWN = 60  # letters of a cell that a sentence repeats
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FAILED = re.compile(r"[+-]?(inf|infinity|nan)|", re.IGNORECASE)

Values = dict[str, dict[int, float]]  # arm -> seed -> value, inf where the run failed


@dataclass(frozen=True)
class Table:
    """What a file says: arms in the order of their names, seeds in that of their numbers.

    Attributes:
        name: of the file, without its folder.
        values: arm -> seed -> value; inf is a failed run, which keeps its place.
        others: further columns of numbers, which no verdict is about: name -> arm -> seed -> value.
    """

    name: str
    values: Values
    others: Mapping[str, Values]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Which every arm has."""
        return tuple(next(iter(self.values.values())))

    def others_than(self, baseline: str) -> tuple[str, ...]:
        """The arms that are compared with the baseline.

        Raises:
            UserError: no line is of the baseline.
        """
        if baseline not in self.values:
            near = difflib.get_close_matches(baseline, self.values, n=1)
            there = f"the nearest is {near[0]!r}" if near else f"there are {_listed(self.values)}"
            raise UserError(f"--baseline={_cut(baseline)}: {self.name} has no such arm; {there}.")
        return tuple(arm for arm in self.values if arm != baseline)


def read_table(file: str | Path) -> Table:
    """Reads a CSV file in UTF-8 whose first line names the columns, 'arm', 'seed' and 'value' among them, in any order.

    Every name in `arm` is an arm; a value that is empty, inf or nan is a failed run. Other columns are other metrics.

    Raises:
        UserError: the file cannot be read, or a line of it is not such a line, or arms and seeds do not pair.
    """
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--table={file} cannot be read ({error.strerror}): give a CSV file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--table={file} is not UTF-8 at byte {error.start}: save it as CSV in UTF-8.") from error
    lines = _lines(text, file)
    at, header = next(lines, (1, []))
    _check_header(header, f"--table={file}, line {at}")
    metrics = [name for name in header if name not in COLUMNS[:2]]
    found: dict[tuple[str, int], tuple[int, dict[str, float]]] = {}
    for at, cells in lines:
        where = f"--table={file}, line {at}"
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells under {len(header)} columns: separate them by commas.")
        row = dict(zip(header, cells, strict=True))
        key = _arm(row["arm"], where), _seed(row["seed"], where)
        if key in found:
            first = found[key][0]
            raise UserError(f"{where}: arm {key[0]!r} with seed {key[1]} stands in line {first} already: leave one.")
        found[key] = at, {name: _value(name, row[name], where) for name in metrics}
    _check_pairs({key: at for key, (at, _) in found.items()}, f"--table={file}")
    columns: dict[str, Values] = {name: {} for name in metrics}
    for arm, seed in sorted(found, key=lambda key: (_natural(key[0]), key)):
        for name, value in found[arm, seed][1].items():
            columns[name].setdefault(arm, {})[seed] = value
    return Table(Path(file).name, columns.pop("value"), columns)


def _lines(text: str, file: str | Path) -> Iterator[tuple[int, list[str]]]:
    """(number, cells) of each line that is not blank; a quoted cell may hold a line's end, of which the last counts."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise UserError(f"--table={file}, line {reader.line_num}: {error}: write it as CSV.") from error


def _check_header(header: list[str], where: str) -> None:
    for name in COLUMNS:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1, cutoff=0.5)
            there = f"rename {_cut(near[0])!r}" if near else f"it has {_listed(header)}"
            raise UserError(f"{where}: there is no column {name!r}, of arm,seed,value: {there}.")
    for name in header:
        if not name or header.count(name) > 1:
            raise UserError(f"{where}: column {_cut(name)!r} is there {header.count(name)} times: name each its own.")


def _arm(text: str, where: str) -> str:
    if not text:
        raise UserError(f"{where}: the arm is empty: give its name.")
    return text


def _seed(text: str, where: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise UserError(f"{where}: seed={_cut(text)!r} must be a whole number, such as 0.")
    return int(text)


def _value(column: str, text: str, where: str) -> float:
    if _FAILED.fullmatch(text):
        return math.inf
    if not _NUMBER.fullmatch(text):
        fix = ", or inf or nothing for a failed run" if column == "value" else ": leave other columns out"
        raise UserError(f"{where}: {_cut(column)}={_cut(text)!r} must be a number{fix}.")
    value = float(text)
    if math.isinf(value) or not is_judged(value):
        raise UserError(
            f"{where}: {_cut(column)}={_cut(text)} must lie within {LARGEST:g}, and be 0 or at least {LEAST:g} in "
            "size; write inf for a failed run."
        )
    return value


def _check_pairs(found: Mapping[tuple[str, int], int], where: str) -> None:
    """Each arm has each seed. found: (arm, seed) -> line."""
    arms, seeds = {arm for arm, _ in found}, {seed for _, seed in found}
    first = min(found.values(), default=1)
    if len(arms) < 2:
        raise UserError(
            f"{where}, line {first}: arms: {_listed(arms) or 'none'}: give two or more, the baseline one of them."
        )
    having: dict[int, set[str]] = {}
    for arm, seed in found:
        having.setdefault(seed, set()).add(arm)
    for (_, seed), line in sorted(found.items(), key=lambda item: item[1]):
        if lacking := sorted(arms - having[seed]):
            raise UserError(
                f"{where}, line {line}: seed {seed} has no line of {_listed(lacking)}: give every arm every seed; that "
                "of a failed run has no value."
            )
    if not 2 <= len(seeds) <= MOST_SEEDS:
        raise UserError(f"{where}, line {first}: {len(seeds)} seeds: give every arm 2 to {MOST_SEEDS}.")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts heads_2 before heads_16."""
    parts = [part.lstrip("0") if at % 2 else part for at, part in enumerate(re.split(r"(\d+)", name))]
    return [(len(part) * (at % 2), part) for at, part in enumerate(parts)]


def _listed(names: Iterable[str]) -> str:
    """The first ten."""
    shown = [repr(_cut(name)) for name in names]
    return ", ".join(shown[:10]) + (", ..." if len(shown) > 10 else "")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
