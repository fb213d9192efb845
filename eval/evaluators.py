"""What is measured of a run while it learns, by its task: a line for each; the names are endpoints of ablations."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from eval.accuracy import Accuracy, Pairs
from eval.baselines.examples import known_example_baselines
from eval.baselines.masked import known_neighbours, known_neighbours_of_spans
from eval.baselines.text import known_baselines
from eval.evaluator import Evaluator
from eval.explain.planted import Found
from eval.explain.specialised import Specialised
from eval.likelihood import Likelihood
from eval.metrics.pairs import signatures
from eval.scored import Classes, Numbers, Several, Spans, Tags, Texts
from train.tasks.base import Task


class Measured(NamedTuple):
    """The evaluators of a task, which of their values is its score, and what others reach on the same rows.

    `baselines` gives names to scores, of a task and its data. `lower` says that less is better, and `notes` what
    belongs beside the numbers.
    """

    evaluators: tuple[type[Evaluator], ...]
    score: str
    meaning: str
    lower: bool
    baselines: Callable[[Task, Any], Mapping[str, float]]
    notes: Callable[[], Mapping[str, str]] = dict


def _examples(metric: str) -> Callable[[Task, Any], Mapping[str, float]]:
    """What each rule reaches by a metric."""

    def baselines(task: Task, data: Any) -> Mapping[str, float]:
        known = {name.rpartition("/"): value for name, value in known_example_baselines(data.corpus).items()}
        return {rule: value for (rule, _, name), value in known.items() if name == metric}

    return baselines


_TEXT = Measured(
    (Likelihood,),
    "val/bits_per_byte",
    "bits per byte of the validation text",
    True,
    lambda task, data: known_baselines(data),
)
MEASURED: dict[str, Measured] = {
    "language_model": _TEXT,
    "streamed_text": _TEXT,
    "heads": _TEXT._replace(evaluators=(Likelihood, Specialised)),
    "masked_lm": Measured(
        (Accuracy,), "val/accuracy", "share of the masked tokens that are told", False, known_neighbours
    ),
    "span_corruption": Measured(
        (Accuracy,),
        "val/accuracy",
        "share of the tokens taken out that are told, from those before and what was kept",
        False,
        known_neighbours_of_spans,
    ),
    "next_sentence": Measured(
        (Pairs,), "val/accuracy", "share of the masked tokens that are told", False, known_neighbours
    ),
    "classification": Measured(
        (Classes,), "val/accuracy", "share of the texts whose class is told", False, _examples("accuracy")
    ),
    "rationale": Measured(
        (Classes, Found), "val/accuracy", "share of the texts whose class is told", False, _examples("accuracy")
    ),
    "several_labels": Measured(
        (Several,), "val/micro_f1", "F1 of labels, all of them together", False, _examples("micro_f1")
    ),
    "regression": Measured((Numbers,), "val/mse", "mean squared error of the numbers", True, _examples("mse")),
    "translation": Measured(
        (Texts,),
        "val/exact_match",
        "share of the texts that are written to the letter",
        False,
        _examples("exact_match"),
        signatures,
    ),
    "tagging": Measured((Tags,), "val/f1", "F1 of entities, strict IOB2", False, _examples("f1")),
    "span_qa": Measured(
        (Spans,),
        "val/exact_match",
        "share of the questions that are answered letter by letter",
        False,
        _examples("exact_match"),
    ),
}


def endpoints(task: str | None = None) -> tuple[str, ...]:
    """The names of all that is measured, of one task or of any."""
    of = MEASURED.values() if task is None else [MEASURED[task]]
    return tuple(dict.fromkeys(name for one in of for kind in one.evaluators for name in kind.NAMES))


class Evaluators:
    """All of a task as one, made from what each of them takes."""

    def __init__(self, task: str, *given: Any):
        self._each = [one(*given) for one in MEASURED[task].evaluators]

    def __call__(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, Any]]:
        """Yields the names and values of each; stopped early, nothing at all."""
        found: dict[str, Any] = {}
        for each in self._each:
            values = dict(each(params, should_stop))
            if not values:
                return
            found |= values
        yield from found.items()

    def answered(self, params: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The values of each by name, and a record of each example; none where the task has no answers to examples."""
        found = [(each, each.totals(params)) for each in self._each]
        values = {name: value for each, totals in found for name, value in each.named(totals)}
        return values, [record for each, totals in found for record in each.records(totals)]


def compare(task: str, score: float, baselines: Mapping[str, float]) -> str:
    """A table of a task's scores, worst first, with the model in its place."""
    of = MEASURED[task]
    rows = {name: one for name, one in baselines.items() if name != "train_bytes"} | {"this model": score}
    ordered = sorted(rows.items(), key=lambda row: row[1], reverse=of.lower)
    width = max(12, *map(len, rows))
    lines = [f"  {name:<{width}} {one:.4f}" for name, one in ordered]
    return "\n".join([f"{of.meaning} ({'less' if of.lower else 'more'} is better):", *lines])
