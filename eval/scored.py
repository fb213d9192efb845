"""Answers beside examples: the mean loss, and what `eval.metrics` says of the likeliest answers."""

from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import numpy as np

from eval.evaluator import Evaluator
from eval.metrics import records, scores


class Scored(Evaluator):
    """Adds up the `sums` of a task of examples, and collects its `answers`, of which its rows make predictions."""

    def added(self, totals: Any, one: Any) -> Any:
        """The totals with those of one batch."""
        rows = np.ndim(totals["sums"]["loss"][0])  # behind an axis of seeds, where there is one
        answers = np.concatenate([totals["answers"], one["answers"]], axis=rows)
        return {"sums": jax.tree.map(np.add, totals["sums"], one["sums"]), "answers": answers}

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields val/loss per answer, and the metrics of the examples' kind."""
        total, count = totals["sums"]["loss"]
        yield "val/loss", total / count
        found = [scores(predicted, self.rows.examples) for predicted in self.predicted(totals)]  # type: ignore[attr-defined]
        for name in found[0]:
            each_N = np.array([one[name] for one in found])
            yield f"val/{name}", each_N if np.ndim(total) else each_N[0]

    def records(self, totals: Any) -> Iterator[dict[str, Any]]:
        """Yields each example with what the first seed predicts of it."""
        yield from records(self.predicted(totals)[0], self.rows.examples)  # type: ignore[attr-defined]

    def predicted(self, totals: Any) -> list[Any]:
        """The predictions of each seed, for all rows."""
        answers = totals["answers"] if np.ndim(totals["sums"]["loss"][0]) else totals["answers"][None]
        return [self.rows.predicted(one[: len(self.rows)]) for one in answers]  # type: ignore[attr-defined]


class Tags(Scored):
    """Of tags of words, and the entities that they make."""

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/precision", "val/recall", "val/f1", "val/tag_accuracy")


class Texts(Scored):
    """Of texts that the model writes by itself."""

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/exact_match", "val/bleu", "val/chrf")


class Classes(Scored):
    """Of classes."""

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/accuracy", "val/macro_f1", "val/mcc")


class Several(Scored):
    """Of any number of labels each."""

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/exact_match", "val/micro_f1", "val/macro_f1")


class Numbers(Scored):
    """Of numbers."""

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/mse", "val/pearson", "val/spearman")


class Spans(Scored):
    """Of answers that stand in a text, and which of them no row holds."""

    NAMES: ClassVar[tuple[str, ...]] = (
        "val/loss",
        "val/exact_match",
        "val/wrong_place",
        "val/squad_exact_match",
        "val/squad_f1",
        "val/cut",
    )

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields what `Scored` does, and val/cut: the share of the questions whose answer is cut off their row."""
        yield from super().values(totals)
        cut, count = totals["sums"]["cut"]
        yield "val/cut", cut / count
