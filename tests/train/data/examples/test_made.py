"""Corpora that are made of numbers and days, and how every corpus is kept."""

import datetime
import os
from collections import Counter
from pathlib import Path

import pytest
from num2words import num2words

from model.errors import UserError
from train.data.examples import EMBEDDED, embedded
from train.data.examples.dates import dates
from train.data.examples.numbers import numbers
from train.data.examples.parity import parity
from train.data.examples.types import fingerprint_of

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
WORDS = {word: i for i, word in enumerate([*ONES.split(), "eighteen", "nineteen"])}
WORDS |= {word: 10 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}


def read_english(text: str) -> int:
    """The number that English words say."""
    whole = part = 0
    for word in text.replace(",", "").replace("-", " ").replace(" and ", " ").split():
        if word == "hundred":
            part *= 100
        elif word in ("thousand", "million"):
            whole, part = whole + part * {"thousand": 1000, "million": 10**6}[word], 0
        else:
            part += WORDS[word]
    return whole + part


def test_numbers() -> None:
    found = {
        split: {read_english(one.source): one.target for one in some}
        for split, some in numbers(digits=4, train=1500).splits.items()
    }
    assert {split: len(some) for split, some in found.items()} == {"train": 1500, "validation": 90 + 250, "longer": 500}
    assert not found["train"].keys() & found["validation"].keys()
    assert found["train"].keys() >= set(range(100))
    assert max(found["train"]) < 10**4
    assert min(found["validation"]) >= 100
    assert max(found["validation"]) < 10**4
    assert {len(str(number)) for number in found["longer"]} == {5}
    for some in found.values():
        for number, german in list(some.items())[::7]:
            assert german == num2words(number, lang="de")
    assert numbers(("de", "en"), digits=3, train=150).splits["train"][7].target == "seven"


def test_parity() -> None:
    found = parity(longest=5, train=100).splits
    for some in found.values():
        assert all(one.target == ("odd" if sum(map(int, one.source)) % 2 else "even") for one in some)
    learned, asked = ([one.source for one in found[split]] for split in ("train", "validation"))
    assert Counter(map(len, learned)) == dict.fromkeys(range(1, 6), 20)
    assert Counter(map(len, asked)) == dict.fromkeys(range(6, 11), 50)
    assert Counter(learned)["101"] in (2, 3)  # 8 strings, asked 20 times
    assert len({*learned}) == 2 + 4 + 8 + 16 + 20
    assert len({*asked}) == len(asked)
    with pytest.raises(UserError, match="the longest of 16 bits is not of 4 to 15: change it."):
        parity(longest=16)


def test_dates() -> None:
    found = dates(train=2000).splits
    months = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()
    days = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split()
    seen = {}
    for split, some in found.items():
        for one in some:
            day = datetime.datetime.strptime(one.source, "%A, %B %d, %Y").date()
            assert day not in seen
            seen[day] = split
            assert one.target == f"{days[day.weekday()]}, {day.day}. {months[day.month - 1]} {day.year}"
    assert {split: len(some) for split, some in found.items()} == {"train": 2000, "validation": 1000}
    assert {day.year for day in seen} == set(range(1900, 2100))
    assert dates(("en:medium", "de:short"), train=1).splits["train"][0].target.count(".") == 2


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: numbers(("en", "xx")), "num2words has no language 'xx': give another"),
        (lambda: numbers(digits=2), "numbers of 2 digits are not of 3 to 9: "),
        (lambda: dates(("en:full", "xx:full")), "babel has no language 'xx': "),
        (lambda: dates(("en:full", ":full")), "the form ':full' of a date is not LANGUAGE:FORM with "),
        (lambda: dates(("en:full", "de:wide")), "'de:wide' of a date is not LANGUAGE:FORM with a form of full, long, "),
        (lambda: dates(train=73_000), "73000 days to learn are not from 1 to 72049: "),
        (
            lambda: embedded("no", Path()),
            "--config.data.name='no' is not one of: packages, roles, questions, numbers, dates, parity, rationales.",
        ),
    ],
)
def test_bad_input_is_one_sentence(make, sentence) -> None:
    with pytest.raises(UserError) as caught:
        make()
    assert sentence in str(caught.value)


def library(folder: Path) -> Path:
    """A small library with something for every corpus."""
    for i in range(60):
        lines = "\n".join(f"x{i}_{n} = {n}" for n in range(40))
        name = folder / f"{'ab'[i % 2]}" / f"m{i}.py"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(f"{lines}\ndef f{i}(p{i}, q=1, r=None):\n  return p\n")
    return folder


OPTIONS = {
    "packages": {"among": ("a", "b"), "lines": 5},
    "roles": {"words": 11},
    "questions": {},
    "numbers": {"digits": 3, "train": 200},
    "parity": {"longest": 4, "train": 40},
    "dates": {"train": 100},
    "rationales": {"train": 80, "held_out": 8},
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_corpus_is_made_once_and_is_what_was_made(name, tmp_path) -> None:
    root, cache = library(tmp_path / "library"), tmp_path / "cache"
    first = embedded(name, cache, root, **OPTIONS[name])
    entry = EMBEDDED[name]
    made = entry.make(*[root][: entry.of_library], **OPTIONS[name])
    assert {split: list(some) for split, some in first.splits.items()} == {
        s: list(some) for s, some in made.splits.items()
    }
    assert first.counted == made.counted
    assert all(len(first.splits[split]) for split in ("train", "validation"))
    assert all(type(one) is entry.kind and one.fault() == "" for some in first.splits.values() for one in some)
    assert first.overlap().shared == 0
    assert (first.varied is not None) == (name == "questions")
    assert (first.rationale is not None) == (name == "rationales")
    if first.names:
        assert set(first.names) >= {getattr(one, "label", "O") for one in first.splits["train"]}
    before = {file: os.stat(file).st_mtime_ns for file in cache.rglob("*") if file.suffix != ".lock"}
    again = embedded(name, cache, root, **OPTIONS[name])
    assert {file: os.stat(file).st_mtime_ns for file in cache.rglob("*") if file.suffix != ".lock"} == before
    assert again.fingerprint == first.fingerprint
    assert fingerprint_of(again.splits, again.names) == fingerprint_of(first.splits, first.names)
    (folder,) = [one for one in cache.iterdir() if one.is_dir()]
    cut = folder / "train.jsonl"
    cut.write_bytes(cut.read_bytes()[:-20])
    mended = embedded(name, cache, root, **OPTIONS[name])
    assert fingerprint_of(mended.splits, mended.names) == fingerprint_of(first.splits, first.names)


def test_other_options_and_other_libraries_are_other_corpora(tmp_path) -> None:
    root = library(tmp_path / "library")
    found = {embedded("roles", tmp_path / "cache", root, words=words).fingerprint for words in (11, 13)}
    (root / "a" / "more.py").write_text("x = 1\n")
    found.add(embedded("roles", tmp_path / "cache", root, words=11).fingerprint)
    assert len(found) == 3
