"""BLEU and chrF as sacrebleu has them, against BLEU by hand, and what goes wrong with it."""

import math
import re
from collections import Counter

import pytest

from eval.metrics.pairs import signatures, translation_scores

TARGETS = ["the cat sat on the mat today", "one two three four five six"]
PREDICTED = ["the cat sat on a mat today", "one two three four six five seven"]


def bleu(predicted: list[str], targets: list[str]) -> float:
    """Papineni et al. 2002 of one reference each, over texts of plain words."""
    logs = []
    for n in range(1, 5):
        hits = total = 0
        for mine, theirs in zip(predicted, targets, strict=True):
            a, b = (
                [tuple(text.split()[i : i + n]) for i in range(len(text.split()) - n + 1)] for text in (mine, theirs)
            )
            hits, total = hits + (Counter(a) & Counter(b)).total(), total + len(a)
        logs.append(math.log(hits / total))
    sizes = [sum(len(text.split()) for text in some) for some in (predicted, targets)]
    return 100 * math.exp(min(0, 1 - sizes[1] / sizes[0]) + sum(logs) / 4)


def test_bleu_of_the_whole() -> None:
    found = translation_scores(PREDICTED, TARGETS)
    assert found["bleu"] == pytest.approx(bleu(PREDICTED, TARGETS), rel=1e-9)
    assert found["exact_match"] == 0.0
    assert 0 < found["chrf"] < 100
    # Sides that are swapped, and references that are read as streams, would give other numbers.
    assert translation_scores(TARGETS, PREDICTED)["bleu"] != pytest.approx(found["bleu"])
    right = translation_scores(TARGETS, TARGETS)
    assert right == pytest.approx({"exact_match": 1.0, "bleu": 100.0, "chrf": 100.0})


def test_one_word_has_no_bleu_though_it_is_right() -> None:
    found = translation_scores(["eins", "zweihundert"], ["eins", "zweihundert"])
    assert found == pytest.approx({"exact_match": 1.0, "bleu": 0.0, "chrf": 100.0})


def test_signatures_say_version_and_settings() -> None:
    found = signatures()
    assert found.keys() == {"bleu", "chrf"}
    for name, words in (("bleu", ["nrefs:1", "tok:13a", "smooth:exp"]), ("chrf", ["nrefs:1", "nc:6", "nw:0"])):
        assert set(words) <= set(found[name].split("|"))
        assert re.search(r"version:\d", found[name])


def test_a_missing_prediction_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 targets"):
        translation_scores(["a"], TARGETS)
