"""Scores of labels, against their formulas one example at a time."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.labels import label_scores

NAMES = "abcd"
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=23)


def f1(pairs: list[tuple[str, str]], name: str) -> float:
    hits = sum(p == t == name for p, t in pairs)
    wrong = sum((p == name) != (t == name) for p, t in pairs)
    return hits / (hits + wrong / 2)


def correlation(pairs: list[tuple[str, str]]) -> float:
    """Gorodkin's: the covariance of indicators, summed over classes, by a loop; 0 where there is no spread."""

    def covariance(a: list[str], b: list[str]) -> float:
        total = 0.0
        for name in NAMES:
            x, y = [one == name for one in a], [one == name for one in b]
            total += sum((i - sum(x) / len(x)) * (j - sum(y) / len(y)) for i, j in zip(x, y, strict=True))
        return total

    predicted, true = map(list, zip(*pairs, strict=True))
    spread = covariance(predicted, predicted) * covariance(true, true)
    return covariance(predicted, true) / math.sqrt(spread) if spread > 1e-12 else 0.0


@given(PAIRS)
def test_equal_the_formulas(pairs: list[tuple[str, str]]) -> None:
    found = label_scores([p for p, _ in pairs], [t for _, t in pairs])
    seen = sorted({name for pair in pairs for name in pair})
    expected = {
        "accuracy": sum(p == t for p, t in pairs) / len(pairs),
        "macro_f1": sum(f1(pairs, name) for name in seen) / len(seen),
        "mcc": correlation(pairs),
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_mcc_of_two_classes_is_the_formula_of_the_four_counts() -> None:
    tp, tn, fp, fn = 7, 11, 3, 5
    pairs = [("y", "y")] * tp + [("n", "n")] * tn + [("y", "n")] * fp + [("n", "y")] * fn
    found = label_scores(*map(list, zip(*pairs, strict=True)))
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert found["mcc"] == pytest.approx(expected, rel=1e-12)


def test_macro_f1_of_two_classes_is_no_maximum_over_them() -> None:
    """Where one class alone is predicted: 2/3 for it and 0 for the other."""
    found = label_scores(["y"] * 4, ["y", "y", "n", "n"])
    assert found == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "mcc": 0.0}


def test_several_names() -> None:
    predicted, true = [("a", "b"), ("b",), (), ("c",)], [("b", "a"), ("a", "b"), (), ("a",)]
    found = label_scores(predicted, true)
    each = {"a": 2 * 1 / (1 + 3), "b": 2 * 2 / (2 + 2), "c": 0.0}  # hits, predicted + true
    expected = {"exact_match": 0.5, "micro_f1": 2 * 3 / (4 + 5), "macro_f1": sum(each.values()) / 3}
    assert found == pytest.approx(expected)
    assert label_scores([()], [()]) == {"exact_match": 1.0, "micro_f1": 1.0, "macro_f1": 1.0}


@given(st.lists(st.tuples(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES))), min_size=1, max_size=9))
def test_several_names_equal_the_formulas(pairs: list[tuple[set[str], set[str]]]) -> None:
    """Of a label, F1 is the harmonic mean of precision and recall; of all together, of their summed counts."""
    found = label_scores([tuple(p) for p, _ in pairs], [tuple(t) for _, t in pairs])
    counts = {
        name: [
            sum(name in p and name in t for p, t in pairs),
            sum(name in p and name not in t for p, t in pairs),
            sum(name not in p and name in t for p, t in pairs),
        ]
        for name in NAMES
    }

    def harmonic(hits: int, false: int, missed: int) -> float:
        precision, recall = (hits / (hits + other) if hits else 0.0 for other in (false, missed))
        return 2 * precision * recall / (precision + recall) if hits else 0.0

    seen = [row for row in counts.values() if any(row)]
    assert found == pytest.approx(
        {
            "exact_match": sum(p == t for p, t in pairs) / len(pairs),
            "micro_f1": harmonic(*map(sum, zip(*seen, strict=True))) if seen else 1.0,
            "macro_f1": sum(harmonic(*row) for row in seen) / len(seen) if seen else 1.0,
        },
        abs=1e-9,
    )


def test_numbers() -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 7, 31).astype(float)
    y = x**3 + rng.integers(0, 50, 31)
    found = label_scores(x.tolist(), y.tolist())

    def pearson(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))

    def ranks(a: np.ndarray) -> np.ndarray:
        return np.array([(a < one).sum() + ((a == one).sum() + 1) / 2 for one in a])

    mse = sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 31
    expected = {"mse": mse, "pearson": pearson(x, y), "spearman": pearson(ranks(x), ranks(y))}
    assert found == pytest.approx(expected, rel=1e-12)
    for constant in itertools.permutations([[1.0, 1.0], [1.0, 2.0]]):
        scored = label_scores(*constant)
        assert (scored.pop("mse"), all(map(math.isnan, scored.values()))) == (0.5, True)


def test_a_missing_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 labels"):
        label_scores(["a"], ["a", "b"])
