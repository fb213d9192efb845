"""What a page shows without its script, for the template: strips of tokens, tables, and the graph of a flow."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.explain.page.content import Content, Table, axes, fields, shown
from eval.verdict.page.figures import number

SITES = {"encoder.embedding": "source", "decoder.embedding": "what is written"}
LEVELS = 8  # of a sign's colour
NAMES = {
    "word": "word",
    "examples": "examples",
    "lost": "drop",
    "more_than_random": "more than random",
    "lower_bound": "lower bound",
    "p": "p (Holm)",
    "correlation": "correlation with drawn anew",
    "leave_one_out": "tau with leaving one out",
    "few": "examples of the rest",
}
EDGES, COLUMNS = 160, 64  # of a flow's graph, at most
WIDTH, STEP, RISE, LEFT, TOP, FOOT = 980, 40, 44, 84, 20, 96  # pixels: all, at most between tokens, layers, and around


class Row(NamedTuple):
    """The tokens of a site, each with the class of its colour."""

    site: str
    marks: list[tuple[str, str]]


class Strip(NamedTuple):
    """A method's map of one input."""

    method: str
    name: str
    rows: list[Row]
    cost: str


def strips(content: Content) -> list[Strip]:
    """Each method's tokens, marked on the same scale: as parts of its largest number."""
    found = []
    for result in content.results:
        largest = max((float(np.abs(x).max(initial=0)) for x in result.values.values()), default=0.0)
        rows = [
            Row(
                SITES.get(site, "text"),
                [(shown(piece), level(x, largest)) for piece, x in zip(content.pieces[site], x_n, strict=True)],
            )
            for site, x_n in result.values.items()
        ]
        found.append(Strip(result.method, result.method.replace("_", " "), rows, cost(result, largest)))
    return found


def level(value: float, largest: float) -> str:
    """The class of a token's colour, from n8 (against) by p0 to p8 (for)."""
    size = round(LEVELS * abs(float(value)) / largest) if largest else 0
    return f"{'n' if value < 0 and size else 'p'}{size}"


def cost(result: Any, largest: float) -> str:
    """What stands below a map: its largest number, the baseline, the error, what it took."""
    parts = [f"largest {number(largest, 3)}"]
    if result.baseline:
        parts.append(f"compared with {result.baseline}")
    if result.error is not None:
        parts.append(f"completeness within {number(float(result.error), 2)}")
    if result.passes:
        parts.append(f"{result.passes} passes")
    return ", ".join([*parts, f"{number(float(result.seconds), 2)} s, compilation included"])


def numbers(content: Content) -> list[Table]:
    """Of each site a table with a row for each token and a column for each method."""
    found = []
    for site, pieces in content.pieces.items():
        having = [result for result in content.results if site in result.values]
        columns = [result.values[site] for result in having]
        names = ["token", *(result.method.replace("_", " ") for result in having)]
        rows = [
            [f"{at} {shown(piece)}", *(number(float(x_n[at]), 3) for x_n in columns)] for at, piece in enumerate(pieces)
        ]
        if having:
            found.append(Table(f"How much each token counts: {SITES.get(site, 'text')}", names, rows))
    return found


class Heat(NamedTuple):
    """A table of numbers, each with the class of its colour."""

    table: Table
    levels: list[list[str]]


def heat(table: Table) -> Heat:
    """Numbers marked as parts of the largest of all of them; what is none has no mark."""
    values = [[_number(cell) for cell in row[1:]] for row in table.rows]
    largest = max((abs(x) for row in values for x in row if x is not None), default=0.0)
    return Heat(table, [["" if x is None else level(x, largest) for x in row] for row in values])


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def judged(content: Content) -> Table | None:
    """The table of faithfulness, as far as there is one."""
    if not content.verdicts:
        return None
    told = {method: fields(verdict) for method, verdict in content.verdicts.items()}
    keys = list(dict.fromkeys(key for one in told.values() for key in one))
    columns = ["method", *(NAMES.get(key, key.replace("_", " ")) for key in keys)]
    rows = [[method.replace("_", " "), *(_said(one.get(key)) for key in keys)] for method, one in told.items()]
    return Table("What taking out the tokens that a map names does to the answer", columns, rows)


def heads(content: Content) -> list[Table]:
    """Of each place a row for each head with its statistics."""
    found = []
    for place, named in content.statistics.items():
        columns = ["head", *(name.replace("_", " ") for name in named)]
        shape = next(iter(named.values())).shape if named else (0, 0)
        rows = [
            [f"{layer}.{head}", *(_said(float(x_LH[layer, head])) for x_LH in named.values())]
            for layer, head in np.ndindex(shape)
        ]
        found.append(Table(f"Heads of {place}, by layer and head", columns, rows))
    return found


def graph(content: Content) -> dict[str, Any] | None:
    """The flow of one pair, token x layer: places and widths of what is drawn, and the edges of its cut as a table."""
    if content.flow is None:
        return None
    i, j, cut = content.flow
    flow_Lnn, L = np.asarray(cut.flow_Lnn), len(cut.flow_Lnn)
    kept = np.argwhere((flow_Lnn > 1e-6 * max(cut.value, 1e-12)) | (np.asarray(cut.cut_Lnn) & (flow_Lnn > 0)))
    kept = kept[np.argsort([-flow_Lnn[tuple(at)] for at in kept], kind="stable")]
    through_n = flow_Lnn.sum((0, 1)) + flow_Lnn.sum((0, 2))
    through_n[[i, j]] = math.inf
    columns = sorted(np.argsort(-through_n, kind="stable")[: min(COLUMNS, int((through_n > 0).sum()))].tolist())
    step = min(STEP, WIDTH / len(columns))
    at = {token: round(LEFT + step * index, 1) for index, token in enumerate(columns)}
    drawn = [(int(a), int(b), int(c)) for a, b, c in kept if int(b) in at and int(c) in at][:EDGES]
    height = TOP + RISE * L + FOOT
    y = [TOP + RISE * (L - layer) for layer in range(L + 1)]
    pieces = content.pieces[axes("stack")[0]]

    def edge(layer: int, up: int, down: int) -> dict[str, Any]:
        value = float(flow_Lnn[layer, up, down])
        words = f"layer {layer}: {number(value, 3)} of {down} {_short(pieces[down])} to {up} {_short(pieces[up])}"
        wide = round(1 + 7 * math.sqrt(value / max(cut.value, 1e-12)), 2)
        ends = {"x1": at[down], "y1": y[layer], "x2": at[up], "y2": y[layer + 1]}
        return ends | {"wide": min(wide, 8), "cut": bool(cut.cut_Lnn[layer, up, down]), "words": words}

    nodes = {(0, j), (L, i)} | {(layer, down) for layer, _, down in drawn} | {(a + 1, up) for a, up, _ in drawn}
    labels = [{"kind": "layer", "x": LEFT - 14, "y": y[layer] + 4, "text": _layer(layer)} for layer in range(L + 1)]
    labels += [{"kind": "token", "x": x + 4, "y": y[0] + 20, "text": _short(pieces[token])} for token, x in at.items()]
    left = len(kept) - len(drawn)
    said = (
        f"From {j} {_short(pieces[j])} up to {i} {_short(pieces[i])} at most {number(float(cut.value), 3)} can get. "
        "The lines are one of many optima; those of the cut, in blue and dashed, are full, and prove that none is more."
        + (f" {left} thin lines are not drawn." if left else "")
    )
    return {
        "width": round(LEFT + step * len(columns) + 10),
        "height": height,
        "edges": [edge(*one) for one in reversed(drawn)],
        "nodes": [
            {
                "x": at[token],
                "y": y[layer],
                "kind": "end" if (layer, token) in {(0, j), (L, i)} else "node",
                "r": 6 if (layer, token) in {(0, j), (L, i)} else 3,
            }
            for layer, token in sorted(nodes)
        ],
        "labels": labels,
        "said": said,
        "cut": _cut(cut, pieces),
    }


def _cut(cut: Any, pieces: Sequence[str]) -> Table:
    rows = [
        [
            str(layer),
            f"{down} {shown(pieces[down])}",
            f"{up} {shown(pieces[up])}",
            number(float(cut.flow_Lnn[layer, up, down]), 3),
        ]
        for layer, up, down in np.argwhere(cut.cut_Lnn)[:EDGES]
    ]
    return Table("Edges whose capacities sum to the flow", ["layer", "from", "to", "flow"], rows)


def _layer(layer: int) -> str:
    return "tokens" if layer == 0 else f"layer {layer - 1}"


def _short(piece: str) -> str:
    text = shown(piece)
    return text if len(text) <= 12 else f"{text[:11]}…"


def _said(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "–" if math.isnan(value) else number(float(value), 3)
    return "–" if value is None else str(value)
