"""Answers without a model, to questions for the default of an argument."""

from collections import Counter
from collections.abc import Callable, Sequence

from eval.metrics.spans import Answer
from train.data.examples import Question
from train.data.examples.questions import arguments


def first_default(train: Sequence[Question], asked: Sequence[Question]) -> list[Answer]:
    """Returns the first default of each header; nothing where contexts are no headers."""
    return _answers(asked, lambda known: known[0])


def commonest_default(train: Sequence[Question], asked: Sequence[Question]) -> list[Answer]:
    """Returns of each header the first of its defaults that is the commonest in the train split; nothing, as above."""
    counts = Counter(answer for one in train for answer in one.answers)
    return _answers(asked, lambda known: max(known, key=lambda answer: counts[answer.text]))


def _answers(asked: Sequence[Question], choose: Callable[[list[Answer]], Answer]) -> list[Answer]:
    known = []
    for one in asked:
        spans = [argument.default for argument in arguments(one.context) if argument.default]
        known.append([Answer(one.context[span], span.start) for span in spans])
    return [choose(answers) for answers in known] if all(known) else []
