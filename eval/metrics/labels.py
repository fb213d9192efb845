"""Scores of labels: one of several classes, several of them, or numbers."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

Label = str | tuple[str, ...] | float


def label_scores(predicted: Sequence[Label], true: Sequence[Label]) -> dict[str, float]:
    """Returns `accuracy`, `macro_f1` and `mcc` of names; of several names each `exact_match` (all of them right),
    `micro_f1` and `macro_f1`; of numbers `mse`, `pearson` and `spearman`.
    """
    if len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predictions for {len(true)} labels")
    if isinstance(true[0], float):
        predicted_N, true_N = np.array(predicted, np.float64), np.array(true, np.float64)
        return {
            "mse": float(np.mean((predicted_N - true_N) ** 2)),
            "pearson": pearson(predicted_N, true_N),
            "spearman": spearman(predicted_N, true_N),
        }
    if isinstance(true[0], tuple):
        pairs = [(set(_names(p)), set(_names(t))) for p, t in zip(predicted, true, strict=True)]
        exact = float(np.mean([p == t for p, t in pairs]))
        return {"exact_match": exact, "micro_f1": micro_f1(pairs), "macro_f1": macro_f1_of_several(pairs)}
    confusion_CC = confusion([str(one) for one in predicted], [str(one) for one in true])
    return {
        "accuracy": float(np.trace(confusion_CC) / confusion_CC.sum()),
        "macro_f1": macro_f1(confusion_CC),
        "mcc": mcc(confusion_CC),
    }


def confusion(predicted: Sequence[str], true: Sequence[str]) -> np.ndarray:
    """Returns how often each true class (row) was taken for each class (column), of all that occur on either side."""
    names = {name: i for i, name in enumerate(sorted({*predicted, *true}))}
    counts_CC = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts_CC, ([names[one] for one in true], [names[one] for one in predicted]), 1)
    return counts_CC


def macro_f1(confusion_CC: np.ndarray) -> float:
    """Returns the mean over classes of F1 = 2 hits / (predicted + true); every class weighs the same."""
    return float(np.mean(2 * np.diag(confusion_CC) / (confusion_CC.sum(0) + confusion_CC.sum(1))))


def mcc(confusion_CC: np.ndarray) -> float:
    """Returns Matthews' correlation of classes, 0 where all are predicted, or are, one class.

    (n hits - sum p_k t_k) / sqrt((n^2 - sum p_k^2)(n^2 - sum t_k^2)), with n examples, and p_k predicted and t_k true
    ones of class k (Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient", R_K).
    """
    n = int(confusion_CC.sum())
    predicted_C, true_C = (confusion_CC.sum(axis).astype(float) for axis in (0, 1))
    spread = math.sqrt((n**2 - (predicted_C**2).sum()) * (n**2 - (true_C**2).sum()))
    return float((n * np.trace(confusion_CC) - predicted_C @ true_C) / spread) if spread else 0.0


def micro_f1(pairs: Sequence[tuple[set[str], set[str]]]) -> float:
    """Returns 2 hits / (predicted + true) over the predicted and true names of all examples; 1 where there are none."""
    size = sum(len(predicted) + len(true) for predicted, true in pairs)
    return 2 * sum(len(predicted & true) for predicted, true in pairs) / size if size else 1.0


def macro_f1_of_several(pairs: list[tuple[set[str], set[str]]]) -> float:
    """Returns the mean, over the names that occur on either side, of each one's F1; 1 where there are none."""
    names = {name for both in pairs for some in both for name in some}
    each = [micro_f1([(predicted & {name}, true & {name}) for predicted, true in pairs]) for name in names]
    return float(np.mean(each)) if each else 1.0


def pearson(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """Returns Pearson's correlation; NaN where one side is constant."""
    if _constant(predicted_N) or _constant(true_N):
        return math.nan
    return float(scipy.stats.pearsonr(predicted_N, true_N).statistic)


def spearman(predicted_N: np.ndarray, true_N: np.ndarray) -> float:
    """Returns the correlation of ranks, ties sharing theirs; NaN where one side is constant."""
    if _constant(predicted_N) or _constant(true_N):
        return math.nan
    return float(scipy.stats.spearmanr(predicted_N, true_N).statistic)


def _names(label: Label) -> tuple[str, ...]:
    """The names of a label that may be several."""
    return label if isinstance(label, tuple) else (str(label),)


def _constant(numbers_N: np.ndarray) -> bool:
    return len(numbers_N) < 2 or bool((numbers_N == numbers_N[0]).all())
