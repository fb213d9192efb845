"""What stands on a page, in its order: the question, the word, the evidence, and what it does not speak of."""

import math
from collections.abc import Iterable, Mapping, Sequence

from eval.verdict.decision import BELOW, BETTER, EQUIVALENT, INVALID, UNCLEAR, WORSE, Interval, Rate, Row, Verdict
from eval.verdict.declared import Results
from eval.verdict.page.blocks import Block, Command, Grid, Heading, Items, Line, Picture
from eval.verdict.page.figures import POINTS, Dots, curves, dots, number
from eval.verdict.page.shown import Shown

KINDS = {BETTER: "good", WORSE: "bad", BELOW: "same", EQUIVALENT: "same", UNCLEAR: "", INVALID: "bad"}


def page(verdict: Verdict, results: Results, shown: Shown) -> list[Block]:
    """All blocks of the page of a verdict on these results."""
    return [
        Heading(verdict.declared.question, 1),
        *answer(verdict),
        *_limits(verdict, shown),
        Heading("Numbers"),
        *_numbers(verdict),
        *_seeds(verdict, results),
        *_failures(verdict),
        *_curves(verdict, shown),
        *_budgets(shown),
        *_declared(verdict, shown),
        *_commands(shown),
        *_exploratory(verdict, shown),
    ]


def answer(verdict: Verdict) -> list[Block]:
    """The word of each contrast, what it rests on in a sentence, and the intervals on one line with D marked."""
    blocks: list[Block] = []
    for row in verdict.rows:
        blocks += [Line(f"{row.contrast.name}: {word(row)}", f"word {KINDS[row.word]}".strip())]
        blocks.append(Line(" ".join([basis(row, verdict), *row.sentences])))
    if verdict.gates:
        blocks += [Line("Gates that failed:"), Items(verdict.gates)]
    rows = [
        Dots(f"{row.contrast.name}: {word(row)}", _by_seed(row), row.difference, row.interval, row.interval_95)
        for row in verdict.rows
    ]
    declared = verdict.declared
    words = (
        f"Differences in {declared.endpoint}, {declared.direction} is better: a dot for each seed, their mean, the "
        f"thick interval at {_level(verdict)} and the faint one at 95 %; the band is from -D to D, "
        f"D = {number(declared.smallest)}. "
    )
    told = "; ".join(f"{row.contrast.name} {number_or(row.difference)} {between(row.interval)}" for row in verdict.rows)
    smallest = None if declared.success is not None else declared.smallest
    return [*blocks, Picture(dots(rows, words + told, smallest, declared.direction), words)]


def word(row: Row) -> str:
    """The verdict in a word; where the effect is below D, with its sign."""
    return f"{row.word} ({'better' if row.good else 'worse'})" if row.word == BELOW else row.word


def basis(row: Row, verdict: Verdict) -> str:
    """The sentence under a word: what was subtracted from what, and what came of it."""
    what = f"{joined(row.contrast.plus)} minus {joined(row.contrast.minus)}"
    if row.difference is None or row.interval is None:
        rates = f"{_rate(row.plus_rate)} against {_rate(row.minus_rate)} of the seeds succeeded"
        return f"{what}, {len(row.seeds)} seeds: {rates}; p = {number(row.p_holm)} ({row.test})."
    return (
        f"{what}, {len(row.seeds)} seeds: {number(row.difference)} in {verdict.declared.endpoint}, "
        f"{between(row.interval)} at {_level(verdict)}; p = {number(row.p_holm)} ({row.test})."
    )


def joined(cells: Iterable[str]) -> str:
    """The cells that are added up."""
    return " + ".join(cells)


def between(interval: Interval | None) -> str:
    """An interval in words; without one, that there is none."""
    return "(no interval)" if interval is None else f"from {number(interval[0])} to {number(interval[1])}"


def number_or(value: float | None, digits: int = 4) -> str:
    """The number, or a dash where it has no meaning."""
    return "–" if value is None else number(value, digits)


def _level(verdict: Verdict) -> str:
    return f"{number(100 * (1 - verdict.declared.alpha / len(verdict.rows)), 6)} %"


def _rate(rate: Rate) -> str:
    return f"{rate.successes} of {rate.seeds} ({between(rate.interval)})"


def _by_seed(row: Row) -> dict[int, float]:
    return dict(zip(row.seeds, row.differences, strict=True))


def _limits(verdict: Verdict, shown: Shown) -> list[Block]:
    """What the reader must know before believing the word."""
    blocks: list[Block] = []
    if shown.notes:
        blocks += [Heading("To know"), Items(shown.notes)]
    if shown.waived:
        blocks.append(Grid("Gates that the plan waives", ["gate", "reason"], list(shown.waived.items()), False))
    if shown.unchecked:
        blocks += [Heading("Not checked"), Line("No gate is known to have failed; these could not be checked:")]
        blocks.append(Items(shown.unchecked))
    tested = [
        f"Other endpoints than {verdict.declared.endpoint}, and other seeds, budgets and data than those below.",
        "Arms against each other: each row is only what its name says.",
    ]
    return [*blocks, Heading("Not tested"), Items([*tested[: 1 + (len(verdict.rows) > 1)], *shown.not_tested])]


def _numbers(verdict: Verdict) -> list[Block]:
    rows = verdict.rows
    lines = {
        "verdict": [word(row) for row in rows],
        "seeds": [str(len(row.seeds)) for row in rows],
        "look": [str(row.look) for row in rows],
        "mean of the arm": [number_or(row.plus_mean, 6) for row in rows],
        "mean of the baseline": [number_or(row.minus_mean, 6) for row in rows],
        "difference": [number_or(row.difference) for row in rows],
        f"interval at {_level(verdict)}": [between(row.interval) for row in rows],
        "interval at 95 %": [between(row.interval_95) for row in rows],
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
    }
    names = [row.contrast.name for row in rows]
    grid = Grid(f"In units of {verdict.declared.endpoint}", ["", *names], [[name, *of] for name, of in lines.items()])
    return [grid, Line(f"Exit status {verdict.status}.")]


def cells_of(verdict: Verdict) -> list[str]:
    """The arms that the contrasts read: baselines first, then in the order of the contrasts."""
    minus = [cell for row in verdict.rows for cell in row.contrast.minus]
    return list(dict.fromkeys([*minus, *(cell for row in verdict.rows for cell in row.contrast.plus)]))


def _seeds(verdict: Verdict, results: Results) -> list[Block]:
    cells, endpoint = cells_of(verdict), verdict.declared.endpoint
    worst = math.inf if verdict.declared.direction == "lower" else -math.inf
    rows = []
    for cell in cells:
        finite = [value for value in results[cell].values() if math.isfinite(value)]
        mean = sum(finite) / len(finite) if len(finite) == len(results[cell]) else None
        rows.append(Dots(cell, {s: v if math.isfinite(v) else worst for s, v in results[cell].items()}, mean))
    words = f"{endpoint} of every seed, by arm; the mark is the mean of an arm in which no seed failed."
    seeds = sorted({seed for cell in cells for seed in results[cell]})
    values = [[str(seed), *(_value(results[cell].get(seed)) for cell in cells)] for seed in seeds]
    apart = [[str(seed), *(_value(_by_seed(row).get(seed)) for row in verdict.rows)] for seed in seeds]
    return [
        Heading("Every seed"),
        Picture(dots(rows, words), words),
        Grid(f"{endpoint} by seed", ["seed", *cells], values),
        Grid("differences by seed", ["seed", *(row.contrast.name for row in verdict.rows)], apart),
    ]


def _value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–" if value is None else "failed"
    return number(value, 6)


def _failures(verdict: Verdict) -> list[Block]:
    failed = {cell: seeds for row in verdict.rows for cell, seeds in row.failed.items()}
    rates: dict[str, Rate] = {}
    for row in verdict.rows:
        if len(row.contrast.cells) == 2:
            rates |= {row.contrast.plus[0]: row.plus_rate, row.contrast.minus[0]: row.minus_rate}
    told = [[cell, ", ".join(map(str, seeds)) or "none"] for cell, seeds in failed.items()]
    for line in told:
        rate = rates.get(line[0])
        line += [f"{rate.successes} of {rate.seeds}", between(rate.interval)] if rate else ["–", "–"]
    columns = ["arm", "failed seeds", "succeeded", "Wilson interval at 95 %"]
    return [Heading("Failures"), Grid("A failed seed keeps its place", columns, told)]


def _curves(verdict: Verdict, shown: Shown) -> list[Block]:
    known = [row.contrast for row in verdict.rows if {*row.contrast.cells} <= shown.curves.keys()]
    if not known:
        return []
    most = max(2, POINTS // sum(3 * len(contrast.cells) for contrast in known))
    name = shown.curves_of or verdict.declared.endpoint
    blocks: list[Block] = [Heading("Curves")]
    for contrast in known:
        words = f"{contrast.name}: {name} by step, the median of the seeds in the band from the least to the largest."
        pair = [(cell, shown.curves[cell]) for cell in (*contrast.minus, *contrast.plus)]
        blocks.append(Picture(curves(pair, words, min(most, 200)), words))
    return blocks


def _budgets(shown: Shown) -> list[Block]:
    if not shown.budgets:
        return []
    columns = list(dict.fromkeys(name for budget in shown.budgets.values() for name in budget))
    rows = [[arm, *(_plain(budget.get(name)) for name in columns)] for arm, budget in shown.budgets.items()]
    caption = f"By arm; {shown.matched} is matched" if shown.matched else "By arm"
    return [Heading("Budgets"), Grid(caption, ["arm", *columns], rows)]


def _plain(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if type(value) is int else str(value)


def _declared(verdict: Verdict, shown: Shown) -> list[Block]:
    declared = verdict.declared
    rows = {
        "endpoint": declared.endpoint,
        "better": declared.direction,
        "smallest effect of interest, D": number(declared.smallest),
        "alpha": number(declared.alpha),
        "seeds by look": ", ".join(map(str, declared.looks)),
    }
    if declared.success is not None:
        rows["success threshold"] = number(declared.success)
    if verdict.open:
        rows["left to the next look"] = ", ".join(verdict.open)
    rows |= {name: _plain(value) for name, value in shown.plan.items()}
    blocks: list[Block] = [
        Heading("Declared"),
        Grid("Before the numbers were seen", ["", "value"], [*rows.items()], False),
    ]
    if shown.looked:
        counts = [[name, str(count)] for name, count in shown.looked.items()]
        blocks.append(Grid("What was looked at how often, for this question", ["", "count"], counts))
    return blocks


def _commands(shown: Shown) -> list[Block]:
    if not shown.commands:
        return []
    return [Heading("Reproduce"), *(Command(name, line) for name, line in shown.commands.items())]


def _exploratory(verdict: Verdict, shown: Shown) -> list[Block]:
    """Means and mean differences of metrics that nobody declared: no test, no interval, no word."""
    if not shown.exploratory:
        return []
    rows = []
    for metric, cells in shown.exploratory.items():
        for row in verdict.rows:
            plus, minus = (_sums(cells, side) for side in (row.contrast.plus, row.contrast.minus))
            apart = [plus[seed] - minus[seed] for seed in plus.keys() & minus.keys()]
            finite = sorted(value for value in apart if math.isfinite(value))
            if finite:
                mean = sum(finite) / len(finite)
                rows.append([f"{metric}, {row.contrast.name}", *map(number, (mean, finite[0], finite[-1]))])
                rows[-1].append(f"{len(finite)} of {len(apart)}")
    columns = ["metric", "mean difference", "least", "largest", "seeds"]
    told = "Other metrics of the same runs, which nobody declared: a reason for a new plan, not for a conclusion."
    return [Heading("Exploratory"), Line(told), Grid("Differences by seed, without a word", columns, rows)]


def _sums(cells: Mapping[str, Mapping[int, float]], names: Sequence[str]) -> dict[int, float]:
    """Seed -> sum over the cells that have it."""
    if any(name not in cells for name in names):
        return {}
    seeds = set.intersection(*({*cells[name]} for name in names))
    return {seed: math.fsum(cells[name][seed] for name in names) for seed in seeds}
