"""Scores of answers that stand in a text: letter by letter, and as SQuAD's own script has it."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from train.data.examples import Answer, Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def span_scores(predicted: Sequence[Answer], examples: Sequence[Question]) -> dict[str, float]:
    """Returns the means over all examples; what SQuAD's script calls `exact` and `f1` is divided by 100.

    - `exact_match`: the text is that of one of the answers, letter by letter; of no answer, ''.
    - `wrong_place`: it is, but stands elsewhere, so that it was right by luck.
    - `squad_exact_match`, `squad_f1`: after `normalised`, so of prose; it leaves nothing of signs, such as `{}`.
    - `squad_f1_answered`, `squad_f1_unanswered`: of the examples that have an answer, or none, where there are such.
    """
    if len(predicted) != len(examples):
        raise ValueError(f"{len(predicted)} predictions for {len(examples)} questions")
    each = [(given, one, f1(given.text, one.answers)) for given, one in zip(predicted, examples, strict=True)]
    exact = [given.text in (one.answers or ("",)) for given, one, _ in each]
    placed = [(given.text, given.start) in zip(one.answers, one.starts, strict=True) for given, one, _ in each]
    named: dict[str, list[float] | list[bool]] = {
        "exact_match": exact,
        "wrong_place": [
            a and not b and bool(one.answers) for a, b, (_, one, _) in zip(exact, placed, each, strict=True)
        ],
        "squad_exact_match": [exact_match(given.text, one.answers) for given, one, _ in each],
        "squad_f1": [value for _, _, value in each],
        "squad_f1_answered": [value for _, one, value in each if one.answers],
        "squad_f1_unanswered": [value for _, one, value in each if not one.answers],
    }
    return {name: float(np.mean(values)) for name, values in named.items() if values}


def normalised(text: str) -> str:
    """Returns a text as SQuAD compares it: in small letters, without ASCII punctuation, articles and spare spaces."""
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", letters).split())


def exact_match(given: str, answers: Sequence[str]) -> bool:
    """Returns whether it is one of the answers after `normalised`; without answers it must be empty."""
    return normalised(given) in _golds(answers)


def f1(given: str, answers: Sequence[str]) -> float:
    """Returns the best F1 of words with one of the answers; where either has none, 1 or 0 as both or one are empty."""
    return max(_f1(normalised(given).split(), gold.split()) for gold in _golds(answers))


def _golds(answers: Sequence[str]) -> list[str]:
    """What is compared with: an answer of which nothing is left is none (evaluate-v2.0.py)."""
    return [gold for gold in map(normalised, answers) if gold] or [""]


def _f1(given: list[str], gold: list[str]) -> float:
    if not given or not gold:
        return float(given == gold)
    return 2 * (Counter(given) & Counter(gold)).total() / (len(given) + len(gold))
