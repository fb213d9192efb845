"""Entity F1 by strict IOB2, against another reading of the rule, and against seqeval."""

import json
import re
import subprocess
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.entities import entities, entity_scores
from tests.model.asking import MARKS, PEER

TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]
ROW = st.lists(st.sampled_from(TAGS), min_size=1, max_size=9)


def by_pattern(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities by a regular expression over a letter for each tag."""
    letters = "".join({"O": "o", "B-X": "X", "I-X": "x", "B-Y": "Y", "I-Y": "y"}[tag] for tag in tags)
    return {(m.start(), m.end(), m[0][0]) for m in re.finditer(r"Xx*|Yy*", letters)}


@given(ROW)
def test_entities_equal_the_pattern(tags: list[str]) -> None:
    assert entities(tags) == by_pattern(tags)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("I-X I-X", set()),  # which a lenient reader takes for an entity
        ("B-X B-X", {(0, 1, "X"), (1, 2, "X")}),
        ("B-X I-Y I-X", {(0, 1, "X")}),
        ("O B-X I-X", {(1, 3, "X")}),
        ("B-a-b I-a-b", {(0, 2, "a-b")}),
    ],
)
def test_entities_by_hand(tags: str, found: set[tuple[int, int, str]]) -> None:
    assert entities(tags.split()) == found


def test_scores_by_hand() -> None:
    true = [["B-X", "I-X", "O", "B-Y"], ["B-Y", "O"]]
    found = entity_scores([["B-X", "O", "O", "B-Y"], ["O", "B-X"]], true)  # one of three is right, of three
    assert found == pytest.approx({"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "tag_accuracy": 3 / 6})
    assert entity_scores([["O"], ["O"]], [["O"], ["O"]]) == {"precision": 0, "recall": 0, "f1": 0, "tag_accuracy": 1}


def test_what_was_cut_counts_as_missed() -> None:
    """The truth is not cut with the text; an entity that is cut in two is not found."""
    true = [["B-X", "O", "B-Y", "I-Y"]]
    assert entity_scores([["B-X", "O"]], true) == entity_scores([["B-X", "O", "O", "O"]], true)
    assert entity_scores([["B-X", "O"]], true)["recall"] == 0.5
    assert entity_scores([["B-X", "O", "B-Y"]], true)["recall"] == 0.5
    with pytest.raises(ValueError, match="5 tags were predicted of 4 words"):
        entity_scores([["O"] * 5], true)
    with pytest.raises(ValueError, match="argument"):
        entity_scores([], true)


SEQEVAL = """
import json, sys, warnings
warnings.simplefilter("ignore")
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
cases = json.load(sys.stdin)
scores = precision_score, recall_score, f1_score
print(json.dumps([[float(score(t, p, mode="strict", scheme=IOB2)) for score in scores] for p, t in cases]))
"""


@pytest.mark.parametrize("seed", [pytest.param(7, marks=MARKS)])
def test_equal_seqeval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(300):
        lengths = rng.integers(1, 9, 3)
        cases.append([[[TAGS[i] for i in rng.integers(0, 5, n)] for n in lengths] for _ in range(2)])
    done = subprocess.run(
        [str(PEER), "-c", SEQEVAL], input=json.dumps(cases), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for case, expected in zip(cases, json.loads(done.stdout), strict=True):
        found = entity_scores(*case)
        assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected, abs=1e-12), case
