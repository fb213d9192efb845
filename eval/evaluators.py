"""What is measured of every run while it learns: a line for each evaluator; its names are endpoints of ablations."""

from collections.abc import Callable, Iterator
from typing import Any

from eval.likelihood import Likelihood

# Each is made as `Likelihood` is, says its NAMES, and yields a value for each that its text has.
EVALUATORS: tuple[type[Likelihood], ...] = (Likelihood,)


def endpoints() -> tuple[str, ...]:
    """The names of all that is measured."""
    return tuple(name for one in EVALUATORS for name in one.NAMES)


class Evaluators:
    """All of them as one, made from what each of them takes."""

    def __init__(self, *given: Any):
        self._each = [one(*given) for one in EVALUATORS]

    def __call__(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, Any]]:
        """Yields the names and values of each; stopped early, nothing at all."""
        found: dict[str, Any] = {}
        for each in self._each:
            values = dict(each(params, should_stop))
            if not values:
                return
            found |= values
        yield from found.items()
