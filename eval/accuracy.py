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


class Pairs(Evaluator):
    """Of masked tokens and pairs of segments: the loss of both, and of each its own, with its accuracy."""

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/nll", "val/accuracy", "val/pair_nll", "val/pair_accuracy")

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields each sum over its count."""
        for name in self.NAMES:
            total, count = totals[name.removeprefix("val/")]
            yield name, total / count
