"""Public sets by their TFDS name, `glue/sst2` or `squad/v2.0`, by the features that their builders say they have."""

import functools
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from model.errors import UserError
from train.data.examples.types import FORMS, NUMBER, Corpus, Example, Labelled, Pair, Question, Tagged
from train.data.files import make_folder, make_once
from train.data.records import Records, find_builder
from train.run.files.json_files import read_checked, write

log = logging.getLogger("heed")
# The features of each kind of example, in the order of its fields: the first of these that a set has are read.
FEATURES: dict[type, tuple[tuple[str, ...], ...]] = {
    Labelled: (
        ("sentence1", "label", "sentence2"),
        ("question1", "label", "question2"),
        ("premise", "label", "hypothesis"),
        ("question", "label", "sentence"),
        ("sentence", "label"),
        ("text", "label"),
    ),
    Tagged: (("tokens", "ner"),),
    Question: (("question", "context", "answers"),),
}
MANY = 200_000  # examples, from which on looking at all takes long enough to be told
ALLOWED = 0.01  # of a split may have faults: such examples are left out and counted


def public_examples(
    kind: type[Example],
    name: str,
    folder: Path,
    splits: Mapping[str, str],
    features: Sequence[str] = (),
    names: Sequence[str] = (),
    while_waiting: Callable[[], object] = lambda: None,
    form: str = "one",
) -> Corpus[Example]:
    """Returns a prepared TFDS set as examples, which are read as they are asked for.

    All are looked at once. Those that have a fault, as an empty one of `conll2003`, are left out and counted.

    Args:
        kind: of the examples.
        name: of the set, or its folder, as `find_builder` takes it.
        folder: of prepared data.
        splits: what the set calls our 'train' and 'validation'.
        features: in the order of the kind's fields; () for those of `FEATURES`, or of a translation set its two
            languages in the order of its name.
        names: of the labels or tags in the order of their ids, where the set does not say them.
        while_waiting: is called for each example that is looked at, and may raise.
        form: of labels, which must be 'one' of the names, 'several' of them, or a 'number'.

    Raises:
        UserError: the set cannot be had, has not these features, has no labels, or many examples have a fault.
    """
    records = Records(find_builder(name, folder))
    reader = _reader(kind, records, tuple(features), tuple(names))
    if reader.form != form:
        raise UserError(
            f"{records.name} has {FORMS[reader.form]}, and the task takes {FORMS[form]}: change --config.data.name or "
            "--config.task."
        )
    cache = folder / "heed"
    make_folder(cache)
    found, hashes, counted = {}, [repr((reader.features, reader.names))], dict[str, int]()
    for split, named in splits.items():
        records.check(named, f"{split}_split")
        rows = records.rows(named)
        raw = functools.partial(_raw, records, named, rows, reader.features)
        hashes.append(records.fingerprint(named, repr(reader.features), raw))
        make = functools.partial(_look, records, named, rows, reader, while_waiting)
        made = make_once(cache / f"kept-{_hash(kind.__name__, *hashes)[:16]}", make, _is_whole)
        counted |= _told(made)["counted"]
        found[split] = _Examples(records, named, rows, reader, np.load(made / "kept.npy"))
    overlap = records.overlap(splits["train"], splits["validation"])
    return Corpus(found, _hash(*hashes), reader.names, counted, by_place=overlap)


class _Reader(NamedTuple):
    """How a record becomes an example."""

    features: tuple[str, ...]
    names: tuple[str, ...]
    read: Callable[[dict[str, Any]], Any]
    form: str = "one"  # of labels


class _Examples(Sequence[Any]):
    """The examples of a split that were kept."""

    def __init__(
        self, records: Records, split: str, rows: Sequence[dict[str, Any]], reader: _Reader, kept: np.ndarray
    ) -> None:
        self._records, self._split, self._rows, self._reader, self._kept = records, split, rows, reader, kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _read(self._records, self._split, self._rows, self._reader, int(self._kept[index]))


def _read(records: Records, split: str, rows: Sequence[dict[str, Any]], reader: _Reader, index: int) -> Any:
    """The example of a record, whatever faults it has."""
    record = records.record(split, rows, index)
    try:
        return reader.read(record)
    except (UnicodeDecodeError, AttributeError, TypeError):
        raise UserError(
            f"the features {', '.join(reader.features)} of {records.name} are not texts and labels as the task takes "
            f"them, in example {index} of {split!r}: change --config.data.feature."
        ) from None
    except _NoLabel as error:
        of = "the numbers" if reader.form == "number" else ", ".join(reader.names)
        raise UserError(
            f"example {index} of {split!r} of {records.name} has the label {error}, which is none of "
            f"{of} (test splits often have none): choose another split."
        ) from None


def _raw(records: Records, split: str, rows: Sequence[dict[str, Any]], features: tuple[str, ...], index: int) -> str:
    record = records.record(split, rows, index)
    return repr([np.asarray(part).tolist() for name in features for part in _parts(record[name])])


def _parts(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]


def _look(
    records: Records,
    split: str,
    rows: Sequence[dict[str, Any]],
    reader: _Reader,
    while_waiting: Callable[[], object],
    folder: Path,
) -> None:
    """Writes which examples have no fault.

    Raises:
        UserError: too many have one.
    """
    if len(rows) > MANY:
        log.warning("each of the %d examples of %r of %s is looked at, once.", len(rows), split, records.name)
    faults: dict[int, str] = {}
    for i in range(len(rows)):
        while_waiting()
        if fault := _read(records, split, rows, reader, i).fault():
            faults[i] = fault
    first = next((f"number {i}: {fault}" for i, fault in faults.items()), "")
    if len(faults) > max(1, ALLOWED * len(rows)):
        raise UserError(
            f"{len(faults)} of the {len(rows)} examples of {split!r} of {records.name} have faults, such as {first}: "
            f"prepare it anew, or read other features with --config.data.feature."
        )
    folder.mkdir()
    np.save(folder / "kept.npy", np.array([i for i in range(len(rows)) if i not in faults], np.int64))
    told = f"examples of {split!r} left out for a fault, such as {first}"
    write(folder / "told.json", {"counted": {told: len(faults)} if faults else {}})


def _told(folder: Path) -> dict[str, dict[str, int]]:
    return dict(read_checked(folder / "told.json", lambda told: dict(told["counted"])))


def _is_whole(folder: Path) -> bool:
    try:
        np.load(folder / "kept.npy")
        return bool(_told(folder))
    except (OSError, ValueError, EOFError):
        return False


def _reader(kind: type, records: Records, features: tuple[str, ...], names: tuple[str, ...]) -> _Reader:
    """How the records of a set are read as examples of a kind."""
    has = records.builder.info.features
    for some in (features,) if features else _known(kind, records):
        if set(some) <= set(has):
            return _READERS[kind](some, has, names)
    wanted = features or " or ".join("+".join(some) for some in FEATURES.get(kind, ())) or "two languages"
    raise UserError(
        f"{records.name} has the features {', '.join(sorted(has))}, and the task takes {wanted}: change "
        "--config.data.name, or name them with --config.data.feature."
    )


def _known(kind: type, records: Records) -> tuple[tuple[str, ...], ...]:
    if kind is not Pair:
        return FEATURES[kind]
    info, has = records.builder.info, records.builder.info.features
    languages = tuple(info.supervised_keys or ()) or tuple(has)
    return (languages,) if isinstance(has, tfds.features.Translation) and len(languages) == 2 else ()


class _NoLabel(ValueError):
    """A label that is none of those there are."""


def _labelled(features: tuple[str, ...], has: Mapping[str, Any], names: tuple[str, ...]) -> _Reader:
    first, label, *second = features
    form = _form(has[label], names)
    known = NUMBER if form == "number" else names or tuple(getattr(has[label], "feature", has[label]).names)
    given: dict[str, Callable[[Any], Any]]
    given = {"one": functools.partial(_named, known), "several": functools.partial(_several, known), "number": _number}

    def read(record: dict[str, Any]) -> Labelled:
        return Labelled(_text(record[first]), given[form](record[label]), *(_text(record[one]) for one in second))

    return _Reader(features, known, read, form)


def _form(feature: Any, names: tuple[str, ...]) -> str:
    """Whether a label is one of the names, several of them, or a number."""
    is_list = isinstance(feature, tfds.features.Sequence)
    is_named = bool(names) or isinstance(feature.feature if is_list else feature, tfds.features.ClassLabel)
    return ("several" if is_list else "one") if is_named else "number"


def _tagged(features: tuple[str, ...], has: Mapping[str, Any], names: tuple[str, ...]) -> _Reader:
    words, tags = features
    known = names or tuple(has[tags].feature.names)

    def read(record: dict[str, Any]) -> Tagged:
        return Tagged(tuple(_text(one) for one in record[words]), tuple(_named(known, one) for one in record[tags]))

    return _Reader(features, known, read)


def _question(features: tuple[str, ...], has: Mapping[str, Any], names: tuple[str, ...]) -> _Reader:
    question, context, answers = features

    def read(record: dict[str, Any]) -> Question:
        given = record[answers]
        texts, starts = tuple(_text(one) for one in given["text"]), tuple(int(one) for one in given["answer_start"])
        return Question(_text(record[question]), _text(record[context]), texts, starts)

    return _Reader(features, (), read)


def _pair(features: tuple[str, ...], has: Mapping[str, Any], names: tuple[str, ...]) -> _Reader:
    return _Reader(features, (), lambda record: Pair(*(_text(record[one]) for one in features)))


_READERS: dict[type, Callable[..., _Reader]] = {
    Labelled: _labelled,
    Tagged: _tagged,
    Question: _question,
    Pair: _pair,
}


def _named(names: tuple[str, ...], number: Any) -> str:
    if not 0 <= int(number) < len(names):
        raise _NoLabel(int(number))
    return names[int(number)]


def _several(names: tuple[str, ...], numbers: Any) -> tuple[str, ...]:
    return tuple(_named(names, one) for one in numbers)


def _number(value: Any) -> float:
    if not math.isfinite(value):
        raise _NoLabel(value)
    return float(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
