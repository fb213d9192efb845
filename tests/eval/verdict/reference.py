"""The rule once more, one table at a time, in loops over SciPy's tests and statsmodels' TOST."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats
from statsmodels.stats.weightstats import ttost_paired

from eval.verdict.declared import Contrast, Declared, Results
from eval.verdict.looks import levels


def difference(contrast: Contrast, results: Results, seed: int, worse: float) -> tuple[float, bool]:
    plus, minus = ([results[cell][seed] for cell in side] for side in (contrast.plus, contrast.minus))
    plus_failed, minus_failed = (not all(math.isfinite(value) for value in side) for side in (plus, minus))
    if plus_failed or minus_failed:
        return (0.0 if plus_failed and minus_failed else worse if plus_failed else -worse), True
    return sum(plus) - sum(minus), False


def exact(d: Sequence[float]) -> float:
    return float(
        stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True).pvalue
    )


def signed_rank(d: Sequence[float]) -> tuple[float, float]:
    kept = np.array([value for value in d if value != 0])
    if not len(kept):
        return 1.0, 0.0
    ranks = stats.rankdata(np.abs(kept)) * np.sign(kept)
    return (exact(ranks) if len(kept) > 1 else 1.0), float(ranks.sum())


def holm(p: Sequence[float]) -> list[float]:
    """Step down: the smallest times how many there are, and no later one is smaller than an earlier one."""
    adjusted, least = [0.0] * len(p), 0.0
    for step, at in enumerate(sorted(range(len(p)), key=lambda one: p[one])):
        least = adjusted[at] = max(least, min(1.0, (len(p) - step) * p[at]))
    return adjusted


def words(declared: Declared, results: Results) -> list[str]:
    """The words of `decide`, gates aside, for a table without flat differences or a threshold of success."""
    seeds = sorted(results[declared.contrasts[0].minus[0]])
    at = levels(declared.looks, declared.alpha)
    decided: dict[str, str] = {}
    for look, (n, level) in enumerate(zip(declared.looks, at, strict=True)):
        if len(seeds) < n:
            break
        last = look == len(declared.looks) - 1
        p, equal, sign = [], [], []
        for contrast in declared.contrasts:
            worse = math.inf if declared.direction == "lower" else -math.inf
            pairs = [difference(contrast, results, seed, worse) for seed in seeds[:n]]
            d, failed = np.array([value for value, _ in pairs]), any(one for _, one in pairs)
            if contrast.name in decided:
                p, equal, sign = [*p, 0.0], [*equal, 0.0 if "BELOW" in decided[contrast.name] else 1.0], [*sign, 0.0]
            elif failed:
                by_rank, total = signed_rank(d)
                p, equal, sign = [*p, by_rank if last else 1.0], [*equal, 1.0], [*sign, total]
            else:
                by_t = float(stats.ttest_1samp(d, 0).pvalue)
                tost = ttost_paired(d, np.zeros(n), -declared.smallest, declared.smallest)[0]
                p, equal, sign = [*p, max(by_t, exact(d)) if last else by_t], [*equal, tost], [*sign, d.mean()]
        for contrast, a, b, s in zip(declared.contrasts, holm(p), holm(equal), sign, strict=True):
            word = "BETTER" if (s < 0) == (declared.direction == "lower") else "WORSE"
            if contrast.name not in decided and a <= level:
                decided[contrast.name] = "DIFFERENT BUT BELOW D" if b <= declared.alpha else word
            elif contrast.name not in decided and last and b <= declared.alpha:
                decided[contrast.name] = "EQUIVALENT WITHIN D"
    return [decided.get(contrast.name, "NOT DISTINGUISHABLE") for contrast in declared.contrasts]
