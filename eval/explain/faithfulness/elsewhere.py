"""Maps that were made elsewhere, judged by the rule for those made here, on the inputs that they are of."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eval.explain.faithfulness.judging import LEAST, LEVEL, verdicts
from eval.explain.faithfulness.kept import FEW, Row, of_few, orders
from eval.explain.files.result import Result, load
from eval.explain.methods.table import METHODS, Asked, Maps
from eval.explain.targets import places
from model.errors import UserError

ANSWERS = "places", "answers"
ANEW = " drawn anew"  # behind a method's name: its maps of `judging.drawn_anew(model, 0)`


class Given(NamedTuple):
    """Maps by the names of their methods, (B, n) by site, and those of the model with parameters drawn anew."""

    maps: dict[str, Maps]
    anew: dict[str, Maps]


def read_maps(path: str, asked: Asked, own: Mapping[str, Sequence[Sequence[str]]], parameters: str) -> Given:
    """The maps of a file as `result.save` writes it, of the inputs whose tokens have the texts `own`, by site.

    Raises:
        UserError: it cannot be read, or is of other inputs, or only of some, of another answer or other parameters.
    """
    by_name: dict[str, list[Result]] = {}
    for one in load(path):
        by_name.setdefault(one.method, []).append(one)
    if missing := [name for name in by_name or [""] if name.removesuffix(ANEW) not in by_name]:
        raise UserError(f"--attributions={path} holds no maps of the model itself: {missing[0].removesuffix(ANEW)!r}.")
    sizes, count = {site: x.shape[1] for site, x in places(asked.inputs).items()}, len(next(iter(own.values())))
    found: dict[str, Maps] = {}
    for name, some in by_name.items():
        if len(some) != count:
            raise UserError(f"--attributions={path}: {name} is of {len(some)} inputs, and {count} are given.")
        found[name] = {site: np.zeros((count, size)) for site, size in sizes.items()}
        for row, one in enumerate(some):
            if one.pieces != {site: tuple(rows[row]) for site, rows in own.items()}:
                raise UserError(
                    f"--attributions={path}: {name} of input {row + 1} is of other tokens than this run's; let "
                    "--json=FILE write them, and put other numbers there."
                )
            answers = {name: tuple(np.asarray(getattr(asked.target, f"{name}_BP"))[row].tolist()) for name in ANSWERS}
            if any(getattr(one.target, name) != numbers for name, numbers in answers.items()):
                raise UserError(
                    f"--attributions={path}: {name} of input {row + 1} explains {one.target.texts[0]!r} at "
                    f"{one.target.places[0]}, and something else is asked; give the same --target, or leave it out."
                )
            if one.provenance.get("parameters", parameters) != parameters:
                raise UserError(f"--attributions={path}: {name} is of other parameters than this run's; explain anew.")
            for site, values_n in one.values.items():
                found[name][site][row, : len(values_n)] = values_n
    anew = {name.removesuffix(ANEW): found.pop(name) for name in [*found] if name.endswith(ANEW)}
    return Given(found, anew)


def judged_elsewhere(asked: Asked, given: Given) -> dict[str, Row]:
    """What is known of each method, as of those made here, but for the sensitivity, for which it would have to be
    called. Without maps of the model drawn anew nobody knows whether it says the same of any model: then it is "not
    faithful here" where it names no more than chance, and else "not measured".
    """
    own, few = given.maps.values(), min(FEW, len(asked.target.places_BP))
    taus_M = orders(asked, own, METHODS["leave_one_out"].call(asked))
    measured = zip(
        verdicts(asked, given.maps, given.maps | given.anew).items(), taus_M, *of_few(asked, own), strict=True
    )
    found = {}
    for (name, one), tau, left_out, wrong in measured:
        row = Row(*one, tau, few, float(left_out), float(wrong))
        if name not in given.anew:
            passed = one.p <= LEVEL and one.word != "not measured"
            row = row._replace(word="not measured" if passed else one.word, correlation=None)
        found[name] = row
    return found


def told(found: Mapping[str, Row]) -> str:
    """A line for each method."""
    lines, width = [], max(map(len, found))
    for name, one in found.items():
        beside = f"tau {one.leave_one_out:.2f} beside leave_one_out, sufficiency {one.sufficiency:.3f}, "
        beside += f"infidelity {one.infidelity:.3g}"
        if one.examples < LEAST:
            lines.append(f"  {name:<{width}}  {one.word}, as that takes {LEAST} inputs; loses {one.lost:.3f}; {beside}")
            continue
        alike = "no maps of the model drawn anew are given" if one.correlation is None else f"{one.correlation:.2f}"
        lines.append(
            f"  {name:<{width}}  {one.word:<18}  loses {one.lost:.3f}, {one.more_than_random:+.3f} beside random maps "
            f"(95 %: at least {one.lower_bound:+.3f}; p = {one.p:.2g}); as if drawn anew: {alike}; {beside}"
        )
    return "\n".join(lines)
