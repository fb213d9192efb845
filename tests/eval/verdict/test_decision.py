"""From tables to words: against the rule in loops, and each word, status and sentence."""

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from eval.verdict.decision import Verdict, decide, exit_status
from eval.verdict.declared import Contrast, Declared, Results
from eval.verdict.detectable import detectable_effect, seeds_needed
from eval.verdict.looks import levels
from model.errors import UserError
from tests.eval.verdict import reference
from train.run.files.json_files import dumps, loads

ARM = Contrast("arm", ("arm",), ("base",))
OTHER = Contrast("other", ("other",), ("base",))
CROSSED = Contrast("crossed", ("arm", "base"), ("other", "fourth"))
LOSS = Declared("Does it matter?", (ARM,), "val/loss", "lower", 0.5)
NAN = math.nan
# Eight differences with mean 0 and spread 1, and their sign flip's p far from any level.
NOISE = np.array([-1.3, 0.4, 1.1, -0.2, 0.9, -1.0, 0.7, -0.6])
NOISE = (NOISE - NOISE.mean()) / NOISE.std(ddof=1)


def table(**cells: np.ndarray | list[float]) -> dict[str, dict[int, float]]:
    return {cell: dict(enumerate(np.asarray(values, float).tolist())) for cell, values in cells.items()}


def arm(d: np.ndarray | list[float], **others: np.ndarray | list[float]) -> dict[str, dict[int, float]]:
    """The arm's differences from a baseline that varies."""
    base = np.random.default_rng(0).normal(3, 1, len(d))
    return table(base=base, arm=base + d, **{name: base + values for name, values in others.items()})


def drawn(random: np.random.Generator, seeds: int) -> Results:
    """A table with effects, spreads and failures of every size."""
    base = random.normal(3, 1, seeds)
    cells = {"base": base}
    for name in ("arm", "other", "fourth"):
        shift, spread = random.choice([0, 0.2, 1.5, -1.5]), random.choice([0.1, 0.3, 1.0])
        cells[name] = base + shift + random.normal(0, spread, seeds)
    broken = random.choice([0, 0, 0.03, 0.2])
    return table(**{name: np.where(random.uniform(size=seeds) < broken, NAN, one) for name, one in cells.items()})


@pytest.mark.parametrize("tables", [6, pytest.param(150, marks=pytest.mark.rest)])
@pytest.mark.parametrize(
    ("looks", "seeds", "direction"),
    [((5, 10), 10, "lower"), ((5, 10), 5, "higher"), ((7,), 7, "higher")],
)
def test_decide_is_the_rule_in_loops(looks: tuple[int, ...], seeds: int, direction: str, tables: int) -> None:
    random = np.random.default_rng(0)
    seen: Counter[str] = Counter()
    for _ in range(tables):
        contrasts = (ARM, OTHER, CROSSED)
        declared = replace(LOSS, contrasts=contrasts, direction=direction, looks=looks, alpha=0.2)
        results = drawn(random, seeds)
        found = [row.word for row in decide(declared, results).rows]
        assert found == reference.words(declared, results)
        seen.update(found)
    assert len(seen) >= (3 if tables < 100 else 4), seen


@pytest.mark.parametrize(
    ("mean", "spread", "word", "status"),
    [
        (-1.0, 0.5, "BETTER", 0),
        (1.0, 0.5, "WORSE", 3),
        (-0.2, 0.1, "DIFFERENT BUT BELOW D", 4),
        (0.2, 0.1, "DIFFERENT BUT BELOW D", 4),
        (0.02, 0.3, "EQUIVALENT WITHIN D", 5),
        (0.1, 1.5, "NOT DISTINGUISHABLE", 6),
    ],
)
def test_each_word_of_one_arm(mean: float, spread: float, word: str, status: int) -> None:
    verdict = decide(LOSS, arm(mean + spread * NOISE))
    (row,) = verdict.rows
    assert (row.word, verdict.status, row.good) == (word, status, mean < 0)
    assert (row.difference, row.spread) == (pytest.approx(mean), pytest.approx(spread))
    higher = decide(replace(LOSS, direction="higher"), arm(-mean - spread * NOISE))
    assert (higher.rows[0].word, higher.status, higher.rows[0].good) == (word, status, mean < 0)
    refused = decide(LOSS, arm(mean + spread * NOISE), ["same tokens", "same code"])
    assert (refused.rows[0].word, refused.status, refused.gates) == ("INVALID", 7, ("same tokens", "same code"))
    assert refused.rows[0].sentences[0] == "Invalid: same tokens; same code."


def test_the_status_of_several_arms_is_the_first_of_the_order() -> None:
    row = decide(LOSS, arm(NOISE)).rows[0]
    below = "DIFFERENT BUT BELOW D"
    order = [("BETTER", True), (below, True), ("EQUIVALENT WITHIN D", False), ("NOT DISTINGUISHABLE", True)]
    order += [(below, False), ("WORSE", False)]
    rows = [replace(row, word=word, good=good) for word, good in order]
    statuses = [0, 4, 5, 6, 4, 3]
    for (first, one), (second, other) in itertools.product(enumerate(rows), repeat=2):
        assert exit_status([one, other]) == statuses[min(first, second)]
    assert exit_status([rows[0], replace(row, word="INVALID")]) == 7


def test_flat_differences() -> None:
    same = decide(LOSS, arm(np.zeros(8)))
    assert (same.rows[0].word, same.rows[0].p, same.rows[0].p_tost) == ("EQUIVALENT WITHIN D", 1.0, 0.0)
    assert (same.rows[0].good, same.rows[0].sentences) == (None, ("All differences are exactly 0.",))
    for shift, word, p_tost in ((-0.25, "DIFFERENT BUT BELOW D", 0.0), (2.0, "WORSE", 1.0)):
        (row,) = decide(LOSS, arm(np.full(8, shift))).rows
        assert (row.word, row.p_t, row.p, row.p_tost) == (word, 0.0, 2 / 2**8, p_tost)
    assert decide(replace(LOSS, looks=(5,)), arm(np.full(5, 2.0))).rows[0].word == "NOT DISTINGUISHABLE"


def test_a_failed_seed_keeps_its_place() -> None:
    """Infinitely worse or better, 0 where both sides failed; signed ranks decide, and what needs a mean is left out."""
    d = -1 + 0.1 * NOISE
    results = arm(d)
    results["arm"][2] = results["base"][2] = results["base"][3] = -math.inf
    (row,) = decide(LOSS, results).rows
    assert row.differences[2:4] == (0.0, -math.inf)
    assert (row.test, row.word, row.p) == ("signed rank", "BETTER", 2 / 2**7)
    gone = (row.plus_mean, row.difference, row.spread, row.interval, row.interval_95, row.p_t, row.p_tost)
    assert {*gone, row.p_tost_holm, row.detectable, row.correlation, row.seeds_needed} == {None}
    assert row.failed == {"arm": (2,), "base": (2, 3)}
    assert [(rate.successes, rate.seeds) for rate in (row.plus_rate, row.minus_rate)] == [(7, 8), (6, 8)]
    assert "1 in 'arm' and 2 in 'base'" in row.sentences[-1]
    higher = decide(replace(LOSS, direction="higher"), results).rows[0]
    assert (higher.differences[3], higher.good) == (math.inf, False)


@pytest.mark.parametrize(
    ("failing", "expected"),
    [(("arm",), math.inf), (("other", "fourth"), -math.inf), (("arm", "base"), math.inf), (("base", "other"), 0.0)],
)
def test_a_failed_cell_of_an_interaction(failing: tuple[str, ...], expected: float) -> None:
    results = arm(NOISE, other=NOISE[::-1], fourth=NOISE**2)
    for cell in failing:
        results[cell][5] = NAN
    (row,) = decide(replace(LOSS, contrasts=(CROSSED,)), results).rows
    assert row.differences[5] == expected
    assert (row.test, row.plus_rate.successes) == ("signed rank", 8 - bool({"arm", "base"} & {*failing}))


def test_arms_without_failures_keep_their_test_beside_one() -> None:
    results = arm(-1 + 0.1 * NOISE, other=-1 + 0.1 * NOISE)
    results["other"][0] = NAN
    rows = decide(replace(LOSS, contrasts=(ARM, OTHER)), results).rows
    assert [row.test for row in rows] == ["paired t and sign flip", "signed rank"]
    assert [row.p_holm for row in rows] == [2 * rows[0].p, rows[1].p]
    assert rows[0].p_tost_holm == pytest.approx(min(1, 2 * (rows[0].p_tost or 1)))


TWELVE = np.concatenate([NOISE, -NOISE[:4]])
TWO = replace(LOSS, looks=(8, 12), contrasts=(ARM, OTHER))


def test_the_first_look_stops_a_grid_that_is_decided() -> None:
    verdict = decide(TWO, arm(-2 + 0.5 * NOISE, other=2 + 0.5 * NOISE))
    assert ([row.word for row in verdict.rows], verdict.open, verdict.status) == (["BETTER", "WORSE"], (), 0)
    assert (verdict.rows[0].test, verdict.rows[0].level, verdict.rows[0].look) == ("paired t", 0.005, 1)
    assert verdict.rows[0].p == verdict.rows[0].p_t
    assert any("biased outwards" in said for said in verdict.rows[0].sentences)


def test_an_arm_that_is_not_decided_goes_on_and_one_that_is_keeps_its_word() -> None:
    clear, faint = -2 + 0.5 * TWELVE, -0.8 + TWELVE
    first = decide(TWO, arm(clear[:8], other=faint[:8]))
    assert ([row.word for row in first.rows], first.open) == (["BETTER", "NOT DISTINGUISHABLE"], ("other",))
    assert first.rows[1].sentences == ("Not decided yet: the second look is at 12 seeds.",)
    results = arm(clear, other=faint)
    for seed in range(8, 12):  # the grid need not train it on
        del results["arm"][seed]
    verdict = decide(TWO, results)
    assert ([row.word for row in verdict.rows], verdict.open) == (["BETTER", "BETTER"], ())
    assert [(row.look, len(row.seeds)) for row in verdict.rows] == [(1, 8), (2, 12)]
    # Decided at the first look it counts as p = 0, so that Holm takes nothing of the other one.
    assert verdict.rows[1].p_holm == verdict.rows[1].p
    assert verdict.rows[1].level == levels((8, 12), 0.05)[1]
    assert verdict.rows[1].p_tost_holm == pytest.approx(min(1, 2 * (verdict.rows[1].p_tost or 0)))
    results["arm"] |= dict.fromkeys(range(8, 12), NAN)
    assert decide(TWO, results).rows == verdict.rows


def test_what_the_first_look_decided_counts_in_the_holm_of_equivalence_as_it_was_found() -> None:
    """As 0 where it was below D, and else as 1, whatever its later seeds are like."""
    faint = 0.3 + TWELVE
    results = arm(-0.2 + 0.02 * TWELVE, other=faint)
    below, other = decide(TWO, results).rows
    assert (below.word, below.look, other.look) == ("DIFFERENT BUT BELOW D", 1, 2)
    assert other.p_tost_holm == other.p_tost
    shrinking = np.append(-2 + 0.1 * NOISE, [-0.5] * 4)  # of which twelve would be within 1.9
    better, other = decide(replace(TWO, smallest=1.9), arm(shrinking, other=4.5 * TWELVE)).rows
    assert (better.word, better.look, other.look) == ("BETTER", 1, 2)
    assert stats.ttest_1samp(shrinking, -1.9, alternative="greater").pvalue < (other.p_tost or 0) < 0.5
    assert other.p_tost_holm == pytest.approx(2 * (other.p_tost or 0))


def test_the_first_look_never_says_equivalent_nor_decides_with_a_failed_seed() -> None:
    first = decide(TWO, arm(0.05 * NOISE, other=0.05 * NOISE))
    assert (first.rows[0].word, first.open) == ("NOT DISTINGUISHABLE", ("arm", "other"))
    assert decide(TWO, arm(0.05 * TWELVE, other=TWELVE)).rows[0].word == "EQUIVALENT WITHIN D"
    # Nine seeds reach alpha / 10 by their signs, too: 2 / 2^9.
    looks = replace(LOSS, looks=(9, 10))
    results = arm(-2 + 0.1 * TWELVE[:9])
    assert decide(looks, results).open == ()
    results["base"][0] = NAN
    waits = decide(looks, results)
    assert (waits.open, waits.rows[0].p, waits.rows[0].p_flip) == (("arm",), 1.0, 2 / 2**9)
    results["arm"][9], results["base"][9] = 1.0, 2.0
    assert decide(looks, results).rows[0].word == "BETTER"


def test_an_outlier_is_no_difference_whatever_the_signs_say() -> None:
    (row,) = decide(replace(LOSS, smallest=0.01), arm([1, 1, 1, 1, 1, 1, 1, 20])).rows
    assert (row.word, row.p_flip, row.p) == ("NOT DISTINGUISHABLE", 2 / 2**8, row.p_t)


def test_holm_covers_the_tests_of_equivalence() -> None:
    d = 0.664 * NOISE  # TOST's p is .035
    assert decide(LOSS, arm(d)).rows[0].word == "EQUIVALENT WITHIN D"
    rows = decide(replace(LOSS, contrasts=(ARM, OTHER)), arm(d, other=d)).rows
    assert {row.word for row in rows} == {"NOT DISTINGUISHABLE"}
    for share, interval in ((0.95, rows[0].interval_95), (0.975, rows[0].interval)):
        assert interval == pytest.approx(tuple(stats.ttest_1samp(d, 0).confidence_interval(share)))


def test_equivalence_is_compared_with_alpha_at_the_second_look_too() -> None:
    """Whose own level, .047, is that of differences."""
    two, error = replace(TWO, contrasts=(ARM,)), TWELVE.std(ddof=1) / 12**0.5
    for p, word in ((0.0485, "EQUIVALENT WITHIN D"), (0.0515, "NOT DISTINGUISHABLE")):
        smallest = abs(TWELVE.mean()) + stats.t.isf(p, 11) * error
        (row,) = decide(replace(two, smallest=float(smallest)), arm(TWELVE)).rows
        assert (row.p_tost, row.word) == (pytest.approx(p), word)


def test_a_row_is_of_all_arms_looks_and_alpha() -> None:
    """The interval of all arms follows alpha, the other one does not; what could be seen is that of the whole rule."""
    strict = replace(LOSS, alpha=0.03, contrasts=(ARM, OTHER))
    row = decide(strict, arm(NOISE, other=NOISE)).rows[0]
    for share, interval in ((0.95, row.interval_95), (0.985, row.interval)):
        assert interval == pytest.approx(tuple(stats.ttest_1samp(NOISE, 0).confidence_interval(share)))
    assert row.detectable_spreads == detectable_effect((8,), 2, 0.03) > detectable_effect((8,), 1, 0.03)
    assert row.seeds_needed == seeds_needed(0.5, (8,), 2, 0.03) > seeds_needed(0.5, (8,), 1, 0.03)
    row = decide(TWO, arm(TWELVE, other=TWELVE)).rows[0]
    assert row.detectable_spreads == detectable_effect((8, 12), 2, 0.05) != detectable_effect((12,), 2, 0.05)


def test_what_the_sign_flip_held_back_is_said() -> None:
    (row,) = decide(replace(LOSS, looks=(5,)), arm(-2 + 0.1 * NOISE[:5])).rows
    assert (row.word, row.held) == ("NOT DISTINGUISHABLE", True)
    assert row.sentences == (
        "5 seeds can name no difference: the exact test's smallest p is 0.0625; give at least 6.",
        "The sign-flip test alone held the word back: by the t test there is a difference at 0.05.",
    )


def test_not_distinguishable_says_what_could_have_been_seen() -> None:
    verdict = decide(LOSS, arm(0.1 + 1.5 * NOISE))
    (row,) = verdict.rows
    assert verdict.open == ()
    assert row.detectable == pytest.approx(1.5 * 1.20, abs=0.02)
    assert row.detectable_spreads == pytest.approx(1.20, abs=0.01)
    assert row.sentences == (
        f"An effect of {row.detectable:.3g} could have been seen (in 80 % of cases); D = 0.5 needs about "
        f"{row.seeds_needed} seeds.",
    )
    assert row.interval == row.interval_95
    assert row.correlation == pytest.approx(
        np.corrcoef(*[[*cell.values()] for cell in arm(0.1 + 1.5 * NOISE).values()])[0, 1]
    )


def test_an_effect_that_no_grid_finds_needs_a_million_seeds() -> None:
    for declared in (LOSS, replace(LOSS, success=3.0)):
        (row,) = decide(replace(declared, smallest=1e-120), arm(0.1 + 1.5 * NOISE)).rows
        assert (row.word, row.seeds_needed) == ("NOT DISTINGUISHABLE", 1_000_000)
        assert row.sentences[0].endswith("D = 1e-120 needs a million seeds or more.")


def test_success_as_the_endpoint() -> None:
    """McNemar's exact test and the score of two rates; a failed seed did not succeed."""
    declared = replace(LOSS, direction="higher", endpoint="accuracy", success=0.9, smallest=0.3)
    results = table(base=[0.5] * 7 + [NAN], arm=[0.9, 0.95, 1, 0.92, 0.91, 0.99, math.inf, 1])
    (row,) = decide(declared, results).rows
    assert row.differences == (1, 1, 1, 1, 1, 1, 0, 1)
    assert (row.word, row.test, row.p, row.p_t) == ("BETTER", "McNemar", 2 / 2**7, None)
    assert (row.plus_mean, row.minus_mean, row.difference) == (7 / 8, 0.0, 7 / 8)
    assert (row.plus_rate.successes, row.minus_rate.successes, row.failed) == (7, 0, {"arm": (6,), "base": (7,)})
    lower = replace(declared, direction="lower", success=0.5)
    fewer = decide(lower, results)
    assert fewer.rows[0].differences == (-1, -1, -1, -1, -1, -1, -1, 0)
    assert (fewer.rows[0].word, fewer.rows[0].good, fewer.status) == ("WORSE", False, 3)
    (even,) = decide(declared, table(base=[1] * 8, arm=[1] * 8)).rows
    assert (even.word, even.p) == ("EQUIVALENT WITHIN D", 1.0)
    assert even.interval is not None
    assert even.interval[1] > 0.2
    # Eight pairs that agree are no certainty, as eight differences of 0 would be.
    assert (
        decide(replace(declared, smallest=0.2), table(base=[1] * 8, arm=[1] * 8)).rows[0].word == "NOT DISTINGUISHABLE"
    )


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"base": {0: 1.0}}, "lack ['arm']"),
        (arm(NOISE[:7]), "have 7 seeds"),
        (arm(NOISE) | {"arm": dict.fromkeys(range(7), 1.0)}, "arm 'arm' lacks the seeds [7]"),
        (arm(NOISE) | {"arm": dict.fromkeys(range(1, 9), 1.0)}, "have 9 seeds"),
        (arm(NOISE) | {"arm": dict.fromkeys(range(8), 1e-140)}, "arm 'arm' has 1e-140: give 0, or from 1e-130 to"),
        (arm(NOISE) | {"arm": dict.fromkeys(range(8), -1e160)}, "arm 'arm' has -1e+160"),
    ],
)
def test_missing_pairs_are_refused(results: Results, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        decide(LOSS, results)


def test_an_arm_that_waits_needs_its_seeds_of_the_second_look() -> None:
    results = arm(TWELVE, other=TWELVE)
    del results["other"][11]
    with pytest.raises(UserError, match=re.escape("contrast 'other' lacks the seeds [11]")):
        decide(TWO, results)


def test_rounding_is_no_difference() -> None:
    """(0.1 + 0.2) - 0.3 is 5.5e-17, whatever its t statistic says."""
    cells = table(arm=np.full(8, 0.1), base=np.full(8, 0.2), other=np.full(8, 0.3), fourth=np.zeros(8))
    (row,) = decide(replace(LOSS, contrasts=(CROSSED,)), cells).rows
    assert set(row.differences) == {0.0}


def test_a_verdict_is_plain_json() -> None:
    results = arm(-1 + 0.1 * NOISE, other=NOISE)
    results["other"][1] = NAN
    verdict: Verdict = decide(replace(LOSS, contrasts=(ARM, OTHER)), results)
    plain = verdict.to_json()
    assert loads(dumps(plain)) == plain
    assert (plain["rows"][1]["differences"][1], plain["rows"][0]["word"], plain["status"]) == ("inf", "BETTER", 0)
    assert decide(replace(LOSS, contrasts=(ARM, OTHER)), results) == verdict
