"""Corpora that every machine can make: by name, made once and kept as JSONL in the folder of prepared data."""

import functools
import hashlib
import sysconfig
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from model.layers import choose
from train.data.examples import questions as spans
from train.data.examples.dates import dates
from train.data.examples.numbers import numbers
from train.data.examples.packages import PACKAGES, packages
from train.data.examples.parity import parity
from train.data.examples.rationales import GROUPS, NONE, rationale, rationales
from train.data.examples.roles import TAGS, roles
from train.data.examples.tables import read_rows, write_rows
from train.data.examples.types import Corpus, Labelled, Made, Pair, Question, Tagged
from train.data.files import make_folder, make_once
from train.data.stdlib import fingerprint
from train.run.files.json_files import read_checked, write


class Embedded(NamedTuple):
    """A corpus that can be made: its kind, what makes its splits, and what its `Corpus` says besides."""

    kind: type
    make: Callable[..., Made]
    of_library: bool  # whether it is read off the standard library: then its first argument is that folder
    names: tuple[str, ...] = ()
    varied: Callable[[Sequence[Any]], Callable[[Any, int], Any]] | None = None
    rationale: Callable[[str], tuple[int, ...]] | None = None


EMBEDDED = {
    "packages": Embedded(Labelled, packages, True, PACKAGES),
    "roles": Embedded(Tagged, roles, True, TAGS),
    "questions": Embedded(Question, spans.questions, True, varied=spans.varied),
    "numbers": Embedded(Pair, numbers, False),
    "dates": Embedded(Pair, dates, False),
    "parity": Embedded(Pair, parity, False),
    "rationales": Embedded(Labelled, rationales, False, (*GROUPS, NONE), rationale=rationale),
}


def embedded(
    name: str,
    cache: Path,
    library: Path | None = None,
    while_waiting: Callable[[], object] = lambda: None,
    **options: Any,
) -> Corpus:
    """Returns the corpus `name`, made the first time.

    Args:
        name: of `EMBEDDED`.
        cache: a folder for what is made, named by a hash of what it was made from.
        library: the standard library to read; None for this Python's.
        while_waiting: is called often while it is made, and may raise.
        options: of the function that makes it.

    Raises:
        UserError: there is no such corpus, or it cannot be made of these options.
    """
    made = choose(EMBEDDED, name, "data.name")
    library = library or Path(sysconfig.get_path("stdlib"))
    made_from = [name, sorted(options.items()), _code(), fingerprint(library) if made.of_library else _versions()]
    key = hashlib.sha256(repr(made_from).encode()).hexdigest()
    make_folder(cache)
    make = functools.partial(made.make, *[library][: made.of_library], while_waiting=while_waiting, **options)
    folder = make_once(cache / f"examples-{name}-{key[:16]}", functools.partial(_write, make), _is_whole)
    told = _told(folder)
    splits = {
        split: [_read(made.kind, row) for _, row in read_rows(folder / f"{split}.jsonl")] for split in told["sizes"]
    }
    names = tuple(options.get("among", made.names))
    # Of what it holds, so that other code which makes the same changes nothing.
    digest = hashlib.sha256(repr((name, names, *splits)).encode())
    for split in splits:
        digest.update((folder / f"{split}.jsonl").read_bytes())
    varied = made.varied(splits["train"]) if made.varied else None
    return Corpus(splits, digest.hexdigest(), names, told["counted"], varied, rationale=made.rationale)


def _code() -> str:
    """A hash of this room: what other code has made is made anew."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _versions() -> tuple[str, ...]:
    return tuple(f"{package} {version(package)}" for package in ("num2words", "babel"))


def _write(make: Callable[[], Made], folder: Path) -> None:
    splits, counted = make()
    folder.mkdir()
    for split, examples in splits.items():
        write_rows(folder / f"{split}.jsonl", examples)
    sizes = {split: (folder / f"{split}.jsonl").stat().st_size for split in splits}
    write(folder / "told.json", {"sizes": sizes, "counted": dict(counted)})


def _is_whole(folder: Path) -> bool:
    try:
        sizes = _told(folder)["sizes"]
        return all((folder / f"{split}.jsonl").stat().st_size == size for split, size in sizes.items())
    except (OSError, ValueError):
        return False


def _told(folder: Path) -> dict[str, dict[str, int]]:
    """The sizes of the splits' files, and what was left out."""
    return dict(read_checked(folder / "told.json", lambda told: (dict(told["sizes"]), dict(told["counted"]))))


def _read(kind: type, row: dict[str, Any]) -> Any:
    """The example that `write_rows` wrote."""
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in row.items()})
