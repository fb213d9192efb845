"""Baselines of examples, against loops over them."""

import math
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eval.baselines import BASELINES, example_baselines, keeping, known_example_baselines
from eval.baselines.labels import STRENGTH, majority, majority_by_label, naive_bayes
from eval.baselines.pairs import copy, dictionary
from eval.baselines.spans import commonest_answer, commonest_default, first_default
from eval.baselines.tags import commonest_tag
from eval.metrics import Answer, scores
from train.data.examples import Labelled, Pair, Question, Tagged
from train.data.examples.questions import asked_of


def labelled(seed: int, count: int) -> list[Labelled]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        label = "pqr"[rng.integers(3)]
        words = [f"w{int(rng.normal('pqr'.index(label) * 3, 4))}" for _ in range(rng.integers(0, 6))]
        found.append(Labelled(" ".join(words), label, "." if rng.random() < 0.5 else "more w1"))
    return found


def test_naive_bayes_equals_the_formula_word_by_word() -> None:
    train, asked = labelled(1, 40), labelled(2, 23)
    words = [re.findall(r"\w+", f"{one.text} {one.second_text}") for one in train]
    vocabulary = {word for some in words for word in some}
    found = naive_bayes(train, asked)
    for one, label in zip(asked, found, strict=True):
        scored = {}
        for name in "pqr":
            counts = Counter(w for some, of in zip(words, train, strict=True) if of.label == name for w in some)
            score = math.log(sum(of.label == name for of in train) / len(train))
            for word in re.findall(r"\w+", f"{one.text} {one.second_text}"):
                if word in vocabulary:
                    score += math.log((counts[word] + STRENGTH) / (counts.total() + STRENGTH * len(vocabulary)))
            scored[name] = score
        assert label == max(scored, key=lambda name: scored[name])
    assert len(set(found)) > 1


def test_majority() -> None:
    assert majority([Labelled("", "a"), Labelled("", "b"), Labelled("", "b")], [Labelled("", "a")] * 2) == ["b", "b"]
    assert majority([Labelled("", 1.0), Labelled("", 2.5)], [Labelled("", 0.0)]) == [1.75]
    several = [Labelled("", ("a", "b")), Labelled("", ()), Labelled("", ("a", "b"))]
    assert majority(several, several[:1]) == [("a", "b")]
    assert naive_bayes(several, several) == []
    assert majority_by_label([*several, Labelled("", ("b",))], several[:2]) == [("b",)] * 2  # a: of half alone
    assert majority_by_label([Labelled("", "a")], several) == []


def test_tags() -> None:
    train = [Tagged(("a", "b", "a"), ("B-X", "O", "B-X")), Tagged(("a", "c", "b"), ("O", "O", "B-X"))]
    assert commonest_tag(train, [Tagged(("a", "b", "d"), ("O", "O", "O"))]) == [("B-X", "O", "B-X")]


def test_defaults() -> None:
    train = asked_of("def t(a=None, b=None, c=0):")
    header = "def f(x, a=1, b=None, c={}, d=None, e=0):"
    asked = asked_of(header)
    assert first_default(train, asked) == [Answer("1", header.index("1"))] * 5
    assert commonest_default(train, asked) == [Answer("None", header.index("None"))] * 5
    found = scores(commonest_default(train, asked), asked)
    assert (found["exact_match"], found["wrong_place"]) == (2 / 5, 1 / 5)
    assert first_default([], [Question("who?", "it is I", ("I",), (6,))]) == []


def test_the_commonest_answer_of_any_question() -> None:
    train = [Question("?", "b a b", answers, (0,) * len(answers)) for answers in (("b",), ("a",), ("b", "b a"), ())]
    asked = [Question("?", context) for context in ("a then b, b", "say a", "c")]
    assert commonest_answer(train, asked) == [Answer("b", 7), Answer("a", 1), Answer("")]


def test_pairs() -> None:
    train = [Pair("one two", "eins zwei"), Pair("two three", "zwei drei"), Pair("one three", "eins drei")]
    asked = [Pair("three one four", "drei eins vier")]
    assert dictionary(train, asked) == ["drei eins four"]
    # A word that stands everywhere is no translation of each.
    assert dictionary([Pair("one", "der eins"), Pair("two", "der zwei")], [Pair("two one", "")]) == ["zwei eins"]
    assert copy(train, asked) == ["three one four"]


CASES = {
    Labelled: labelled(3, 30),
    Tagged: [Tagged(("a", "b"), ("B-X", "O"))] * 3,
    Question: asked_of("def f(a=1, b=2, c=2):"),
    Pair: [Pair("a", "b")] * 3,
}


@pytest.mark.parametrize("kind", BASELINES, ids=lambda kind: kind.__name__)
def test_each_is_scored_on_validation(kind: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train, asked = CASES[kind], CASES[kind][:2]
    corpus = SimpleNamespace(splits={"train": train, "validation": asked}, fingerprint=kind.__name__)
    expected = {}
    for name, rule in BASELINES[kind].items():
        if predicted := rule(train, asked):
            expected |= {f"{name}/{metric}": value for metric, value in scores(predicted, asked).items()}
    assert example_baselines(corpus) == expected
    monkeypatch.setattr(keeping, "cache_folder", lambda: tmp_path / "cache")
    assert known_example_baselines(corpus) == expected
    kept = SimpleNamespace(fingerprint=kind.__name__)  # whose examples cannot be read again
    assert known_example_baselines(kept) == expected


@pytest.mark.parametrize("kind", BASELINES, ids=lambda kind: kind.__name__)
def test_none_looks_at_the_answers(kind: type) -> None:
    blank = {
        Labelled: lambda one: Labelled(one.text, "p", one.second_text),
        Tagged: lambda one: Tagged(one.words, ("O",) * len(one.words)),
        Question: lambda one: Question(one.question, one.context),
        Pair: lambda one: Pair(one.source, "?"),
    }[kind]
    for rule in BASELINES[kind].values():
        assert rule(CASES[kind], CASES[kind]) == rule(CASES[kind], list(map(blank, CASES[kind])))


def test_rules_for_other_examples_are_left_out() -> None:
    prose = [Question("who?", "it is I", ("I",), (6,))]
    found = example_baselines(SimpleNamespace(splits={"train": prose, "validation": prose}))
    assert {name.partition("/")[0] for name in found} == {"commonest_answer"}
    numbers = [Labelled("a", 1.0), Labelled("b", 2.0)]
    found = example_baselines(SimpleNamespace(splits={"train": numbers, "validation": numbers}))
    assert found == {"majority/mse": 0.25}  # one and the same number correlates with nothing
