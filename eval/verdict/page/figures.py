"""Figures as SVG by hand: across, places are percents of the window, and down, pixels: text keeps its size in any.

Colours are classes that the page's style fills, in light and dark.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.verdict.page.blocks import safe
from eval.verdict.page.shown import Curve

ROW = 66  # pixels of one row of dots
POINTS = 20_000  # of all curves of a page, which is to stay below a megabyte


def number(value: float, digits: int = 4) -> str:
    """A number as the page shows it, by its first digits: 0.01234, 1e-05, inf."""
    return f"{value:.{digits}g}" if value else "0"


@dataclass(frozen=True)
class Scale:
    """Numbers from `least` to `most`, laid out from 4 % to 96 % of a window; failures stand outside of them."""

    least: float
    most: float

    def __call__(self, value: float) -> str:
        """The place of a value, such as '50%'."""
        if math.isinf(value):
            return "1.5%" if value < 0 else "98.5%"
        return f"{4 + 92 * (value - self.least) / (self.most - self.least):.3f}%"

    def ticks(self) -> list[tuple[float, str]]:
        """Three to six round numbers, and how they are written: with as many digits as tell them apart."""
        raw = (self.most - self.least) / 4
        size = 10.0 ** math.floor(math.log10(raw))
        step = next(size * one for one in (1, 2, 5, 10) if size * one >= raw * 0.8)
        digits = 1 + math.ceil(math.log10(max(abs(self.least), abs(self.most)) / step + 1))
        numbers = [step * at for at in range(math.ceil(self.least / step), math.floor(self.most / step) + 1)]
        return [(one, number(one, max(4, digits))) for one in numbers]


def scale_of(values: Iterable[float]) -> Scale:
    """The scale that holds all of the values that are finite."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    least, most = min(finite), max(finite)
    if most - least <= 1e-12 * max(abs(least), abs(most)):
        wide = abs(most) / 10 or 1.0
        least, most = least - wide, most + wide
    return Scale(least, most)


@dataclass(frozen=True)
class Dots:
    """A row of a figure: one dot for each seed, and what is drawn above them.

    Attributes:
        name: of the row.
        seeds: seed -> value; plus or minus infinity stands at that edge, as a cross.
        middle: a mark, such as the mean.
        wide: an interval drawn as a thick line.
        narrow: an interval drawn as a faint line.
        said: what is written after the name.
    """

    name: str
    seeds: Mapping[int, float]
    middle: float | None = None
    wide: tuple[float, float] | None = None
    narrow: tuple[float, float] | None = None
    said: str = ""

    def numbers(self) -> list[float]:
        """All that the row needs place for."""
        found = [*self.seeds.values(), *(self.wide or ()), *(self.narrow or ())]
        return found if self.middle is None else [*found, self.middle]


def dots(
    rows: Sequence[Dots],
    words: str,
    smallest: float | None = None,
    direction: str = "",
    success: float | None = None,
) -> str:
    """Rows of dots on one axis; with `smallest`, zero and the band from -D to D are marked, and the better side named;
    with `success`, that threshold is, and the band on its better side.

    words: what the figure shows, for those who do not see it.
    """
    marks = [*([] if smallest is None else [-smallest, 0.0, smallest]), *([] if success is None else [success])]
    scale = scale_of([*marks, *(value for row in rows for value in row.numbers())])
    bottom = 30 + ROW * len(rows)
    parts = [] if smallest is None else _zero(scale, smallest, bottom, direction)
    parts += [] if success is None else _threshold(scale, success, bottom, direction)
    for at, row in enumerate(rows):
        parts += _row(scale, row, 30 + ROW * at)
    known = bool(marks) or any(math.isfinite(value) for row in rows for value in row.numbers())
    return svg(parts + (_axis(scale, bottom) if known else []), bottom + 24, words)


def svg(parts: Sequence[str], height: int, words: str) -> str:
    """A figure as wide as the window, with its description."""
    described = f'role="img" aria-label="{safe(words)}"'
    return f'<svg class="figure" width="100%" height="{height}" {described}>\n{chr(10).join(parts)}\n</svg>'


def line(kind: str, x1: str, x2: str, y1: float, y2: float) -> str:
    """A line by its ends."""
    return f'<line class="{kind}" x1="{x1}" x2="{x2}" y1="{y1:g}" y2="{y2:g}"/>'


def text(x: str, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    return f'<text class="{kind}" x="{x}" y="{y:g}" text-anchor="{anchor}">{safe(words)}</text>'


def _short(name: str, most: int) -> str:
    """A name that is too long for its place, without its end; the tables have all of it."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _zero(scale: Scale, smallest: float, bottom: int, direction: str) -> list[str]:
    left, right = scale(-smallest), scale(smallest)
    wide = float(right[:-1]) - float(left[:-1])
    parts = [_shade(left, right, bottom)]
    parts += [line("edge", at, at, 20, bottom) for at in (left, right)] + [line("zero", scale(0), scale(0), 20, bottom)]
    if wide < 24:  # percent, below which three labels would touch in a narrow window
        parts.append(text(scale(0), 14, "0 ± D", "label"))
    else:
        parts += [text(scale(at), 14, name, "label") for at, name in ((-smallest, "-D"), (0, "0"), (smallest, "D"))]
    sides = ("better", "worse") if direction == "lower" else ("worse", "better")
    if float(left[:-1]) > 20:
        parts.append(text("1%", 14, f"← {sides[0]}", "label", "start"))
    if float(right[:-1]) < 80:
        parts.append(text("99%", 14, f"{sides[1]} →", "label", "end"))
    return parts


def _threshold(scale: Scale, success: float, bottom: int, direction: str) -> list[str]:
    at, told = scale(success), f"success: {'at most' if direction == 'lower' else 'at least'} {number(success)}"
    sides = ("1%", at) if direction == "lower" else (at, "99%")
    anchor = "end" if float(at[:-1]) > 50 else "start"  # within the figure, wherever the line stands
    return [_shade(*sides, bottom), line("edge", at, at, 20, bottom), text(at, 14, told, "label", anchor)]


def _shade(left: str, right: str, bottom: int) -> str:
    wide = float(right[:-1]) - float(left[:-1])
    return f'<rect class="band" x="{left}" y="20" width="{wide:.3f}%" height="{bottom - 20}"/>'


def _row(scale: Scale, row: Dots, top: int) -> list[str]:
    parts = [text("1%", top + 13, _short(row.name, 18) + row.said, "name", "start")]
    if row.narrow is not None:
        parts.append(line("narrow", scale(row.narrow[0]), scale(row.narrow[1]), top + 27, top + 27))
    if row.wide is not None:
        low, high = scale(row.wide[0]), scale(row.wide[1])
        parts.append(line("wide", low, high, top + 27, top + 27))
        parts += [line("wide", at, at, top + 21, top + 33) for at in (low, high)]
    if row.middle is not None:
        parts.append(line("middle", scale(row.middle), scale(row.middle), top + 19, top + 35))
    y = top + (27 if row.narrow is None else 47)
    circles, tips = "", {seed: f"<title>seed {seed}: {number(value, 6)}</title>" for seed, value in row.seeds.items()}
    for seed, value in row.seeds.items():
        if math.isfinite(value):
            circles += f'<circle cx="{scale(value)}" r="4">{tips[seed]}</circle>'
        else:
            parts.append(text(scale(value), y + 4, "✕", "failed").replace("</text>", f"{tips[seed]}</text>"))
    parts.append(f'<g class="seed" transform="translate(0 {y})">{circles}</g>')
    counts = Counter(map(scale, row.seeds.values()))  # seeds at one place look like one
    parts += [_count(at, y + 4, count) for at, count in counts.items() if count > 1]
    if failed := [seed for seed, value in row.seeds.items() if not math.isfinite(value)]:
        parts.append(text("99%", top + 13, f"✕ failed: {len(failed)} of {len(row.seeds)}", "failed", "end"))
    return parts


def _count(x: str, y: float, count: int) -> str:
    """How many seeds stand at one place, beside it and within the figure."""
    anchor, apart = ("end", -7) if float(x[:-1]) > 50 else ("start", 7)
    return text(x, y, f"×{count}", "tick", anchor).replace("<text", f'<text dx="{apart}"')


def _axis(scale: Scale, y: int) -> list[str]:
    parts = [line("axis", "1%", "99%", y, y)]
    for tick, told in scale.ticks():
        parts += [line("axis", scale(tick), scale(tick), y, y + 4), text(scale(tick), y + 17, told, "tick")]
    return parts


def curves(pair: Sequence[tuple[str, Curve]], words: str, most: int) -> str:
    """The seeds' median of each arm over the steps, in a band from the least to the largest seed.

    The first is drawn dashed, as the one that the others are compared with. most: points of a curve.
    """
    laid = [_band(curve, most) for _, curve in pair]
    across = scale_of(step for steps, _ in laid for step in steps)
    up = scale_of(value for _, lines_3S in laid for value in lines_3S.ravel())
    height, low, high, span = 260, 24, 230, up.most - up.least
    parts, drawn = [], []
    for tick, told in up.ticks():
        y = high - (tick - up.least) / span * (high - low)
        parts += [line("grid", "0%", "100%", y, y), text("0.5%", y - 3, told, "tick", "start")]
    for at, (steps, lines_3S) in enumerate(laid):
        x_S = [1000 * (step - across.least) / (across.most - across.least) for step in steps]
        y_3S = 1000 * (up.most - lines_3S) / span
        edge = _points([*x_S, *x_S[::-1]], [*y_3S[0], *y_3S[2][::-1]])
        drawn.append(f'<polygon class="spread arm{at}" points="{edge}"/>')
        drawn.append(f'<polyline class="curve arm{at}" points="{_points(x_S, list(y_3S[1]))}"/>')
    box = f'x="4%" width="92%" y="{low}" height="{high - low}" viewBox="0 0 1000 1000" preserveAspectRatio="none"'
    parts.append(f"<svg {box}>{''.join(drawn)}</svg>")
    for at, (name, _) in enumerate(pair):
        x = f"{4 + 92 * at / len(pair):g}%"
        parts += [line(f"curve arm{at}", x, f"{float(x[:-1]) + 5:g}%", 11, 11)]
        parts.append(text(f"{float(x[:-1]) + 6:g}%", 15, _short(name, 56 // len(pair)), "name", "start"))
    return svg(parts + _axis(across, high), height, words)


def _band(curve: Curve, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(S,) steps and (3, S) least, median and largest of the seeds that are finite there, thinned to `most` steps."""
    steps_S, values_NS = np.asarray(curve.steps, float), np.asarray(curve.values, float).reshape(-1, len(curve.steps))
    kept = np.isfinite(values_NS).any(0)
    steps_S, values_NS = steps_S[kept], np.where(np.isfinite(values_NS), values_NS, np.nan)[:, kept]
    if not len(steps_S):
        return np.zeros(1), np.zeros((3, 1))
    at = np.unique(np.linspace(0, len(steps_S) - 1, min(most, len(steps_S))).round().astype(int))
    return steps_S[at], np.nanquantile(values_NS[:, at], [0, 0.5, 1], axis=0)


def _points(x: Sequence[float], y: Sequence[float]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
