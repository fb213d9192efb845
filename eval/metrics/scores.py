"""One call for every kind of example: predictions beside examples, and a number by name."""

from collections.abc import Callable, Sequence
from typing import Any

from eval.metrics.entities import entity_scores
from eval.metrics.labels import label_scores
from eval.metrics.pairs import translation_scores
from eval.metrics.spans import span_scores
from train.data.examples import Labelled, Pair, Question, Tagged

SCORES: dict[type, Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]] = {
    Labelled: lambda predicted, examples: label_scores(predicted, [one.label for one in examples]),
    Tagged: lambda predicted, examples: entity_scores(predicted, [one.tags for one in examples]),
    Question: span_scores,
    Pair: lambda predicted, examples: translation_scores(predicted, [one.target for one in examples]),
}


def scores(predicted: Sequence[Any], examples: Sequence[Any]) -> dict[str, float]:
    """Returns the metrics of predictions for a whole split, which holds at least one example.

    A prediction is a label as the examples have it, the tags of the words, an `Answer`, or a text.

    Raises:
        ValueError: there is not one prediction for each example.
    """
    return SCORES[type(examples[0])](predicted, examples)
