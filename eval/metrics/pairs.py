"""Scores of translations: whole texts, and BLEU and chrF by sacrebleu."""

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import BLEU, CHRF


def translation_scores(predicted: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Returns `exact_match` (0 to 1), and `bleu` and `chrf` (0 to 100) of the whole; `signatures` says how.

    Texts are to be as people read them, not in pieces. BLEU counts runs of up to four words, so where no text has four,
    it is 0 though all are right: there the others speak.
    """
    if len(predicted) != len(targets):
        raise ValueError(f"{len(predicted)} predictions for {len(targets)} targets")
    bleu, chrf = _metrics()
    references = [list(targets)]  # one stream of references, which has a text for each prediction
    return {
        "exact_match": float(np.mean([a == b for a, b in zip(predicted, targets, strict=True)])),
        "bleu": float(bleu.corpus_score(list(predicted), references).score),
        "chrf": float(chrf.corpus_score(list(predicted), references).score),
    }


def signatures() -> dict[str, str]:
    """Returns what belongs beside the numbers wherever they are told: version and settings of `bleu` and `chrf`."""
    found = {}
    for name, metric in zip(("bleu", "chrf"), _metrics(), strict=True):
        metric.corpus_score(["a"], [["a"]])  # which tells the metric its number of references
        found[name] = str(metric.get_signature())
    return found


def _metrics() -> tuple[BLEU, CHRF]:
    return BLEU(), CHRF()
