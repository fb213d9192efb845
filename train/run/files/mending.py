"""Damaged or altered files of a run are named, set aside and mended from the copies that each checkpoint keeps."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.errors import UserError
from train.run.bucket.address import called
from train.run.files.json_files import check_numbers, dumps, read_checked, read_lines, set_aside, write
from train.run.files.learned import altered
from train.run.files.step_files import NOTES, saved_steps

log = logging.getLogger("heed")


def _check_config(value: Any) -> None:
    sections = [value[section] for section in ("model", "data", "optimizer", "train", "mesh")]
    if not all(isinstance(section, dict) for section in sections):
        raise ValueError("a section is no table of keys")
    if not isinstance(value["family"], str):
        raise ValueError("the family is no name")


def _check_passport(value: Any) -> None:
    if not isinstance(value["data"]["fingerprint"], str):
        raise ValueError("the fingerprint of the data is missing")


def _check_tokenizer(value: Any) -> None:
    if value["kind"] != "bytes" and not isinstance(value["tokenizer"], str):
        raise ValueError("the tokenizer is missing")


KEPT: Mapping[str, Callable[[Any], None]] = {
    "passport.json": _check_passport,
    "config.json": _check_config,
    "tokenizer.json": _check_tokenizer,
    "baselines.json": check_numbers,
}


def _config_differs(value: Any, kept: Any) -> str:
    return ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in altered(kept, value).items())


def _passport_differs(value: Any, kept: Any) -> str:
    old, new = kept["data"]["fingerprint"], value["data"]["fingerprint"]
    missing = [name for name in kept if name not in value]
    return ", ".join([*([f"fingerprint {old[:12]} -> {new[:12]}"] if old != new else []), *missing])


def _tokenizer_differs(value: Any, kept: Any) -> str:
    return "" if value == kept else "it encodes otherwise"


# What a file must share with the copy of one checkpoint at least; the rest may be another at each start of a run.
_DIFFERS: Mapping[str, Callable[[Any, Any], str]] = {
    "passport.json": _passport_differs,
    "config.json": _config_differs,
    "tokenizer.json": _tokenizer_differs,
}


def _read_whole(folder: Path, name: str) -> Any:
    """The value of a file of KEPT.

    Raises:
        ValueError: it cannot be read, or was altered: there are copies, and it agrees with none.
    """
    value, differs = read_checked(folder / name, KEPT[name]), _DIFFERS.get(name)
    if differs is not None:
        differences = {step: differs(value, copy) for step, copy in _kept_copies(folder, name)}
        if differences and all(differences.values()):
            step = max(differences)
            raise ValueError(f"it is not what checkpoint {step} has kept: {differences[step]}")
    return value


def copies(folder: Path) -> dict[str, Any]:
    """What a checkpoint keeps of its run: the value of each file of KEPT that is there."""
    return {name: read_checked(folder / name, check) for name, check in KEPT.items() if (folder / name).is_file()}


def read_kept(folder: Path, name: str) -> Any:
    """The value of a file of KEPT; where it is missing or damaged, which is said, that of the newest checkpoint.

    Raises:
        UserError: neither can be read.
    """
    try:
        return _read_whole(folder, name)
    except ValueError as error:
        found = newest_copy(folder, name)
        if found is None:
            lacks = f"a damaged {name} ({error}) and no copy" if (folder / name).exists() else f"no {name}"
            raise UserError(f"--workdir={called(folder)} holds {lacks}: give the folder of a run.") from error
        step, value = found
        log.warning(
            "%s of %s is %s: that of checkpoint %d is taken.", name, called(folder), _state(folder / name, error), step
        )
        return value


def mend(folder: Path, begun: bool) -> None:
    """Sets damaged files of KEPT aside, and writes what is missing then from the newest checkpoint that can be read.

    begun: whether the run has saved a checkpoint; what it said of itself is missed only then.
    """
    for name in KEPT:
        file = folder / name
        try:
            _read_whole(folder, name)
            continue
        except ValueError as error:
            state = _state(file, error)
        if not (file.exists() or begun):
            continue
        aside = f", and kept as {set_aside(file).name}" if file.exists() else ""
        found = newest_copy(folder, name)
        if found is None:
            log.warning(
                "%s is %s%s; no checkpoint keeps a copy of it, so it is made anew, unchecked.", file, state, aside
            )
            continue
        write(file, found[1])
        log.warning("%s is %s%s; it is written again from checkpoint %d.", file, state, aside, found[0])


def mend_lines(file: Path, step: int) -> None:
    """Drops the lines of a metrics.jsonl after `step`, which are written again, and sets lines aside that are none.

    These are named by their numbers, and kept in `broken-metrics.jsonl`.
    """
    good, bad = read_lines(file)
    if bad:
        aside = file.with_name(f"broken-{file.name}")
        with aside.open("ab") as kept:
            kept.write(b"".join(piece + b"\n" for _, piece in bad))
        numbers = ", ".join(str(number) for number, _ in bad)
        log.warning("%s: line %s cannot be read, and is kept in %s.", file, numbers, aside.name)
    if not file.is_file() or (not bad and all(line["step"] <= step for line in good) and _ends_a_line(file)):
        return
    new = file.with_name(f".{file.name}.new")
    new.write_text("".join(f"{dumps(line)}\n" for line in good if line["step"] <= step), encoding="utf-8")
    new.replace(file)


def _ends_a_line(file: Path) -> bool:
    return file.read_bytes()[-1:] in (b"", b"\n")


def _state(file: Path, error: Exception) -> str:
    return f"damaged ({error})" if file.exists() else "missing"


def newest_copy(folder: Path, name: str) -> tuple[int, Any] | None:
    """(step, value) of the newest checkpoint whose copy of a file can be read."""
    return next(_kept_copies(folder, name), None)


def _kept_copies(folder: Path, name: str) -> Iterator[tuple[int, Any]]:
    """(step, value) of each copy of a file that can be read, the newest first."""
    for step in reversed(saved_steps(folder / "checkpoints")):
        with contextlib.suppress(ValueError):
            notes = folder / "checkpoints" / str(step) / NOTES
            yield step, read_checked(notes, lambda value: KEPT[name](value[name]))[name]
