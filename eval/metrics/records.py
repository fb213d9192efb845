"""Each example beside what was predicted of it: what a file of predictions holds."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from eval.metrics.entities import filled
from eval.metrics.spans import Answer
from train.data.examples import Labelled, Pair, Question, Tagged


def _labelled(given: Any, one: Labelled) -> tuple[Any, bool | None]:
    if isinstance(one.label, float):
        return float(given), None  # a number is near, and never right
    return given, set(given) == set(one.label) if isinstance(one.label, tuple) else given == one.label


def _tagged(given: tuple[str, ...], one: Tagged) -> tuple[Any, bool]:
    tags = filled(given, len(one.tags))
    return tags, tags == one.tags


def _answered(given: Answer, one: Question) -> tuple[Any, bool]:
    return given._asdict(), given.text in (one.answers or ("",))


def _translated(given: str, one: Pair) -> tuple[Any, bool]:
    return given, given == one.target


# What is written of a prediction of each kind of example, and whether it is right, letter by letter.
_READ: dict[type, Callable[[Any, Any], tuple[Any, bool | None]]] = {
    Labelled: _labelled,
    Tagged: _tagged,
    Question: _answered,
    Pair: _translated,
}


def records(predicted: Iterable[Any], examples: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yields for each example its own columns, as one's own file has them, then `predicted` and `right`.

    A prediction is as `scores` takes it; tags have an `O` for each word beyond those that were seen. It is right if all
    of it is; of numbers that is None.
    """
    for given, one in zip(predicted, examples, strict=True):
        said, right = _READ[type(one)](given, one)
        own = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
        yield own | {"predicted": said, "right": right}
