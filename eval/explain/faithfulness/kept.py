"""The faithfulness table of a checkpoint: measured once, on examples of the run's own validation set, and kept."""

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import model as model_room
from eval import explain
from eval.explain.faithfulness import measures
from eval.explain.faithfulness.judging import LEAST, WORDS, drawn_anew, dropped, joined, verdicts
from eval.explain.faithfulness.validation import EXAMPLES, TOKENS, kind_of, validation
from eval.explain.files.result import parameters_hash
from eval.explain.methods.table import METHODS, Asked, Maps
from eval.explain.targets import embedded, places
from eval.runs import Run
from eval.verdict import pvalues
from model.errors import UserError
from train import tasks
from train.run.bucket.run import published
from train.run.files.json_files import read_cache, write
from train.run.files.mending import read_kept

log = logging.getLogger("heed")
FEW, CHOICES, SHIFTS, RADIUS = 8, 32, 8, 0.02  # examples of what takes long, and what is drawn for each of them
PASSES = {"smooth_gradient": 25, "leave_one_out": TOKENS, "integrated_gradients": TOKENS}  # about, to tell what is left
Say = Callable[[str], None]


class Row(NamedTuple):
    """What is known of a method: its word and what that stands on, as `Verdict` has it; Kendall's tau beside
    leave-one-out, the mean over the same examples; and means over the first `few` of them: how much probability the
    tokens that it names leave out (sufficiency, less is better), infidelity and largest sensitivity; None where they
    were not measured.
    """

    word: str
    examples: int
    lost: float | None = None
    more_than_random: float | None = None
    lower_bound: float | None = None
    p: float | None = None
    correlation: float | None = None
    leave_one_out: float | None = None
    few: int = 0
    sufficiency: float | None = None
    infidelity: float | None = None
    sensitivity: float | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of all methods that make sense for a model, by their names, of a step, for answers of this kind."""

    kind: str
    step: int
    key: str
    rows: Mapping[str, Row]
    notes: tuple[str, ...] = ()

    def word(self, method: str) -> str:
        """What is known of a method here."""
        return self.rows[method].word if method in self.rows else "not measured"


def table(run: Run, say: Say = log.info, parameters: str = "", kind: str = "", compared: str = "mean") -> Table:
    """That of a run's checkpoint, for targets of a kind (`validation.kind_of_target`; that of the default one) and what
    tokens are compared with: the one that its folder keeps, if it is of the same parameters, methods and code; else it
    is measured, which takes a minute or several, and kept. `parameters` is their hash, if it is known.

    Raises:
        UserError: the run's data set cannot be had.
    """
    kind = kind or kind_of(run)
    key = _key(run, (kind, compared), parameters or parameters_hash(run.model))
    parts = (kind.replace(" ", "-") if kind != kind_of(run) else "", compared if compared != "mean" else "")
    file = run.folder / f"faithfulness-{run.step}{''.join(f'-{one}' for one in parts if one)}.json"
    kept = read_cache(file, lambda value: _table(value))
    if kept is not None and kept["key"] == key:
        return _table(kept)
    made = measured(run, kind, key, say, compared)
    if jax.process_index() == 0:
        try:
            write(file, dataclasses.asdict(made) | {"rows": {name: row._asdict() for name, row in made.rows.items()}})
            published(file)
        except OSError as error:
            log.warning("%s cannot be written (%s): the table is measured anew each time.", file.name, error.strerror)
    return made


def table_or_why(run: Run, say: Say, parameters: str, kind: str, compared: str) -> Table:
    """The same, or an empty one that says why it cannot be had."""
    try:
        return table(run, say, parameters, kind, compared)
    except UserError as error:
        say(f"faithfulness: not measured, as the run's validation set cannot be had: {error}")
        return Table(kind, run.step, "", {}, (f"not measured: {error}",))


def measured(run: Run, kind: str, key: str, say: Say = log.info, compared: str = "mean") -> Table:
    """The table, measured anew."""
    notes = [f"of the {run.config.train.seeds} seeds, the first"] if run.config.train.seeds > 1 else []
    serving = [name for name, method in METHODS.items() if method.serves(run.model)]
    if kind_of(run) == "class" and run.model.config.labels == 1:
        notes.append("not measured: a number has no probability, by which faithfulness is told")
        return Table(kind, run.step, key, {name: Row("not measured", 0) for name in serving}, tuple(notes))
    asked = validation(run, kind, compared)
    count = len(asked.target.places_BP)
    if count < LEAST:
        notes.append(f"not measured: the validation set has {count} examples, and {LEAST} are needed")
        return Table(kind, run.step, key, {name: Row("not measured", count) for name in serving}, tuple(notes))
    work = {f"map by {name}": 3 + PASSES.get(name, 1) / 5 for name in serving} | {"removal of tokens": 10.0}
    work |= {f"steadiness of {name}": 3 + PASSES.get(name, 1) / 10 for name in serving}
    done = _Progress(work, say)
    anew = asked._replace(model=drawn_anew(run.model, 0))
    maps, others = dict[str, Maps](), dict[str, Maps]()
    for name in serving:
        for found, one in ((maps, asked), (others, anew)):
            found[name] = {site: np.asarray(x) for site, x in METHODS[name].call(one).items()}
        done(f"map by {name}")
    judged = verdicts(asked, maps, others)
    taus_M = orders(asked, maps.values(), maps["leave_one_out"])
    done("removal of tokens")
    left_out_M, wrong_M = of_few(asked, maps.values())
    rows = {}
    for number, name in enumerate(serving):
        steady = _steadiness(first(asked, FEW), name)
        done(f"steadiness of {name}")
        few = min(FEW, count), float(left_out_M[number]), float(wrong_M[number]), steady
        rows[name] = Row(*judged[name], taus_M[number], *few)
    return Table(kind, run.step, key, rows, tuple(notes))


def first(asked: Asked, count: int) -> Asked:
    """The first examples."""
    return asked._replace(**jax.tree.map(lambda x: x[:count], {k: getattr(asked, k) for k in asked._fields[1:]}))


def orders(asked: Asked, maps: Iterable[Maps], reference: Maps) -> list[float]:
    """Kendall's tau of each map beside leave-one-out, the mean over the examples."""
    real_Bn, reference_Bn = joined(places(asked.inputs)), joined(reference)
    return [float(measures.tau(joined(one), reference_Bn, real_Bn).mean()) for one in maps]


def of_few(asked: Asked, maps: Iterable[Maps]) -> tuple[np.ndarray, np.ndarray]:
    """Sufficiency and infidelity of each map, (M,), the means over the first `FEW` examples."""
    asked, maps_MBn = first(asked, FEW), np.stack([joined(one)[:FEW] for one in maps])
    real_Bn = joined(places(asked.inputs))
    left_out_MB = dropped(asked, maps_MBn, real_Bn, kept=True)
    return left_out_MB.mean(1), measures.infidelity(asked, maps_MBn, measures.drawn_choices(real_Bn, CHOICES)).mean(1)


def _steadiness(asked: Asked, name: str) -> float:
    shifts = measures.drawn_shifts(embedded(asked.model, asked.inputs), RADIUS, SHIFTS)
    return float(measures.largest_sensitivity(asked, METHODS[name], shifts).mean())


class _Progress:
    """Says how much of some work is done, and how long the rest takes at the speed so far."""

    def __init__(self, work: dict[str, float], say: Say) -> None:
        self._work, self._say, self._start, self._done = work, say, time.monotonic(), 0.0
        say(f"faithfulness: measured once for this checkpoint, in {len(work)} parts")

    def __call__(self, part: str) -> None:
        self._done += self._work[part]
        share = self._done / sum(self._work.values())
        left = (time.monotonic() - self._start) * (1 / share - 1)
        self._say(f"faithfulness: {share:4.0%}, about {math.ceil(left)} s left ({part})")


def _key(run: Run, kind: tuple[str, str], parameters: str) -> str:
    """The same only if a table would be: of the same parameters, text, methods and code."""
    data, numbers = read_kept(run.folder, "passport.json")["data"]["fingerprint"], (EXAMPLES, TOKENS, FEW, CHOICES)
    found = hashlib.sha256(repr((kind, parameters, data, sorted(METHODS), numbers, SHIFTS, RADIUS)).encode())
    for file in _sources():
        found.update(file.read_bytes())
    return found.hexdigest()


def _sources() -> Iterator[Path]:
    room = Path(explain.__path__[0])  # all of it but how it is shown
    yield from sorted(file for file in room.rglob("*.py") if "page" not in file.relative_to(room).parts)
    for other in (model_room, tasks):
        yield from sorted(Path(other.__path__[0]).rglob("*.py"))
    yield Path(pvalues.__file__)


def _table(value: Any) -> Table:
    rows = {name: Row(**row) for name, row in dict(value["rows"]).items()}
    if not rows or any(row.word not in WORDS for row in rows.values()):
        raise ValueError("it has no rows, or other words")
    return Table(value["kind"], value["step"], value["key"], rows, tuple(value["notes"]))
