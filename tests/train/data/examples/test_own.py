"""One's own examples as JSONL and CSV: what is read, how it is split, and what is refused."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from model.errors import UserError
from train.data.examples import Corpus, Labelled, Pair, Question, Tagged, own_examples

MANY = {
    Labelled: [Labelled(f'text {i}, with\na "comma"', "no yes".split()[i % 2], f"ß{i}") for i in range(40)],
    Tagged: [Tagged((f"w{i}", "b"), ("B-X", "I-X") if i % 2 else ("O", "B-Y")) for i in range(40)],
    Question: [
        Question("who?", f"it is {i}", (str(i),), (6,)) if i % 3 else Question("who?", f"it {i}") for i in range(40)
    ],
    Pair: [Pair(f"one {i}", f"eins {i}") for i in range(40)],
}


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    """Rows by the libraries of Python, as a user would write them."""
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(file, "w", newline="") as lines:
            writer = csv.DictWriter(lines, list(rows[0]))
            writer.writeheader()
            plain = [{k: json.dumps(v) if isinstance(v, tuple | list) else v for k, v in row.items()} for row in rows]
            writer.writerows(plain)
    return file


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize("kind", MANY, ids=lambda kind: kind.__name__)
def test_what_was_written_is_read(kind, suffix, tmp_path) -> None:
    rows = [dataclasses.asdict(one) for one in MANY[kind]]
    rows += rows[:5]  # an example that is told twice is on one side
    found = own_examples(kind, str(write(tmp_path / f"all.{suffix}", rows)))
    assert sorted(map(repr, [*found.splits["train"], *found.splits["validation"]])) == sorted(
        map(repr, [*MANY[kind], *MANY[kind][:5]])
    )
    assert 4 <= len(found.splits["validation"]) <= 5 + 4
    assert found.overlap().shared == 0
    assert found.names == {Labelled: ("no", "yes"), Tagged: ("O", "B-X", "I-X", "B-Y", "I-Y")}.get(kind, ())
    # By the name of the file: this train split has the rest, and the fingerprint is another.
    for split, some in (("train", rows[7:]), ("validation", rows[:7])):
        write(tmp_path / f"{split}-1.{suffix}", some)
    named = own_examples(kind, f"{tmp_path}/*-1.{suffix}")
    assert (len(named.splits["train"]), list(named.splits["validation"])) == (38, MANY[kind][:7])
    assert named.fingerprint != found.fingerprint
    assert named.fingerprint == own_examples(kind, f"{tmp_path}/*-1.{suffix}").fingerprint


def labels(
    tmp_path: Path, form: str, values: list[object], suffix: str = "jsonl", names: tuple[str, ...] = ()
) -> Corpus:
    for split in ("train", "validation"):
        write(tmp_path / f"{split}.{suffix}", [{"text": f"t{i}", "label": value} for i, value in enumerate(values)])
    return own_examples(Labelled, f"{tmp_path}/*.{suffix}", form, names)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_forms_of_labels(suffix, tmp_path) -> None:
    found = labels(tmp_path, "one", [10, 2, 1], suffix)
    assert (found.names, [one.label for one in found.splits["train"]]) == (("1", "2", "10"), ["10", "2", "1"])
    found = labels(tmp_path, "several", [["a", "b"], [], ["c"]], suffix)
    assert (found.names, [one.label for one in found.splits["train"]]) == (("a", "b", "c"), [("a", "b"), (), ("c",)])
    found = labels(tmp_path, "number", [1, 2.5, -3], suffix)
    assert (found.names, [one.label for one in found.splits["train"]]) == (("number",), [1.0, 2.5, -3.0])
    found = labels(tmp_path, "one", ["b"], suffix, names=("c", "b"))
    assert found.names == ("c", "b")


GOOD = {"text": "t", "label": "a"}
QA = {"question": "q", "context": "a b", "answers": ["b"], "starts": [2]}
BAD = [
    (
        Labelled,
        "one",
        '{"text": "t"}',
        ":1 has the columns text, and those of the task are text, label (and second_text, if wanted): rename ",
    ),
    (
        Labelled,
        "one",
        '{"sentence": "t", "label": "a"}',
        ":1 has the columns sentence, label, and those of the task are text, label ",
    ),
    (Tagged, "one", '{"words": ["a"]}', ":1 has the columns words, and those of the task are words, tags: rename "),
    (Labelled, "one", '{"text": "t", "label": null}', ":1 has no label: add one"),
    (Labelled, "one", '\n{"text": "t", "label": ""}', ":2 has no label: add one"),
    (Labelled, "one", '{"text": " ", "label": "a"}', ":1: its text is empty: mend or remove the line."),
    (Labelled, "one", '{"text": 3, "label": "a"}', ":1: its text is 3, and must be a text: "),
    (Labelled, "one", '{"text": "t", "label": ["a"]}', ":1: its label ('a',) is no name of a class: "),
    (Labelled, "one", '{"text": "t", "label": {"q": 1}}', ":1: its label {'q': 1} is no name of a class: "),
    (Labelled, "several", '{"text": "t", "label": [{"q": 1}]}', ":1: its label ({'q': 1},) is no list of names"),
    (Labelled, "several", '{"text": "t", "label": [null]}', ":1: its label (None,) is no list of names"),
    (Labelled, "one", '{"text": "t", "label": 1.5}', ":1: its label 1.5 is no name of a class: "),
    (Labelled, "several", '{"text": "t", "label": "a"}', ":1: its label 'a' is no list of names"),
    (Labelled, "number", '{"text": "t", "label": "a"}', ":1: its label 'a' is no number: "),
    (Labelled, "number", '{"text": "t", "label": true}', ":1: its label True is no number: "),
    (Labelled, "number", '{"text": "t", "label": "nan"}', ":1: its label 'nan' is no number: "),
    (Labelled, "number", '{"text": "t", "label": NaN}', ":1 is no JSON (NaN is not JSON): "),
    (Labelled, "number", '{"text": "t", "label": null}', ":1 has no label: add one"),
    (Labelled, "several", '{"text": "t", "label": null}', ":1 has no label: add one"),
    (Labelled, "several", '{"text": "t", "label": []}\n' * 2 + '{"text": "u", "label": []}', "has a label: add some."),
    (Labelled, "one", '{"text": "t"', ":1 is no JSON ("),
    (Labelled, "one", '["t"]', ":1 is no object of columns, {...}: "),
    (Tagged, "one", '{"words": ["a", "b"], "tags": ["O"]}', ":1: it has 2 words and 1 tags: "),
    (Tagged, "one", '{"words": [], "tags": []}', ":1: it has no words: "),
    (Tagged, "one", '{"words": ["a", ""], "tags": ["O", "O"]}', ":1: its word 1 is empty: "),
    (Tagged, "one", '{"words": ["a"], "tags": ["PER"]}', ":1: its tag 'PER' is none of O, B-NAME and I-NAME: "),
    (
        Tagged,
        "one",
        '{"words": ["a"], "tags": ["I-X"]}',
        ":1: its tag 'I-X' goes on with what did not begin (in IOB2 every ",
    ),
    (
        Tagged,
        "one",
        '{"words": ["a", "b"], "tags": ["B-X", "I-Y"]}',
        ":1: its tag 'I-Y' goes on with what did not begin ",
    ),
    (Tagged, "one", '{"words": "a b", "tags": ["O"]}', ":1: its words must be a list of texts, as JSON writes it: "),
    (Question, "one", json.dumps(QA | {"starts": [1]}), ":1: its answer 'b' does not stand at 1, where ' ' stands: "),
    (Question, "one", json.dumps(QA | {"starts": [3]}), ":1: its answer 'b' at 3 is outside of the 3 characters: "),
    (Question, "one", json.dumps(QA | {"starts": [-1]}), ":1: its answer 'b' at -1 is outside of the 3 characters: "),
    (Question, "one", json.dumps(QA | {"starts": []}), ":1: it has 1 answers and 0 starts: "),
    (Question, "one", json.dumps(QA | {"starts": ["2"]}), ":1: its starts must be a list of whole numbers, "),
    (Question, "one", json.dumps(QA | {"answers": [""]}), ":1: one of its answers is empty "),
    (Question, "one", json.dumps(QA | {"question": " "}), ":1: its question is empty: "),
    (Pair, "one", '{"source": "", "target": "a"}', ":1: its source is empty: "),
    (Pair, "one", '{"source": "a", "target": " "}', ":1: its target is empty: "),
    (Pair, "one", "", "is empty: give at least two rows, or files whose names begin with 'train' and 'validation'."),
    (Pair, "one", '{"source": "a", "target": "b"}', "the split 'validation' of --config.data.path="),
]


@pytest.mark.parametrize(("kind", "form", "text", "sentence"), BAD, ids=[text or "nothing" for _, _, text, _ in BAD])
def test_bad_rows_are_one_sentence(kind, form, text, sentence, tmp_path) -> None:
    (tmp_path / "all.jsonl").write_text(text)
    with pytest.raises(UserError) as caught:
        own_examples(kind, f"{tmp_path}/all.jsonl", form)
    assert sentence in str(caught.value)
    assert str(caught.value).endswith(".")


def test_bad_files_are_one_sentence(tmp_path) -> None:
    cases = {
        "a.txt": (b"x", "neither .jsonl nor .csv"),
        "b.jsonl": (b"\xff", "is not UTF-8 at byte 0"),
        "c.csv": (b"source,target\na,b\nc\n", "c.csv:3 has 1 cells, and the header has 2: mend the line or quote"),
        "d.csv": (b'source,target\na,"b\n', "d.csv:2 is no CSV ("),
        "f.csv": (b"source;target\na;b\n", "f.csv:1 has ';' between its cells, and CSV has commas: convert it."),
        "g.csv": (b"source\ttarget\na\tb\n", "g.csv:1 has '\\t' between its cells, and CSV has commas: "),
        "e.csv": (b"text\na\n", "e.csv:2 has the columns text, and those of the task are source, target: rename"),
    }
    for name, (data, sentence) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            own_examples(Pair, str(tmp_path / name))
        assert sentence in str(caught.value)


def test_a_split_without_a_file_is_told(tmp_path) -> None:
    write(tmp_path / "train.jsonl", [{"source": s, "target": s} for s in "abc"])
    for pattern in ("train.jsonl", "*"):
        with pytest.raises(UserError, match="no file whose name begins with 'validation', though train.jsonl is named"):
            own_examples(Pair, f"{tmp_path}/{pattern}")
    (tmp_path / "validation.jsonl").write_text("")
    with pytest.raises(UserError, match="the split 'validation' of .* is empty: give at least two rows, or files"):
        own_examples(Pair, f"{tmp_path}/*")


def test_a_name_that_is_not_learned_is_refused(tmp_path) -> None:
    write(tmp_path / "train.jsonl", [{"text": "t", "label": "a"}])
    write(tmp_path / "validation.jsonl", [{"text": "t", "label": "b"}])
    with pytest.raises(UserError, match=r"validation.jsonl:1: its label 'b' is not one of those that are learned, a: "):
        own_examples(Labelled, f"{tmp_path}/*.jsonl")
    with pytest.raises(UserError, match=r"its label 'b' is not one of those that are learned, a, c: "):
        own_examples(Labelled, f"{tmp_path}/*.jsonl", names=("a", "c"))


def test_what_is_told_twice_is_counted(tmp_path, caplog) -> None:
    write(tmp_path / "train.jsonl", [{"source": s, "target": s} for s in "aabc"])
    write(tmp_path / "validation.jsonl", [{"source": s, "target": "x"} for s in "bd"])
    write(tmp_path / "other.jsonl", [{"source": "z", "target": "z"}])
    found = own_examples(Pair, f"{tmp_path}/*.jsonl")
    assert caplog.messages == ["other.jsonl is of no split: it is left out, as others are named by theirs."]
    overlap = found.overlap()
    assert (overlap.shared, overlap.validation, overlap.repeated, overlap.characters) == (1, 2, 1, (1, 2))
