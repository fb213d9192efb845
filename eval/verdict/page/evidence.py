"""What a word rests on: the numbers, every seed, failures, curves, budgets, and what nobody declared."""

import math
from collections.abc import Mapping, Sequence

from eval.verdict.decision import Verdict
from eval.verdict.declared import Results
from eval.verdict.page.blocks import Block, Grid, Heading, Line, Picture
from eval.verdict.page.figures import POINTS, Dots, curves, dots, number
from eval.verdict.page.saying import between, by_seed, cells_of, goal, level, number_or, plain_of, rate_of, unit, word
from eval.verdict.page.shown import Shown


def numbers(verdict: Verdict) -> list[Block]:
    """Every number of every contrast, a column each."""
    rows = verdict.rows
    pairs = all(len(row.contrast.plus) == 1 for row in rows)
    plus, minus = ("the arm", "the baseline") if pairs else ("what is added up", "what is taken away")
    lines = {
        "verdict": [word(row) for row in rows],
        "seeds": [str(len(row.seeds)) for row in rows],
        "look": [str(row.look) for row in rows],
        f"mean of {plus}": [number_or(row.plus_mean, 6) for row in rows],
        f"mean of {minus}": [number_or(row.minus_mean, 6) for row in rows],
        "difference": [number_or(row.difference) for row in rows],
        f"interval at {level(verdict)}": [between(row.interval) for row in rows],
        "interval at 95 %": [between(row.interval_95) for row in rows],
        "its true coverage where differences are skewed": [number_or(row.coverage_skewed) for row in rows],
        "spread of a pair's difference": [number_or(row.spread) for row in rows],
        "correlation of pairs": [number_or(row.correlation) for row in rows],
        "test": [row.test for row in rows],
        "p of the paired t test": [number_or(row.p_t) for row in rows],
        "p of the sign flip": [number_or(row.p_flip) for row in rows],
        "p": [number(row.p) for row in rows],
        "p by Holm": [number(row.p_holm) for row in rows],
        "level it is compared with": [number(row.level) for row in rows],
        "p of equivalence (TOST)": [number_or(row.p_tost) for row in rows],
        "the same by Holm": [number_or(row.p_tost_holm) for row in rows],
        "detectable effect (80 %)": [number_or(row.detectable) for row in rows],
        "the same in spreads": [number_or(row.detectable_spreads) for row in rows],
        "seeds needed for D": [number_or(row.seeds_needed) for row in rows],
        f"seeds of {plus} that succeeded (Wilson, 95 %)": [rate_of(row.plus_rate) for row in rows],
        f"seeds of {minus} that succeeded": [rate_of(row.minus_rate) for row in rows],
    }
    names = [row.contrast.name for row in rows]
    grid = Grid(f"In units of {unit(verdict)}", ["", *names], [[name, *of] for name, of in lines.items()])
    return [grid, Line(f"Exit status {verdict.status}.")]


def every_seed(verdict: Verdict, results: Results) -> list[Block]:
    """Every seed of every arm as a dot and as a number, and the differences."""
    cells, declared, endpoint = cells_of(verdict), verdict.declared, verdict.declared.endpoint
    worst = math.inf if declared.direction == "lower" else -math.inf
    rows = []
    for cell in cells:
        finite = [value for value in results[cell].values() if math.isfinite(value)]
        mean = sum(finite) / len(finite) if len(finite) == len(results[cell]) else None
        rows.append(Dots(cell, {s: v if math.isfinite(v) else worst for s, v in results[cell].items()}, mean))
    band = f"; the band is {goal(verdict)}, which is success" if goal(verdict) else ""
    words = f"{endpoint} of every seed, by arm; the mark is the mean of an arm in which no seed failed{band}."
    seeds = sorted({seed for cell in cells for seed in results[cell]})
    values = [[str(seed), *(_value(results[cell].get(seed)) for cell in cells)] for seed in seeds]
    apart = [[str(seed), *(number_or(by_seed(row).get(seed), 6) for row in verdict.rows)] for seed in seeds]
    failed = any(math.isinf(value) for row in verdict.rows for value in row.differences)
    caption = "Differences by seed" + ("; inf or -inf where one of a pair failed" if failed else "")
    return [
        Heading("Every seed"),
        Picture(dots(rows, words, direction=declared.direction, success=declared.success), words),
        Grid(f"{endpoint} by seed", ["seed", *cells], values),
        Grid(caption, ["seed", *(row.contrast.name for row in verdict.rows)], apart),
    ]


def _value(value: float | None) -> str:
    return "failed" if value is not None and not math.isfinite(value) else number_or(value, 6)


def failures(verdict: Verdict) -> list[Block]:
    """The failed seeds of each arm."""
    failed: dict[str, set[int]] = {cell: set() for cell in cells_of(verdict)}
    for row in verdict.rows:  # one that the first look decided knows of no later seeds
        for cell, seeds in row.failed.items():
            failed[cell].update(seeds)
    told = [[cell, ", ".join(map(str, sorted(seeds))) or "none"] for cell, seeds in failed.items()]
    return [Heading("Failures"), Grid("A failed seed keeps its place", ["arm", "failed seeds"], told, False)]


def learning(verdict: Verdict, shown: Shown) -> list[Block]:
    """A picture of the curves of each contrast whose arms all have one."""
    drawn = {arm for arm, curve in shown.curves.items() if len(curve.steps) > 1}
    known = [row.contrast for row in verdict.rows if {*row.contrast.cells} <= drawn]
    if not known:
        return []
    most = max(2, POINTS // sum(3 * len(contrast.cells) for contrast in known))
    name = shown.curves_of or verdict.declared.endpoint
    blocks: list[Block] = [Heading("Curves")]
    for contrast in known:
        words = (
            f"{contrast.name}: {name} by {shown.curves_over}, the median of the seeds in the band from the least to the"
            " largest."
        )
        pair = [(cell, shown.curves[cell]) for cell in (*contrast.minus, *contrast.plus)]
        blocks.append(Picture(curves(pair, words, min(most, 200)), words))
    return blocks


def budgets(shown: Shown) -> list[Block]:
    """What each arm has and costs."""
    if not shown.budgets:
        return []
    columns = list(dict.fromkeys(name for budget in shown.budgets.values() for name in budget))
    rows = [[arm, *(plain_of(budget.get(name)) for name in columns)] for arm, budget in shown.budgets.items()]
    caption = f"By arm; {shown.matched} is matched" if shown.matched else "By arm"
    return [Heading("Budgets"), Grid(caption, ["arm", *columns], rows)]


def exploratory(verdict: Verdict, shown: Shown) -> list[Block]:
    """Means and mean differences of metrics that nobody declared: no test, no interval, no word."""
    if not shown.exploratory:
        return []
    rows = []
    for metric, cells in shown.exploratory.items():
        for row in verdict.rows:
            plus, minus = (_sums(cells, side) for side in (row.contrast.plus, row.contrast.minus))
            apart = [plus[seed] - minus[seed] for seed in plus.keys() & minus.keys()]
            finite = sorted(value for value in apart if math.isfinite(value))
            if apart:
                known = [sum(finite) / len(finite), finite[0], finite[-1]] if finite else [None] * 3
                told = [*map(number_or, known), f"{len(finite)} of {len(apart)}"]
                rows.append([f"{metric}, {row.contrast.name}", *told])
    columns = ["metric", "mean difference", "least", "largest", "seeds"]
    words = "Other metrics of the same runs, which nobody declared: a reason for a new plan, not for a conclusion."
    return [Heading("Exploratory"), Line(words), Grid("Differences by seed, without a word", columns, rows)]


def _sums(cells: Mapping[str, Mapping[int, float]], names: Sequence[str]) -> dict[int, float]:
    """Seed -> sum over the cells that have it."""
    if any(name not in cells for name in names):
        return {}
    seeds = set.intersection(*({*cells[name]} for name in names))
    return {seed: math.fsum(cells[name][seed] for name in names) for seed in seeds}
