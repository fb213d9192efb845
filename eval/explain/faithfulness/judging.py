"""Whether what a map says of tokens is so: for this model, on its own text, beside maps that know nothing."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from flax import nnx
from scipy import stats

from eval.explain.methods.occlusion import without
from eval.explain.methods.table import METHODS, Asked, Maps
from eval.explain.targets import places
from eval.verdict.pvalues import holm
from model.families.family import Model

SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)  # of the tokens, those with the largest numbers (DeYoung et al. 2020)
RANDOM = 20  # maps that know nothing
LEVEL, LEAST, ALIKE = 0.05, 20, 0.5  # of error, of examples, and the correlation with a map of another model


WORDS = "faithful here", "not faithful here", "not measured"


class Verdict(NamedTuple):
    """`word`, and what it stands on: by how much more taking out what the map names lowers the target's probability
    than taking out what random maps name (the mean, its one-sided lower bound at 95 %, and p by Holm over the methods),
    and the median correlation of the map with that of the model with parameters drawn anew. `lost` is the mean drop
    itself.
    """

    word: str
    examples: int
    lost: float
    more_than_random: float
    lower_bound: float
    p: float
    correlation: float


def judged(asked: Asked, names: Iterable[str] | None = None, seed: int = 0) -> dict[str, Verdict]:
    """The verdict of each method (of all that make sense for the model): "faithful here" where the drop is larger than
    that by random maps (paired t over examples, one-sided, Holm) and the map is another one where the parameters are
    (median Spearman below .5; a map that is constant counts as 1; Adebayo et al. 2018); else "not faithful here"; of
    fewer than 20 examples "not measured".
    """
    names = [name for name in (METHODS if names is None else names) if METHODS[name].serves(asked.model)]
    other = asked._replace(model=drawn_anew(asked.model, seed))
    own, anew = ({name: METHODS[name].call(one) for name in names} for one in (asked, other))
    return verdicts(asked, own, anew, seed)


def verdicts(asked: Asked, maps: Mapping[str, Maps], anew: Mapping[str, Maps], seed: int = 0) -> dict[str, Verdict]:
    """As `judged`, of maps that are given, and of those of the model with other parameters."""
    real_Bn = joined(places(asked.inputs))
    B = len(real_Bn)
    random_Bn = np.random.default_rng(seed).random((RANDOM, *real_Bn.shape))
    drops_MB = dropped(asked, np.stack([*map(joined, maps.values()), *random_Bn]), real_Bn)
    chance_B = drops_MB[len(maps) :].mean(0)
    more_MB = drops_MB[: len(maps)] - chance_B
    tests = [stats.ttest_1samp(more_B, 0, alternative="greater") if B > 1 else None for more_B in more_MB]
    p_M = holm(np.array([1.0 if test is None or math.isnan(test.pvalue) else test.pvalue for test in tests]))
    found = {}
    for name, test, more_B, drop_B, p in zip(maps, tests, more_MB, drops_MB, p_M, strict=False):
        both = joined(maps[name]), joined(anew[name])
        alike = float(np.median([_correlation(*(x[row, real] for x in both)) for row, real in enumerate(real_Bn)]))
        lower = -math.inf if test is None else float(test.confidence_interval(1 - LEVEL).low)
        word = "faithful here" if p <= LEVEL and alike < ALIKE else "not faithful here"
        word = word if B >= LEAST else "not measured"
        found[name] = Verdict(word, B, float(drop_B.mean()), float(more_B.mean()), lower, float(p), alike)
    return found


def drawn_anew(model: Model, seed: int) -> Model:
    """The same model with parameters drawn anew."""
    return model.config.build(nnx.Rngs(1 + seed))


def dropped(asked: Asked, maps_MBn: np.ndarray, real_Bn: np.ndarray, kept: bool = False) -> np.ndarray:
    """How much the target's probability falls where the tokens with the largest numbers are taken out, (M, B): the mean
    over shares of the tokens (comprehensiveness, AOPC); at least one token of each example is. Where they are `kept`,
    all others are taken out (sufficiency).
    """
    M, B, n = maps_MBn.shape
    ordered = np.argsort(-np.where(real_Bn, maps_MBn, -np.inf), axis=-1, kind="stable")
    rank_MBn = np.empty_like(ordered)
    np.put_along_axis(rank_MBn, ordered, np.broadcast_to(np.arange(n), ordered.shape), axis=-1)
    counts_BK = np.maximum(np.round(real_Bn.sum(1)[:, None] * np.array(SHARES)), 1)
    largest = rank_MBn[:, :, None] < counts_BK[None, :, :, None]
    taken_BNn = (largest ^ kept).transpose(1, 0, 2, 3).reshape(B, M * len(SHARES), n) & real_Bn[:, None]
    none_B1n = np.zeros((B, 1, n), bool)
    said_BN = without(*asked, np.concatenate([none_B1n, taken_BNn], axis=1), "probability")
    return (said_BN[:, :1] - said_BN[:, 1:]).reshape(B, M, -1).mean(2).T


def joined(maps: Maps) -> np.ndarray:
    """The tokens of all sites in one, (B, n), in the order of the sites' names."""
    return np.concatenate([np.asarray(maps[site]) for site in sorted(maps)], axis=1)


def _correlation(one_n: np.ndarray, other_n: np.ndarray) -> float:
    if min(np.ptp(one_n), np.ptp(other_n)) == 0:
        return 1.0
    return float(stats.spearmanr(one_n, other_n).statistic)
