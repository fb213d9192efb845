"""Whether a model looks at what it should: how much of a map is inside of the spans that are meant to matter."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eval.explain.files.reading import lines_of
from eval.explain.files.result import Result
from eval.explain.methods.occlusion import without
from eval.explain.methods.table import Asked
from eval.explain.targets import places
from eval.explain.words import Span, offsets, parsed, tokens_of
from model.errors import UserError
from train.data import Tokenizer


class Intended(NamedTuple):
    """Of one input: the share of each map, of its numbers without their signs, inside of the spans; the probability of
    the answer, that with only the spans left, and that without them. Marks, which are no text, are always left.
    """

    shares: dict[str, float]
    probability: float
    alone: float
    without: float


def read_spans(path: str, count: int) -> list[list[Span]]:
    """The spans of each input: a line such as `0:5,9:12` for each, characters from the first up to the last.

    Raises:
        UserError: the file cannot be read, or has not a line for each input.
    """
    lines = lines_of("intended", path)
    if len(lines) != count:
        raise UserError(f"--intended={path} has {len(lines)} lines of spans for {count} inputs; give each.")
    return [parsed(line, "intended") for line in lines]


class Meant(NamedTuple):
    """Which tokens of a site are inside of the spans, and which text is outside of them, (B, n)."""

    site: str
    inside_Bn: np.ndarray
    outside_Bn: np.ndarray


def meant(
    tokenizer: Tokenizer, tokens: Mapping[str, Sequence[Sequence[int]]], spans: Sequence[Sequence[Span]]
) -> Meant:
    """The tokens of the spans of each input's text, or source.

    Raises:
        UserError: a span that is not within its text.
    """
    site = next(one for one in ("encoder.embedding", "embedding") if one in tokens)
    inside_Bn, outside_Bn = (np.zeros((len(spans), max(map(len, tokens[site]))), bool) for _ in range(2))
    for row, (some, ids) in enumerate(zip(spans, tokens[site], strict=True)):
        placed = offsets(tokenizer, ids)
        for group in tokens_of(some, tokenizer.decode(ids), placed):
            inside_Bn[row, group] = True
        outside_Bn[row, : len(ids)] = [start < stop for start, stop in placed]
    return Meant(site, inside_Bn, outside_Bn & ~inside_Bn)


def intended(asked: Asked, given: Meant, maps: Mapping[str, Sequence[Result]]) -> list[Intended]:
    """What is known of each input, of which `maps` are."""
    (site, inside_Bn, outside_Bn), B = given, len(given.inside_Bn)
    sizes = {name: x.shape[1] for name, x in sorted(places(asked.inputs).items())}
    taken_B3n = np.stack([np.zeros_like(inside_Bn), outside_Bn, inside_Bn], axis=1)
    taken_B3n = np.pad(taken_B3n, ((0, 0), (0, 0), (0, sizes[site] - inside_Bn.shape[1])))  # rows that end in padding
    whole = [taken_B3n if name == site else np.zeros((B, 3, size), bool) for name, size in sizes.items()]
    said_B3 = without(*asked, np.concatenate(whole, axis=2), "probability")
    found = []
    for row in range(B):
        shares = {name: _share(some[row].values, site, inside_Bn[row]) for name, some in maps.items()}
        found.append(Intended(shares, *map(float, said_B3[row])))
    return found


def told(found: Sequence[Intended], faithful: Sequence[str]) -> str:
    """What is known of each input, of the maps by these methods."""
    lines = []
    for row, one in enumerate(found, 1):
        lines.append(
            f"input {row}, what is intended: probability {one.probability:.4g}, with nothing else {one.alone:.4g}, "
            f"without it {one.without:.4g}"
        )
        shares = [f"  {name}  {share:.0%} inside" for name, share in one.shares.items() if name in faithful]
        lines += shares or ["  of no map that was asked for it is known that it is faithful here"]
    return "\n".join(lines)


def _share(values: Mapping[str, np.ndarray], site: str, inside_n: np.ndarray) -> float:
    whole = sum(float(np.abs(x).sum()) for x in values.values())
    return float(np.abs(values[site])[inside_n[: len(values[site])]].sum()) / whole if whole else 0.0
