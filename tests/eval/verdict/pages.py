"""Verdicts to be shown: one of every word, few and many arms, failures, and names that mean something elsewhere."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from eval.verdict.decision import Verdict, decide
from eval.verdict.declared import Contrast, Declared, Results
from eval.verdict.page import Curve, Shown

NAMES = (
    "<script>alert(1)</script>",
    "\"quoted\" 'twice' & more",
    "a,b|c `d` *e* [f](g)",
    "größe 頭 \u202e back\n2nd",
    "=1+1",
)


def results(
    arms: Mapping[str, float], n: int, noise: float = 0.01, failed: Mapping[str, tuple[int, ...]] = {}
) -> Results:
    """Arm -> seed -> a base that the arms share, plus the arm's shift, plus noise of its own."""
    rng = np.random.default_rng(len(arms) * 100 + n)
    base = 3.5 + 0.02 * rng.normal(size=n)
    values = {arm: base + shift + noise * rng.normal(size=n) for arm, shift in arms.items()}
    for arm, seeds in failed.items():
        values[arm][[*seeds]] = math.inf
    return {arm: dict(zip(range(3, 3 + n), of.tolist(), strict=True)) for arm, of in values.items()}


def judged(given: Results, smallest: float = 0.02, gates: tuple[str, ...] = (), **more: Any) -> Verdict:
    """Every other arm against the first."""
    base, *arms = given
    contrasts = tuple(Contrast(arm, (arm,), (base,)) for arm in arms)
    said = {"question": "Did it matter?", "contrasts": contrasts, "endpoint": "val/loss", "direction": "lower"}
    return decide(Declared(**(said | {"smallest": smallest, "looks": (len(given[base]),)} | more)), given, gates)


def all_shown(given: Results) -> Shown:
    """Everything that a page can show."""
    steps = [*range(0, 4000, 7)]
    falling_S = 3.5 + 3 * np.exp(-np.array(steps) / 500)
    seeds_N1 = 0.1 * np.random.default_rng(5).normal(size=(4, 1))
    curve = Curve(steps, (falling_S + seeds_N1).tolist())
    return Shown(
        plan={"base": "gpt:quickstart", "learning rates": (0.001, 0.01), "programs": 12345, "share": 0.0123456},
        budgets={arm: {"parameters": 36913 + at, "FLOPs per token": 3.14159e5} for at, arm in enumerate(given)},
        matched="parameters",
        curves=dict.fromkeys(given, curve),
        looked={"plans": 17, "arms": 19},
        commands={arm: f"python -m launch.train --config.model.mask='<{arm}>'" for arm in given},
        waived={"init": "because of <this>"},
        unchecked=["sameness of the code"],
        not_tested=["longer runs"],
        notes=["the order is shared"],
        exploratory={
            "val/accuracy": {arm: {seed: value / 7 for seed, value in of.items()} for arm, of in given.items()}
        },
    )


BETTER = results({"base": 0, "arm": -0.06}, 8)
NULL = results({"base": 0, "arm": 0}, 8)
MANY = {"base": 0.0} | {f"arm_{at}": 0.01 * at for at in range(10)}
FAILING = results({"base": 0, "arm": 0.02, "other": 0.1}, 16, failed={"base": (1,), "arm": (2, 5, 9)})
HOSTILE = results(dict.fromkeys(NAMES, 0.0) | {NAMES[1]: -0.05}, 8, failed={NAMES[0]: (0,), NAMES[2]: (3, 4)})
FOUR = results({"base": 0, "a": 0.01, "b": 0.02, "both": 0.2}, 8)
CASES: dict[str, tuple[Results, dict[str, Any]]] = {
    "better": (BETTER, {}),
    "worse": (BETTER, {"direction": "higher"}),
    "below": (BETTER, {"smallest": 3.0}),
    "equivalent": (NULL, {"smallest": 0.5}),
    "unclear": (NULL, {"smallest": 0.001}),
    "invalid": (BETTER, {"gates": ("budget: parameters are off by 3 %", "<gate>")}),
    "many": (results(MANY, 16), {}),  # whose detectable effect takes seconds
    "many_failing": (results(MANY, 16, failed={"base": (0,), "arm_7": (0, 3)}), {}),
    "failing": (FAILING, {}),
    "hostile": (HOSTILE, {"endpoint": "<loss>", "question": '<Did> "it" matter & how|much?'}),
    "all_failing": (results({"base": 0, "arm": 0, "other": 0.1}, 8, failed={"arm": (*range(8),)}), {}),
    "both_failing": (results({"base": 0, "arm": 0}, 8, failed=dict.fromkeys(("base", "arm"), (*range(8),))), {}),
    "looks": (results({"base": 0, "arm": -0.1}, 8), {"looks": (4, 8), "smallest": 0.05}),
    "equal": ({"base": {0: 0.5, 1: 0.5}, "arm": {0: 0.5, 1: 0.5}}, {}),
    "interaction": (FOUR, {"contrasts": (Contrast("ab", ("both", "base"), ("a", "b")),)}),
    "success": (FAILING, {"success": 3.52, "smallest": 0.25}),
}


@functools.cache
def case(name: str) -> tuple[Results, Verdict, Shown]:
    """Results, their verdict, and what stands beside it."""
    given, said = CASES[name]
    return given, judged(given, **said), all_shown(given)
