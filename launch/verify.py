"""Runs the programs behind a row of a verdict again, in a fresh place, and compares the bits.

    .venv/bin/python -m launch.verify runs/scale bare

A row is an arm or a contrast, or an arm and a seed, such as bare:3. The exit status is 0 if all bits are the same, and
1 if not.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import cli
from launch.ablation.programs import Store
from launch.ablation.reading import nearest
from model.errors import UserError
from train.devices.machine import use_compilation_cache
from train.run.bucket.address import local_only
from train.run.files.json_files import read_checked
from train.run.files.naming import check_length
from train.run.signals import stop_signals


def verify(run: str | Path, row: str) -> dict[str, list[str]]:
    """{key of a program of the row: the names of what is not the same, bit for bit, when it runs again}.

    run: the folder of a grid, or that of one of its plans.

    Raises:
        UserError: there is no such row, a program has not ended, or the code, the packages or the text are others now.
    """
    local_only("RUN", run, "verify")
    place = _place(Path(run))
    store, found = Store(place.parents[1] / "store"), {}
    use_compilation_cache()
    for key in _keys(place, row):
        program, before = store.program(key).checked(), store.record(key)
        if before is None:
            raise UserError(
                f"{row}: program {key} has not ended in {store.folder}: start its plan again, which runs it."
            )
        with tempfile.TemporaryDirectory() as fresh:
            again = Store(Path(fresh)).run(program)
        found[key] = [name for name, value in again.result.items() if value != before.result[name]]
    return found


def _place(run: Path) -> Path:
    """The folder of a plan."""
    check_length("RUN", run)
    places = [run] if (run / "programs.json").is_file() else [one.parent for one in run.glob("plans/*/programs.json")]
    if len(places) != 1:
        names = ", ".join(sorted(map(str, places)))
        there = f"it holds several plans: give one of {names}" if places else "give the folder of a grid with a verdict"
        raise UserError(f"{run}: {there}.")
    return places[0].absolute()


def _keys(place: Path, row: str) -> Iterator[str]:
    """The programs of a row.

    Raises:
        UserError: there is no such arm, contrast or seed.
    """
    arms: dict[str, list[tuple[str, list[int]]]] = _read(place / "programs.json", _programs)
    contrasts: dict[str, list[str]] = _contrasts(_read(place / "verdict.json", _contrasts))
    name, _, seed = row.partition(":")
    cells = [name] if name in arms else contrasts.get(name)
    if cells is None:
        raise UserError(f"{row}: the verdict has no such row; {nearest(name, [*arms, *contrasts])}.")
    found = [key for cell in cells for key, seeds in arms[cell] if not seed or seed in map(str, seeds)]
    if not found:
        seeds = sorted(one for cell in cells for _, own in arms[cell] for one in own)
        raise UserError(f"{row}: {name} has no such seed; there are {seeds[0]} to {seeds[-1]}.")
    yield from found


def _programs(arms: Any) -> list[Any]:
    return [(key, *seeds) for name in arms for key, seeds in arms[name]]


def _contrasts(verdict: Any) -> dict[str, list[str]]:
    every = [row["contrast"] for row in verdict["rows"]]
    return {one["name"]: [*one["plus"], *one["minus"]] for one in every}


def _read(file: Path, check: Callable[[Any], object]) -> Any:
    try:
        return read_checked(file, check)
    except ValueError as error:
        raise UserError(f"{file}: {error}: start its plan again, which writes it; nothing is trained again.") from error


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("verify", __doc__ or "", config=False, workdir=False)
    made.usage = "%(prog)s RUN ROW"
    return made


def main(argv: Sequence[str]) -> int:
    """Runs a row again, and tells whether its bits are the same."""
    words = [word for word in argv if not word.startswith("-")]
    cli.parse(parser(), [word for word in argv if word.startswith("-")])
    if len(words) != 2:
        given = " ".join(words) or "nothing"
        raise UserError(f"launch.verify takes two words, the folder of a grid and a row of it, and is given {given}.")
    with stop_signals(command=True):
        found = verify(*words)
    for key, other in found.items():
        cli.say(f"{key}: {'not the same: ' + ', '.join(other) if other else 'the same bits'}")
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    cli.run(main)
