"""The verdict as CSV, without times, hosts or paths: the same results are the same bytes."""

import csv
import io
import math
from collections.abc import Iterable

from eval.verdict.decision import Row, Verdict
from eval.verdict.declared import Results
from eval.verdict.page.saying import cells_of


def seeds_sheet(verdict: Verdict, results: Results) -> str:
    """arm, seed, value in full precision, as `launch.ablate --table` reads it; inf is a failed run."""
    lines = [
        [cell, seed, value if math.isfinite(value) else math.inf]
        for cell in cells_of(verdict)
        for seed, value in sorted(results[cell].items())
    ]
    return _sheet([["arm", "seed", "value"], *lines])


def rows_sheet(verdict: Verdict) -> str:
    """A line for each contrast, with all of its numbers in full precision; empty where one has no meaning."""
    lines = [_line(row) for row in verdict.rows]
    return _sheet([list(lines[0]), *(line.values() for line in lines)])


def _line(row: Row) -> dict[str, object]:
    low, high = row.interval or (None, None)
    low_95, high_95 = row.interval_95 or (None, None)
    line: dict[str, object] = {
        "contrast": row.contrast.name,
        "plus": "+".join(row.contrast.plus),
        "minus": "+".join(row.contrast.minus),
        "word": row.word,
        "sign": {True: "better", False: "worse", None: ""}[row.good],
        "seeds": len(row.seeds),
        "look": row.look,
        "level": row.level,
        "test": row.test,
    }
    numbers = ("plus_mean", "minus_mean", "difference", "spread", "p_t", "p_flip", "p", "p_holm", "p_tost")
    more = ("p_tost_holm", "coverage_skewed", "detectable", "detectable_spreads", "seeds_needed", "correlation")
    line |= {name: getattr(row, name) for name in (*numbers, *more)}
    line |= {"interval_low": low, "interval_high": high, "interval_95_low": low_95, "interval_95_high": high_95}
    for side, rate in (("plus", row.plus_rate), ("minus", row.minus_rate)):
        line |= {f"{side}_successes": rate.successes, f"{side}_rate_low": rate.interval[0]}
        line[f"{side}_rate_high"] = rate.interval[1]
    return line | {"sentences": " ".join(row.sentences)}


def _sheet(lines: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([repr(float(cell)) if isinstance(cell, float) else cell for cell in line] for line in lines)
    return text.getvalue()
