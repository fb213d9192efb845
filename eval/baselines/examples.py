"""The baselines of each kind of example: a table of rules, and their scores on the validation split."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.baselines import labels, pairs, spans, tags
from eval.baselines.keeping import kept
from eval.metrics import scores
from train.data.examples import Corpus, Labelled, Pair, Question, Tagged

_EVAL = Path(__file__).resolve().parent.parent
Rule = Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]]
# Each learns from the examples of the train split, and predicts those of the validation split without their answers.
BASELINES: dict[type, dict[str, Rule]] = {
    Labelled: {
        "majority": labels.majority,
        "majority_by_label": labels.majority_by_label,
        "naive_bayes": labels.naive_bayes,
    },
    Tagged: {"commonest_tag": tags.commonest_tag},
    Question: {
        "first_default": spans.first_default,
        "commonest_default": spans.commonest_default,
        "commonest_answer": spans.commonest_answer,
    },
    Pair: {"copy": pairs.copy, "dictionary": pairs.dictionary},
}
MAX_TRAIN = 100_000  # examples that a rule learns from: the first ones


def example_baselines(corpus: Corpus) -> dict[str, float]:
    """Returns {'BASELINE/METRIC': value} of the validation split.

    A rule that cannot speak of such examples is left out, and so is a metric without a value, as the correlation with
    one and the same number.
    """
    train = [one for _, one in zip(range(MAX_TRAIN), corpus.splits["train"], strict=False)]
    asked = list(corpus.splits["validation"])
    found: dict[str, float] = {}
    for name, rule in BASELINES[type(asked[0])].items():
        predicted = rule(train, asked)
        if len(predicted):
            found |= {f"{name}/{metric}": value for metric, value in scores(predicted, asked).items()}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def known_example_baselines(corpus: Corpus) -> dict[str, float]:
    """The same, computed once for each corpus and then kept in the cache folder, until a rule or a metric changes."""
    files = sorted(file for room in ("baselines", "metrics") for file in (_EVAL / room).glob("*.py"))
    code = b"".join(file.read_bytes() for file in files)
    key = hashlib.sha256(corpus.fingerprint.encode() + code).hexdigest()
    return kept(key, lambda: example_baselines(corpus))
