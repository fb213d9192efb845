"""Answers without a model; of the default of an argument, and of any question."""

from collections import Counter
from collections.abc import Callable, Sequence

from train.data.examples import Answer, Question
from train.data.examples.questions import arguments

COMMONEST = 1000  # answers that are looked for in each context


def first_default(train: Sequence[Question], asked: Sequence[Question]) -> list[Answer]:
    """Returns the first default of each header; nothing where contexts are no headers."""
    return _answers(asked, lambda known: known[0])


def commonest_default(train: Sequence[Question], asked: Sequence[Question]) -> list[Answer]:
    """Returns of each header the first of its defaults that is the commonest in the train split; nothing, as above."""
    counts = Counter(answer for one in train for answer in one.answers)
    return _answers(asked, lambda known: max(known, key=lambda answer: counts[answer.text]))


def commonest_answer(train: Sequence[Question], asked: Sequence[Question]) -> list[Answer]:
    """Returns of each context the commonest answer of the train split that stands in it, at its first place; of the
    `COMMONEST` ones, and none where none of them does.
    """
    counts = Counter(answer for one in train for answer in one.answers)
    known = [answer for answer, _ in counts.most_common(COMMONEST)]
    found = [next((answer for answer in known if answer in one.context), "") for one in asked]
    return [
        Answer(answer, one.context.index(answer)) if answer else Answer("")
        for answer, one in zip(found, asked, strict=True)
    ]


def _answers(asked: Sequence[Question], choose: Callable[[list[Answer]], Answer]) -> list[Answer]:
    known = []
    for one in asked:
        spans = [argument.default for argument in arguments(one.context) if argument.default]
        known.append([Answer(one.context[span], span.start) for span in spans])
    return [choose(answers) for answers in known] if all(known) else []
