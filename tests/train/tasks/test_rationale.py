"""Texts of which it is known on what their labels stand: by brute force, as rows, and refused where it is not known."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from launch.configs import load
from model.errors import UserError
from tests.eval.explain.by_hand import planted_rows
from train.data.examples.rationales import GROUPS, NONE, label_of, rationale, rationales
from train.tasks.classification import Classification
from train.tasks.rationale import Rationale
from train.tasks.table import make_task


def test_each_letter_of_a_rationale_is_needed_and_all_of_them_suffice() -> None:
    """Masked one by one, and all subsets of the letters that are of any group; the label is read by another rule."""
    found = rationales(train=120, held_out=40).splits
    for one in itertools.chain(*found.values()):
        text, places = one.text, rationale(one.text)
        counts = Counter(text)
        whole = [group for group in GROUPS if min(counts[letter] for letter in group) == 1]
        assert one.label == (whole[0] if whole else NONE) == label_of(text)
        assert len(places) == (0 if one.label == NONE else 3)
        for place in range(len(text)):
            said = label_of(f"{text[:place]}.{text[place + 1 :]}")
            assert said == (NONE if place in places else one.label)
        near = [place for place, letter in enumerate(text) if letter < "j"]
        assert len(near) == (7 if places else 6)
        if places:
            kept = [some for k in range(8) for some in itertools.combinations(near, k)]
            suffice = [some for some in kept if label_of("".join(text[place] for place in some)) == one.label]
            assert all(set(places) <= set(some) for some in suffice)
            assert min(suffice, key=len) == places


def test_texts_are_drawn_by_their_seed_and_held_out() -> None:
    first, again, other = (rationales(train=80, held_out=40, seed=seed).splits for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(one.label for one in first["train"]) == dict.fromkeys((*GROUPS, NONE), 20)
    assert not {one.text for one in first["train"]} & {one.text for one in first["validation"]}
    assert len({rationale(one.text) for one in first["train"]}) > 40
    with pytest.raises(UserError, match="texts of 7 letters have no room for the 7 that count: give at least 8."):
        rationales(length=7)


def test_rows_tell_where_the_letters_stand() -> None:
    rows = planted_rows()
    found = rows.rows([3, 0, 32])
    for row, number in enumerate((3, 0)):
        text = rows.examples[number].text
        assert bytes(found["tokens"][row][found["text"][row]].tolist()).decode() == text
        letters = found["tokens"][row][found["rationale"][row]].tolist()
        assert sorted(letters) == sorted(ord(letter) for letter in label_of(text) if label_of(text) != NONE)
    assert not found["text"][2].any()
    assert np.array_equal(found["rationale"].sum(1), [0, 3, 0])


def test_it_learns_as_a_classification_does() -> None:
    """So tests of all tasks leave it out."""
    for name in ("loss", "sums", "_logits", "judged", "summed", "rows"):
        assert getattr(Rationale, name) is getattr(Classification, name)


def test_what_nobody_knows_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"t {n}", "label": f"{n % 2}"} for n in range(20)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for keys, sentence in (
        ({"data.path": f"{tmp_path}/own.jsonl"}, f"--config.data.path={tmp_path}/own.jsonl: nobody knows on what"),
        ({"data.tokenizer": "bpe"}, "--config.data.tokenizer=bpe joins letters, each of which is to be told apart"),
    ):
        config = load("bert:rationale", **{"data.dir": f"{tmp_path}/data"}, **keys)
        with pytest.raises(UserError) as caught:
            make_task(config).open(config)
        assert str(caught.value).startswith(sentence)
