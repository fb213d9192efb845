"""How a verdict's numbers are said."""

from collections.abc import Iterable

from eval.verdict.decision import BELOW, Rate, Row, Verdict
from eval.verdict.intervals import Interval
from eval.verdict.page.figures import number


def word(row: Row) -> str:
    """The verdict in a word; where the effect is below D, with its sign."""
    return f"{row.word} ({'better' if row.good else 'worse'})" if row.word == BELOW else row.word


def basis(row: Row, verdict: Verdict) -> str:
    """The sentence under a word: what was subtracted from what, and what came of it."""
    what = f"{joined(row.contrast.plus)} minus {joined(row.contrast.minus)}"
    if row.difference is None or row.interval is None:
        signs = [difference > 0 for difference in row.differences if difference]
        worse = signs.count(verdict.declared.good_sign == "lower")
        pairs = f"worse in {worse} pairs and better in {len(signs) - worse}"
        rates = f"{rate_of(row.plus_rate)} against {rate_of(row.minus_rate)} of the seeds did not fail"
        return f"{what}, {len(row.seeds)} seeds: {pairs}; {rates}; p = {number(row.p_holm)} ({row.test})."
    return (
        f"{what}, {len(row.seeds)} seeds: {number(row.difference)} in {unit(verdict)}, "
        f"{between(row.interval)} at {level(verdict)}; p = {number(row.p_holm)} ({row.test})."
    )


def unit(verdict: Verdict) -> str:
    """What differences are of: the endpoint, or the share of seeds that reach its threshold."""
    declared = verdict.declared
    return declared.endpoint if declared.success is None else f"the rate of {declared.endpoint} {goal(verdict)}"


def goal(verdict: Verdict) -> str:
    """Which values are a success, such as 'at most 3.5'; empty where success is not the endpoint."""
    declared = verdict.declared
    side = "at most" if declared.direction == "lower" else "at least"
    return "" if declared.success is None else f"{side} {number(declared.success)}"


def joined(cells: Iterable[str]) -> str:
    """The cells that are added up; several in brackets."""
    names = [*cells]
    return names[0] if len(names) == 1 else f"({' + '.join(names)})"


def between(interval: Interval | None) -> str:
    """An interval in words; without one, that there is none."""
    return "(no interval)" if interval is None else f"from {number(interval[0])} to {number(interval[1])}"


def number_or(value: float | None, digits: int = 4) -> str:
    """The number, or a dash where it has no meaning."""
    return "–" if value is None else number(value, digits)


def level(verdict: Verdict) -> str:
    """The level of the intervals that all arms share, such as '97.5 %'."""
    return f"{number(100 * (1 - verdict.declared.alpha / len(verdict.rows)), 6)} %"


def rate_of(rate: Rate) -> str:
    """How many seeds succeeded, with the interval of their rate."""
    return f"{rate.successes} of {rate.seeds} ({between(rate.interval)})"


def by_seed(row: Row) -> dict[int, float]:
    """Seed -> difference."""
    return dict(zip(row.seeds, row.differences, strict=True))


def plain_of(value: object) -> str:
    """A value of `Shown`: whole numbers with commas, others by their first digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return number(value)
    return f"{value:,}" if type(value) is int else str(value)


def cells_of(verdict: Verdict) -> list[str]:
    """The arms that the contrasts read: baselines first, then in the order of the contrasts."""
    minus = [cell for row in verdict.rows for cell in row.contrast.minus]
    return list(dict.fromkeys([*minus, *(cell for row in verdict.rows for cell in row.contrast.plus)]))
