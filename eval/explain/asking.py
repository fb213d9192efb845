"""What somebody asks about: texts as a model's inputs, and answers by their names."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from eval.explain.faithfulness.validation import default_target, kind_of
from eval.explain.targets import Target, checked
from eval.runs import Run
from model.errors import UserError
from train.data import sentinels
from train.data.examples import Question, Tagged
from train.run.files.mending import read_kept
from train.tasks.pairs import laid
from train.tasks.span_qa import SpanRows
from train.tasks.tagging import TaggedRows

COLUMNS = {  # of an example, by the head that answers: those that it needs, the first of which a plain text is
    "next_token": ("text",),
    "continued": ("text",),
    "token": ("text",),
    "pair": ("text", "second_text"),
    "class": ("text",),
    "tag": ("words",),
    "span": ("question", "context"),
    "target": ("source",),
}
_MAY_BE = {"pair": ("second_text",), "class": ("second_text",), "target": ("target",)}  # there, and need not be
_MASK = re.compile("(<mask>)")


class Given(NamedTuple):
    """Rows of a model: their arrays as a task's batch has them, as `vectors` takes them, and the tokens that are real,
    by the site of their vectors, of each row.
    """

    batch: dict[str, Any]
    inputs: dict[str, Any]
    tokens: dict[str, list[list[int]]]


def read(run: Run, examples: Sequence[Mapping[str, Any]], more: Sequence[int] = ()) -> Given:
    """Examples with the columns of the run's task (`COLUMNS`; of classes a `second_text`, of pairs the `target` so far,
    too) as rows, padded to the longest; `more` are tokens behind each of a text, or of what is written.

    Raises:
        UserError: a column is missing, or an example is empty, or longer than the model takes.
    """
    head = run.experiment.task.HEAD
    for one in examples:
        if missing := [name for name in COLUMNS[head] if not one.get(name)]:
            raise UserError(
                f"{missing[0]} is missing, or empty: {run.config.task} needs {' and '.join(COLUMNS[head])}; give it as "
                "a line of --inputs=FILE.jsonl."
            )
        for name in (*COLUMNS[head], *_MAY_BE.get(head, ())):
            value = one.get(name) or ""
            if not isinstance(value, str) and (name != "words" or not isinstance(value, list | tuple)):
                raise UserError(f"{name}={value!r} is no text; give it in quotes, as a line of --inputs=FILE.jsonl.")
    if head == "target":
        pairs = [[_ids(run, one[name]) if one.get(name) else [] for name in ("source", "target")] for one in examples]
        return of_pairs(run, [(source, [*target, *more]) for source, target in pairs])
    if head in ("next_token", "continued", "token"):
        return of_texts(run, [[run.tokenizer.end, *_ids(run, one["text"]), *more] for one in examples])
    return _of_examples(run, head, examples)


def of_texts(run: Run, rows: Sequence[Sequence[int]]) -> Given:
    """Rows of tokens, `end` first."""
    _check_sizes(run, [len(row) for row in rows])
    tokens_BT = np.full((len(rows), max(map(len, rows))), run.tokenizer.end, np.int32)
    for tokens_T, row in zip(tokens_BT, rows, strict=True):
        tokens_T[: len(row)] = row
    valid_BT = np.arange(tokens_BT.shape[1]) < np.array([len(row) for row in rows])[:, None]
    return _given(run, {"tokens": tokens_BT, "valid": valid_BT}, {"tokens_BT": tokens_BT, "valid_BT": valid_BT})


def of_pairs(run: Run, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Given:
    """Rows of sources and of what is written of them so far."""
    sizes = [[1 + len(side) for side in pair] for pair in pairs]
    _check_sizes(run, [max(size) for size in sizes])
    S, T = (max(side) for side in zip(*sizes, strict=True))
    rows = [[(np.array(source, np.int32), np.array(written, np.int32))] for source, written in pairs]
    batch: Any = laid(rows, S, T, run.tokenizer)
    return _given(run, batch, run.experiment.task.inputs(batch))


def _of_examples(run: Run, head: str, examples: Sequence[Mapping[str, Any]]) -> Given:
    """Rows as the run's task makes them of such examples."""
    most, task = run.model.config.max_length, run.experiment.task
    corpus = SimpleNamespace(splits={"given": list[Any]()}, varied=None, rationale=None)
    opened: Any = SimpleNamespace(corpus=corpus, tokenizer=run.tokenizer, names=names(run), length=most)
    if head in ("class", "pair"):
        texts = [[_ids(run, one[name]) for name in ("text", "second_text") if one.get(name)] for one in examples]
        _check_sizes(run, [1 + sum(1 + len(text) for text in row) for row in texts])
        batch = TaggedRows(opened, "given").laid([[np.array(text) for text in row] for row in texts])
    elif head == "tag":
        corpus.splits["given"] = [_tagged(one["words"], names(run)) for one in examples]
        rows = TaggedRows(opened, "given")
        _check_sizes(run, rows.sizes(rows.examples))
        batch = rows.arrays(rows.examples)
    else:
        corpus.splits["given"] = [Question(one["question"], one["context"]) for one in examples]
        data: Any = run.data
        corpus.some_unanswered = data.corpus.some_unanswered
        spans = SpanRows(opened, "given")
        _check_sizes(run, spans.sizes(spans.examples))
        batch = spans.arrays(spans.examples)
    longest = int(batch["valid"].sum(axis=1).max())
    cut: Any = {name: x[:, :longest] if x.shape[1:] == (most,) else x for name, x in batch.items()}
    return _given(run, cut, {name: x for name, x in task.inputs(cut).items() if x is not None})


def _given(run: Run, batch: dict[str, Any], inputs: dict[str, Any]) -> Given:
    sides = {"": ("tokens", "valid")}
    if "sources" in batch:
        sides = {"decoder.": ("tokens", "segment_ids"), "encoder.": ("sources", "source_segment_ids")}
    tokens = {
        f"{side}embedding": [row[real > 0].tolist() for row, real in zip(batch[name], batch[marked], strict=True)]
        for side, (name, marked) in sides.items()
    }
    return Given(batch, inputs, tokens)


def _tagged(words: Any, names: Sequence[str]) -> Tagged:
    split = tuple(words.split() if isinstance(words, str) else words)
    return Tagged(split, (names[0],) * len(split))


def _ids(run: Run, text: str) -> list[int]:
    """The tokens of a text in which `<mask>` stands for the mask, where the tokenizer has it."""
    if "mask" not in run.tokenizer.marks:
        return sentinels.encode(run.tokenizer, text)
    parts = _MASK.split(text)
    return [
        token
        for part in parts
        for token in ([run.tokenizer.marks["mask"]] if part == "<mask>" else sentinels.encode(run.tokenizer, part))
    ]


def _check_sizes(run: Run, sizes: Sequence[int]) -> None:
    most = run.model.config.max_length
    if max(sizes) > most:
        raise UserError(
            f"--input: it has {max(sizes)} tokens, marks included, and the model takes at most {most}; shorten it."
        )


def names(run: Run) -> list[str]:
    """The names of the classes or tags of a run."""
    return list(read_kept(run.folder, "passport.json")["data"].get("names", ()))


def masked(run: Run, given: Given, place: int | None) -> tuple[Given, np.ndarray]:
    """Rows of a model that tells masked tokens, and the place of each that is asked for: `place`, or the first that is
    masked, or the last; it is masked if it is not.
    """
    mask, tokens_BT = run.tokenizer.marks["mask"], given.batch["tokens"].copy()
    is_masked_BT = tokens_BT == mask
    sizes_B, ends = given.batch["valid"].sum(axis=1), 1 if "types" in given.batch else 0
    places_B = np.where(is_masked_BT.any(1), is_masked_BT.argmax(1), sizes_B - 1 - ends)
    if place is not None:
        places_B = _placed(given, place)
    tokens_BT[np.arange(len(tokens_BT)), places_B] = mask
    batch = given.batch | {"tokens": tokens_BT}
    return _given(run, batch, given.inputs | {"tokens_BT": tokens_BT}), places_B


def _placed(given: Given, place: int) -> np.ndarray:
    sizes = [len(row) for row in given.tokens.get("embedding", given.tokens.get("decoder.embedding", []))]
    if not -min(sizes) <= place < min(sizes):
        raise UserError(f"--at={place}: the input has {min(sizes)} tokens, from 0 on; give the place of one of them.")
    return np.array([place % size for size in sizes])


def asked_for(
    run: Run, given: Given, *, at: int | None = None, target: str = "", against: str = ""
) -> tuple[Given, Target, str]:
    """The rows, the target and its kind, where a name says which answer: of classes and tags one of them, else a token.

    Raises:
        UserError: there is no such answer or place, or a question that makes no sense for the task.
    """
    kind, head = kind_of(run), run.experiment.task.HEAD
    places_B = None if at is None else _placed(given, at)
    if kind == "span" and (target or against or at is not None):
        raise UserError(
            f"--{'target' if target else 'at'}: of a span its likeliest place is explained; leave this out."
        )
    if kind == "class" and at is not None:
        raise UserError(f"--at={at}: a class is told of the whole text; leave this out.")
    if head in ("token", "pair"):
        given, places_B = masked(run, given, at)
    elif kind == "tag" and at is None:
        places_B = given.batch["weights"].argmax(axis=1)
    found = default_target(run, given.inputs, given.batch, kind, places_B)
    for name, flag, field in ((target, "target", "answers_BP"), (against, "against", "against_BP")):
        if name:
            one: Any = {field: jnp.full_like(found.places_BP, answer(run, kind, name, flag))}
            found = dataclasses.replace(found, **one)
    if found.against_BP is not None and (np.asarray(found.against_BP) == np.asarray(found.answers_BP)).any():
        raise UserError(f"--against={against} is the answer itself that is explained; give another.")
    return given, checked(found, run.model, given.inputs), kind


def continued(run: Run, examples: Sequence[Mapping[str, Any]], text: str) -> tuple[Given, Target, str]:
    """Rows that go on with a text, whose probability is explained.

    Raises:
        UserError: a model that does not write.
    """
    if run.experiment.task.HEAD not in ("next_token", "continued", "target"):
        raise UserError(f"--continuation={text!r}: {run.config.task} writes nothing; give --target=NAME.")
    ids, before = _ids(run, text), read(run, examples)
    given = read(run, examples, ids[:-1])
    sizes = [len(row) for row in before.tokens.get("embedding", before.tokens.get("decoder.embedding", []))]
    places_BP = np.array(sizes)[:, None] - 1 + np.arange(len(ids))
    target = Target(jnp.asarray(places_BP), jnp.asarray(np.broadcast_to(ids, places_BP.shape)), of_all=True)
    return given, checked(target, run.model, given.inputs), "continuation"


def answer(run: Run, kind: str, name: str, flag: str) -> int:
    """The number of an answer by its name.

    Raises:
        UserError: there is none of that name.
    """
    if kind in ("class", "tag"):
        known = names(run)
        if name not in known:
            near = "".join(f"; the nearest is {one}" for one in difflib.get_close_matches(name, known, 1))
            few = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise UserError(f"--{flag}={name} is none of the {len(known)} classes ({few}){near}.")
        return known.index(name)
    marks = {f"({mark})": number for mark, number in ({"end": run.tokenizer.end} | run.tokenizer.marks).items()}
    ids = [marks[name]] if name in marks else _ids(run, name)
    if len(ids) != 1:
        first = sentinels.shown(run.tokenizer, ids[0]).decode(errors="replace")
        more = ", or all as --continuation" if flag == "target" else ""
        raise UserError(f"--{flag}={name!r} is {len(ids)} tokens, and one is needed; give its first, {first!r}{more}.")
    return ids[0]
