"""What a word leaves out, in sentences."""

from eval.verdict.declared import Declared, least_seeds
from eval.verdict.detectable import MANY
from eval.verdict.row import Row
from eval.verdict.rule import BELOW, UNCLEAR


def sentences(declared: Declared, row: Row, gates: tuple[str, ...]) -> tuple[str, ...]:
    """What is to be said beside the word of a row, in the order in which a reader needs it."""
    said = [f"Invalid: {'; '.join(gates)}."] if gates else []
    early = row.look < len(declared.looks)
    if row.word == BELOW:
        said.append(f"It is {'better' if row.good else 'worse'}, by less than D = {declared.smallest:g}.")
    if row.word == UNCLEAR and early:
        said.append(f"Not decided yet: the second look is at {declared.looks[1]} seeds.")
    elif row.word == UNCLEAR:
        said.append(_what_could_be_seen(declared, row))
    elif early and not gates:
        said.append(f"Decided at the first look, of {len(row.seeds)} seeds: the mean is biased outwards, away from 0.")
    if row.held:
        said.append(
            f"The sign-flip test alone held the word back: by the t test there is a difference at {row.level:g}."
        )
    said += _failures(declared, row)
    if row.differences and not any(row.differences):
        said.append("All differences are exactly 0.")
    return tuple(said)


def _what_could_be_seen(declared: Declared, row: Row) -> str:
    """The effect that could have been seen, and the seeds that D needs."""
    n, least = len(row.seeds), least_seeds(len(declared.contrasts), declared.alpha)
    if n < least:
        return f"{n} seeds can name no difference: the exact test's smallest p is {2 / 2**n:g}; give at least {least}."
    if row.detectable is None or row.seeds_needed is None:
        return "The effect that could have been seen cannot be said: it is measured in spreads, and seeds failed."
    needed = "a million seeds or more" if row.seeds_needed >= MANY else f"about {row.seeds_needed} seeds"
    best = ", where no seed speaks against it" if declared.success is not None else ""
    return (
        f"An effect of {row.detectable:.3g} could have been seen (in 80 % of cases{best}); "
        f"D = {declared.smallest:g} needs {needed}."
    )


def _failures(declared: Declared, row: Row) -> list[str]:
    counts = [f"{len(seeds)} in {cell!r}" for cell, seeds in row.failed.items() if seeds]
    if not counts:
        return []
    listed = f"Of {len(row.seeds)} seeds, {' and '.join(counts)} failed"
    if declared.success is not None:
        return [f"{listed}, which is no success."]
    waits = ", and the first look does not decide" if row.look < len(declared.looks) else ""
    return [f"{listed}: the signed-rank test decides{waits}; there is no mean, t interval or test of equivalence."]
