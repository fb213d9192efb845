"""What a page shows of one input, as arrays and text: it needs no model, and makes none."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.attention_picture import SHOWN
from eval.explain.methods.flow import Cut
from eval.explain.page.quanta import SIDE
from eval.verdict.page.blocks import plain

LONGEST = 80  # characters that are shown of one token; a page holds no more of it
EMBEDDINGS = {  # what is down and what is across in maps of a place: the sites of their tokens
    "stack": ("embedding", "embedding"),
    "encoder": ("encoder.embedding", "encoder.embedding"),
    "decoder": ("decoder.embedding", "decoder.embedding"),
    "cross": ("decoder.embedding", "encoder.embedding"),
}


class Table(NamedTuple):
    """A table as text: what it shows, the names of its columns, and rows whose first cell is a name."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Pair(NamedTuple):
    """The flow from the place `i` to the token `j` of a stack, with its cut."""

    i: int
    j: int
    cut: Cut


class Products(NamedTuple):
    """Queries (T, K) and keys (S, K) of one head, and what their products are multiplied with before the softmax."""

    place: str
    layer: int
    head: int
    q_TK: np.ndarray
    k_SK: np.ndarray
    scale: float


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """All that a page shows of one input; what is empty is left out of it.

    `results` are those of the methods, `Result` each, all of the same tokens, whose texts are `pieces` by site.
    `weights` (L, H, T, S), or pooled ones, are by place (`stack.attention`, `decoder.cross`), `statistics` (L, H) of
    their heads by place and name, of which `importance` chooses the heads that are shown whole. `rollout` (L, T, S) has
    what has come to each place behind each layer, by `stack`, or `encoder`, `decoder` and `cross`. `verdicts` has a row
    for each method: `word`, and the numbers it stands on. `commands` are relative to the run. `left_out` says what is
    not shown, and why.
    """

    text: str
    pieces: Mapping[str, Sequence[str]]
    answer: str = ""  # what is explained, in words
    place: int = -1  # where it is answered: the row of maps that is first read
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the run, the answer, the baseline
    results: Sequence[Any] = ()
    verdicts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    rollout: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    flow: Pair | None = None
    products: Products | None = None
    lens: Table | None = None
    tables: Sequence[Table] = ()
    commands: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()
    left_out: Sequence[str] = ()

    def __post_init__(self) -> None:
        maps = {place: x.shape[2:] for place, x in self.weights.items()}
        maps |= {name: x.shape[1:] for name, x in self.rollout.items()}
        for place, shape in maps.items():
            sizes = tuple(len(self.pieces[site]) for site in axes(place))
            if shape not in (sizes, tuple(min(size, SIDE) for size in sizes)):
                raise ValueError(f"maps of {place} are {shape}, and its tokens {sizes}")

    def word(self, method: str) -> str:
        """What is known of a method's faithfulness on this model: a map is never shown without it."""
        verdict = self.verdicts.get(method)
        return "not measured" if verdict is None else str(fields(verdict)["word"])


def axes(place: str) -> tuple[str, str]:
    """The sites of the tokens down and across a map, such as one of `decoder.cross`, or of the rollout's `cross`."""
    return EMBEDDINGS["cross" if place.endswith("cross") else place.partition(".")[0]]


def fields(verdict: Any) -> dict[str, Any]:
    """The names and values of a verdict, whether a tuple with names, a dataclass or a mapping."""
    if dataclasses.is_dataclass(verdict) and not isinstance(verdict, type):
        return {field.name: getattr(verdict, field.name) for field in dataclasses.fields(verdict)}
    return dict(verdict._asdict() if hasattr(verdict, "_asdict") else verdict)


def shown(piece: str) -> str:
    """A token as a page shows it: blanks as marks, what shows nothing or turns its neighbours around as its code, and
    of a long one its beginning with its length.
    """
    text = plain("".join(SHOWN.get(one, one) for one in piece[: LONGEST + 1])) or "(nothing)"
    return text if len(piece) <= LONGEST else f"{text[:LONGEST]}… ({len(piece):,} characters)"
