"""What is written of predictions, for each kind of example: their columns, and what is right, as scores count it."""

import dataclasses

import numpy as np
import pytest

from eval.metrics import Answer, records, scores
from eval.metrics.scores import SCORES
from train.data.examples import Labelled, Pair, Question, Tagged

CONTEXT = "def f(a=1, b=2, c=1):"
# Predictions beside examples, and the score that counts those that are right.
CASES = {
    "one label": (["x", "y", "y"], [Labelled("a", "x"), Labelled("b", "y", "c"), Labelled("d", "x")], "accuracy"),
    "several": (
        [("y", "x"), (), ("x",)],
        [Labelled("a", ("x", "y")), Labelled("b", ()), Labelled("c", ())],
        "exact_match",
    ),
    "spans": (
        [Answer("1", 8), Answer("2", 13), Answer("")],
        [Question("?", CONTEXT, ("1",), (8,)), Question("?", CONTEXT, ("1",), (8,)), Question("?", CONTEXT)],
        "exact_match",
    ),
    "pairs": (["b", "c"], [Pair("a", "b"), Pair("b", "d")], "exact_match"),
    "tags": ([("B-X",), ("O", "O")], [Tagged(("a", "b"), ("B-X", "O")), Tagged(("a", "b"), ("B-X", "O"))], None),
    "numbers": ([1.5, 2.0], [Labelled("a", 1.5), Labelled("b", 3.0)], None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_right_is_what_the_scores_count(name: str) -> None:
    predicted, examples, score = CASES[name]
    found = list(records(predicted, examples))
    right = [line["right"] for line in found]
    for one, line in zip(examples, found, strict=True):
        assert list(line) == [field.name for field in dataclasses.fields(one)] + ["predicted", "right"]
        assert all(value == line[name] for name, value in vars(one).items())
    if score:
        assert 0 < np.mean(right) == scores(predicted, examples)[score] < 1
    elif name == "tags":  # the words beyond the row are O
        assert [(line["predicted"], line["right"]) for line in found] == [(("B-X", "O"), True), (("O", "O"), False)]
    else:
        assert right == [None, None]


def test_every_kind_has_a_case() -> None:
    assert {type(examples[0]) for _, examples, _ in CASES.values()} == SCORES.keys()


def test_none_is_missing() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        list(records(["x"], CASES["one label"][1]))
