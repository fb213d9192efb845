"""The rule, over many draws at once: Z draws, M contrasts, N seeds."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from eval.verdict.declared import Contrast, Declared
from eval.verdict.intervals import rates_tost
from eval.verdict.looks import levels
from eval.verdict.pvalues import holm, paired_t, ranked, sign_flip, tost

Array = np.ndarray
BETTER, WORSE = "BETTER", "WORSE"
BELOW, EQUIVALENT = "DIFFERENT BUT BELOW D", "EQUIVALENT WITHIN D"
UNCLEAR, INVALID = "NOT DISTINGUISHABLE", "INVALID"
ROUNDING = 1e-14  # of the largest value: a difference this small is 0
FLAT = 1e-13  # of the largest difference: differences that vary less are all equal


@dataclass(frozen=True)
class Measures:
    """What the seeds of one look give, each Z x M.

    `sign` is that of the differences. Where a seed failed, `mean`, `spread` and `p_t` are nan, `p_tost` is 1, and
    `p_flip` is of signed ranks. `p` is what the rule takes of the two.
    """

    sign: Array
    failed: Array
    mean: Array
    spread: Array
    p_t: Array
    p_flip: Array
    p: Array
    p_tost: Array


@dataclass(frozen=True)
class Findings(Measures):
    """What one look finds in its measures, each Z x M; `look` counts from 0, and `level` is that of the look.

    `held`: the sign flip alone held a difference back.
    """

    look: Array
    level: Array
    p_holm: Array
    p_tost_holm: Array
    different: Array
    within: Array
    held: Array

    def good(self, good_sign: str) -> Array:
        """Where the difference has the good sign, 'lower' or 'higher'."""
        return self.sign < 0 if good_sign == "lower" else self.sign > 0

    def words(self, good_sign: str) -> Array:
        """The word for each contrast in each draw, gates aside."""
        names = {
            BELOW: self.different & self.within,
            BETTER: self.different & self.good(good_sign),
            WORSE: self.different,
            EQUIVALENT: self.within,
        }
        return np.select(list(names.values()), [np.array(word) for word in names], np.array(UNCLEAR))


def judge(declared: Declared, cells: Mapping[str, Array], every_p: bool = False) -> Findings:
    """What the rule finds in `cells`, each Z x N in the order of the seeds, at the last look that N seeds allow.

    A contrast that the first look decided keeps what was found there. The sign flip is computed where it can change a
    word, or everywhere for `every_p`.
    """
    d_ZMN, failed_ZMN = differences(declared, cells)
    at, start, seeds = levels(declared.looks, declared.alpha), declared.looks[0], d_ZMN.shape[-1]
    first = measure(declared, d_ZMN[..., :start], failed_ZMN[..., :start], every_p)
    if len(at) == 1:
        return _conclude(declared, first, 0, at[0])
    # Few seeds reach alpha / 10 by the t test alone, and a contrast with a failed one waits.
    early = Measures(**vars(first) | {"p": np.where(first.failed, 1.0, first.p_t)})
    found = _conclude(declared, early, 0, at[0])
    found = Findings(**vars(found) | {"within": found.within & found.different})
    if seeds == start:
        return found
    last = _conclude(declared, measure(declared, d_ZMN, failed_ZMN, every_p, found.different), 1, at[1], found)
    pairs = {one.name: (getattr(found, one.name), getattr(last, one.name)) for one in fields(Findings)}
    return Findings(**{name: np.where(found.different, *pair) for name, pair in pairs.items()})


def differences(declared: Declared, cells: Mapping[str, Array]) -> tuple[Array, Array]:
    """Plus minus minus for each draw, contrast and seed, and where a seed failed in any cell; both Z x M x N.

    A failed seed keeps its place: infinitely worse or better where one side failed, 0 where both did.
    """
    if declared.success is not None:
        cells = {name: succeeded(declared.direction, declared.success, one) for name, one in cells.items()}
    both = [_difference(contrast, cells, declared.direction) for contrast in declared.contrasts]
    d, failed = (np.stack(arrays, axis=1) for arrays in zip(*both, strict=True))
    return d, failed


def succeeded(direction: str, success: float, values: Array) -> Array:
    """1 where a seed reached the threshold, else 0; a failed one did not."""
    reached = values <= success if direction == "lower" else values >= success
    return (reached & np.isfinite(values)).astype(float)


def _difference(contrast: Contrast, cells: Mapping[str, Array], direction: str) -> tuple[Array, Array]:
    plus, minus = (np.stack([cells[name] for name in side]) for side in (contrast.plus, contrast.minus))
    plus_failed, minus_failed = (np.any(~np.isfinite(values), axis=0) for values in (plus, minus))
    plus, minus = (np.where(np.isfinite(values), values, 0.0) for values in (plus, minus))
    d = plus.sum(axis=0) - minus.sum(axis=0)
    d = np.where(np.abs(d) <= ROUNDING * np.maximum(np.abs(plus).max(axis=0), np.abs(minus).max(axis=0)), 0.0, d)
    worse = np.inf if direction == "lower" else -np.inf
    d = np.select([plus_failed & minus_failed, plus_failed, minus_failed], [0.0, worse, -worse], d)
    return d, plus_failed | minus_failed


def measure(
    declared: Declared, d_ZMN: Array, failed_ZMN: Array, every_p: bool, decided_ZM: Array | None = None
) -> Measures:
    """The tests of each contrast by itself, on all the seeds that are given; `decided` are those of an earlier look.

    The sign flip can only raise p: what Holm does not reject by the t test alone, it need not be asked for.
    """
    n, failed = d_ZMN.shape[-1], np.asarray(failed_ZMN.any(axis=-1))
    finite = np.where(failed[..., None], 0.0, d_ZMN)
    mean, spread = finite.mean(axis=-1), finite.std(axis=-1, ddof=1)
    spread = np.where(np.ptp(finite, axis=-1) <= FLAT * np.abs(finite).max(axis=-1), 0.0, spread)
    ranks = np.where(failed[..., None], 0.0, d_ZMN)
    ranks[failed] = ranked(d_ZMN[failed])
    if declared.success is None:
        p_t, p_tost = paired_t(mean, spread, n), tost(mean, spread, n, declared.smallest)
        decided = np.full(failed.shape, False) if decided_ZM is None else decided_ZM
        least = holm(np.where(failed | decided, 0.0, p_t))
        asked = failed | (least <= declared.alpha) & ~decided | every_p
    else:  # McNemar's test and the score of two rates
        p_t, p_tost = np.full(failed.shape, np.nan), rates_tost(d_ZMN, declared.smallest)
        asked = np.full(failed.shape, True)
    p_flip = np.full(failed.shape, np.nan)
    p_flip[asked] = sign_flip(ranks[asked])
    p_t = np.where(failed, np.nan, p_t)
    return Measures(
        sign=np.sign(ranks.sum(axis=-1)),
        failed=failed,
        mean=np.where(failed, np.nan, mean),
        spread=np.where(failed, np.nan, spread),
        p_t=p_t,
        p_flip=p_flip,
        p=np.fmax(p_t, p_flip),
        p_tost=np.where(failed, 1.0, p_tost),
    )


def _conclude(
    declared: Declared, measures: Measures, look: int, level: float, earlier: Findings | None = None
) -> Findings:
    """Holm over the contrasts; one that an earlier look decided counts as found there."""
    decided, p_decided = np.full(measures.p.shape, False), np.zeros(measures.p.shape)
    if earlier is not None:
        decided, p_decided = earlier.different, np.where(earlier.within, 0.0, 1.0)
    p_holm = holm(np.where(decided, 0.0, measures.p))
    p_tost_holm = holm(np.where(decided, p_decided, measures.p_tost))
    without_flip = np.where(np.isnan(measures.p_t), measures.p, measures.p_t)
    different = p_holm <= level
    return Findings(
        **vars(measures),
        look=np.full(different.shape, look),
        level=np.full(different.shape, level),
        p_holm=p_holm,
        p_tost_holm=p_tost_holm,
        different=different,
        within=p_tost_holm <= declared.alpha,
        held=~different & (holm(np.where(decided, 0.0, without_flip)) <= level),
    )
