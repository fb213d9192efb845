"""From the results of all seeds to a word for each contrast."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from eval.verdict.declared import LARGEST, LEAST, Declared, Results, is_judged
from eval.verdict.intervals import Interval
from eval.verdict.row import Rate, Row, make_row
from eval.verdict.rule import BELOW, BETTER, EQUIVALENT, INVALID, UNCLEAR, WORSE, Findings, judge
from eval.verdict.sentences import sentences
from model.errors import UserError

__all__ = [
    "BELOW",
    "BETTER",
    "EQUIVALENT",
    "INVALID",
    "UNCLEAR",
    "WORSE",
    "Interval",
    "Rate",
    "Row",
    "Verdict",
    "decide",
]


@dataclass(frozen=True)
class Verdict:
    """The rows in the order of the declared contrasts, the gates that failed, and the exit status.

    `open` names the contrasts that the next look is still to decide; empty where the grid may stop.
    """

    declared: Declared
    rows: tuple[Row, ...]
    gates: tuple[str, ...]
    status: int
    open: tuple[str, ...]

    def __repr__(self) -> str:
        from eval.verdict import page  # which shows what this module decides

        return page.text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        from eval.verdict import page

        return page.notebook_html(self)

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite difference, of a failed seed, is the text 'inf' or '-inf'."""
        return dict(_plain(asdict(self)))


def exit_status(rows: Sequence[Row]) -> int:
    """7 if a gate failed, else the first of 0 better, 4 below D with the good sign, 5, 6, 4 with the bad sign, 3."""
    outcomes = {(row.word, row.good if row.word == BELOW else None) for row in rows}
    order = [(INVALID, None), (BETTER, None), (BELOW, True), (EQUIVALENT, None), (UNCLEAR, None), (BELOW, False)]
    statuses = dict(zip(order, (7, 0, 4, 5, 6, 4), strict=True))
    return next((statuses[one] for one in order if one in outcomes), 3)


def decide(declared: Declared, results: Results, gates: Sequence[str] = ()) -> Verdict:
    """The verdict on the results; each gate that failed is a name or a sentence.

    The seeds are looked at in ascending order. With two looks, results of the first alone are judged by it, and of
    both by both; a contrast that the first look decided needs no more seeds.

    Raises:
        UserError: a cell or a seed is missing, or a value is too large or too small to be judged.
    """
    seeds = _seeds(declared, results)
    cells = {name: np.array([[results[name].get(seed, 0.0) for seed in seeds]]) for name in _cells(declared)}
    findings = judge(declared, cells, every_p=True)
    rows = [
        make_row(declared, contrast, results, seeds, _one(findings, at), bool(gates))
        for at, contrast in enumerate(declared.contrasts)
    ]
    for row in rows:
        short = [seed for cell in row.contrast.cells for seed in row.seeds if seed not in results[cell]]
        if short:
            raise UserError(
                f"contrast {row.contrast.name!r} lacks the seeds {sorted({*short})}: give each of its arms {seeds}."
            )
    waits = len(seeds) < declared.looks[-1]
    still_open = tuple(row.contrast.name for row in rows if waits and row.word == UNCLEAR)
    said = tuple(replace(row, sentences=sentences(declared, row, tuple(gates))) for row in rows)
    return Verdict(declared, said, tuple(gates), exit_status(said), still_open)


def _cells(declared: Declared) -> list[str]:
    return sorted({cell for contrast in declared.contrasts for cell in contrast.cells})


def _seeds(declared: Declared, results: Results) -> tuple[int, ...]:
    """All seeds, as many as a look has, of which each cell has those of the first."""
    cells = _cells(declared)
    missing = [cell for cell in cells if cell not in results]
    if missing:
        raise UserError(f"the results lack {missing}: they have {sorted(results)}.")
    seeds = tuple(sorted({seed for cell in cells for seed in results[cell]}))
    if len(seeds) not in declared.looks:
        raise UserError(f"the results have {len(seeds)} seeds, {seeds}: the looks are declared at {declared.looks}.")
    for cell in cells:
        lacks = [seed for seed in seeds[: declared.looks[0]] if seed not in results[cell]]
        if lacks:
            raise UserError(
                f"arm {cell!r} lacks the seeds {lacks}: give every arm the seeds {seeds}; a failed one as inf."
            )
        if odd := [value for value in results[cell].values() if not is_judged(value)]:
            raise UserError(f"arm {cell!r} has {odd[0]}: give 0, or from {LEAST:g} to {LARGEST:g} in size.")
    return seeds


def _one(findings: Findings, at: int) -> Findings:
    """The findings for one contrast of one draw, as single values."""
    return Findings(**{name: values[0, at] for name, values in vars(findings).items()})


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
