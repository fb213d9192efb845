"""The tasks that a config can name; what trains, evaluates and shows them knows none of them by name."""

from ml_collections import ConfigDict

from model.layers import choose
from train.tasks.base import Task
from train.tasks.classification import Classification
from train.tasks.heads import Heads
from train.tasks.language_model import LanguageModel
from train.tasks.masked_lm import MaskedLM
from train.tasks.next_sentence import NextSentence
from train.tasks.rationale import Rationale
from train.tasks.regression import Regression
from train.tasks.several_labels import SeveralLabels
from train.tasks.span_corruption import SpanCorruption
from train.tasks.span_qa import SpanQA
from train.tasks.streams import StreamedText
from train.tasks.tagging import Tagging
from train.tasks.translation import Translation

TASKS: dict[str, type[Task]] = {
    "language_model": LanguageModel,
    "heads": Heads,
    "masked_lm": MaskedLM,
    "next_sentence": NextSentence,
    "classification": Classification,
    "rationale": Rationale,
    "several_labels": SeveralLabels,
    "regression": Regression,
    "tagging": Tagging,
    "span_qa": SpanQA,
    "translation": Translation,
    "span_corruption": SpanCorruption,
    "streamed_text": StreamedText,
}


def make_task(config: ConfigDict) -> Task:
    """The task of a config, with its keys.

    Raises:
        UserError: there is no such task, or a key is out of its range.
    """
    return choose(TASKS, config.task, "task")(**config.objective)
