"""How often the likeliest answer is the right one, and what the right one costs."""

from collections.abc import Iterator
from typing import Any, ClassVar

from eval.evaluator import Evaluator


class Accuracy(Evaluator):
    """Of sums by name, each with its count: the mean loss in nats and the share of right answers."""

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/accuracy")

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields val/loss and val/accuracy, per answer."""
        for name, (total, count) in (("val/loss", totals["nll"]), ("val/accuracy", totals["accuracy"])):
            yield name, total / count
