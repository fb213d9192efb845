"""Scores of answers, by hand and against SQuAD's rules written another way."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import Answer
from eval.metrics.spans import exact_match, f1, normalised, span_scores
from train.data.examples import Question


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Cat's\ta Mat.", "cats mat"),
        ("theory an-other A", "theory another"),
        ("a.b the", "ab"),
        ("{}", ""),
        ("-1", "1"),
        ("Größe – „the“", "größe – „ “"),  # signs beyond ASCII stay
    ],
)
def test_normalisation_by_hand(text: str, plain: str) -> None:
    assert normalised(text) == plain


def slow_f1(given: str, answers: list[str]) -> float:
    """The rule with lists from which words are taken one by one."""

    def words(text: str) -> list[str]:
        text = "".join(" " if c.isspace() else c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(?:a|an|the)\b", " ", text).split()

    golds = [words(one) for one in answers if words(one)] or [[]]
    best = 0.0
    for gold in golds:
        mine, left, common = words(given), list(gold), 0
        for word in mine:
            if word in left:
                left.remove(word)
                common += 1
        if not mine or not gold:
            best = max(best, float(mine == gold))
        elif common:
            precision, recall = common / len(mine), common / len(gold)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


TEXT = st.text(alphabet="ab Te.h-", max_size=11) | st.sampled_from(
    ["the cat", "a the", "cat cat sat", "cat sat the mat"]
)


@given(TEXT, st.lists(TEXT, max_size=3))
def test_f1_equals_the_slow_rule(given: str, answers: list[str]) -> None:
    assert f1(given, answers) == pytest.approx(slow_f1(given, answers), abs=1e-12)
    assert exact_match(given, answers) == any(
        normalised(given) == one for one in ([normalised(x) for x in answers if normalised(x)] or [""])
    )


def test_all_of_a_split() -> None:
    context = "None or None, not {} or -1"
    examples = [
        Question("q", context, ("None",), (8,)),
        Question("q", context, ("None", "{}"), (0, 18)),
        Question("q", context, ("-1",), (24,)),
        Question("q", context),
        Question("q", context),
    ]
    predicted = [Answer("None", 0), Answer("{}", 18), Answer("1", 25), Answer(""), Answer("or", 5)]
    found = span_scores(predicted, examples)
    assert found == pytest.approx(
        {
            "exact_match": 3 / 5,  # the first, though elsewhere, the second, and the one without answer
            "wrong_place": 1 / 5,
            "squad_exact_match": 3 / 5,  # '1' is right, and '{}' is nothing
            "squad_f1": 3 / 5,
            "squad_f1_answered": 2 / 3,
            "squad_f1_unanswered": 1 / 2,
        }
    )
    with pytest.raises(ValueError, match="4 predictions for 5 questions"):
        span_scores(predicted[:4], examples)


def test_the_first_and_the_last_word_are_answers() -> None:
    example = Question("q", "one two", ("one",), (0,)), Question("q", "one two", ("two",), (4,))
    found = span_scores([Answer("one", 0), Answer("two", 4)], example)
    assert (found["exact_match"], found["wrong_place"]) == (1.0, 0.0)
