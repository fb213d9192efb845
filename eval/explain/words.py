"""What words and other spans of a text count for: the sums of their pieces."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from model.errors import UserError
from train.data import Tokenizer

Span = tuple[int, int]  # characters of a text, from the first on, up to and without the last
_WORD = re.compile(r"\w+|[^\w\s]+")


def offsets(tokenizer: Tokenizer, tokens: Iterable[int], text: str | None = None) -> list[Span]:
    """Which characters of a text each token stands for; one that is a part of a character stands for it, one of no text
    for none. Without a text they are of what all tokens spell.

    Raises:
        UserError: the tokens do not spell the text.
    """
    data = [tokenizer.token_bytes(token) for token in tokens]
    whole = b"".join(data)
    first = whole.find(whole if text is None else text.encode())
    if first < 0:
        raise UserError("the tokens do not spell the text letter by letter, so spans of it are not known; leave them.")
    starts = [at for at, byte in enumerate(whole[first:]) if byte & 0xC0 != 0x80]  # of characters, in bytes
    size = len(starts) if text is None else len(text)
    found = []
    for start, stop in itertools.pairwise(np.cumsum([0, *map(len, data)]) - first):
        a, c = np.searchsorted(starts, start, "right") - 1, np.searchsorted(starts, stop, "left")
        span = (min(max(int(a), 0), size), min(int(c), size))
        found.append(span if stop > max(start, 0) else (span[1], span[1]))
    return found


def words(text: str) -> list[Span]:
    """The words of a text: what has no blank in it, letters and other signs apart."""
    return [found.span() for found in _WORD.finditer(text)]


def tokens_of(spans: Sequence[Span], text: str, placed: Sequence[Span]) -> list[list[int]]:
    """The tokens of each span, whose characters are `placed`: a token is of the span with which it shares most, blanks
    aside unless it has nothing else; of none if it shares nothing.

    Raises:
        UserError: a span that is not within the text.
    """
    for start, stop in spans:
        if not 0 <= start < stop <= len(text):
            raise UserError(
                f"the span {start}:{stop} is not within the text, which has {len(text)} characters; take one that is."
            )
    found: list[list[int]] = [[] for _ in spans]
    for token, (start, stop) in enumerate(placed):
        own = {at for at in range(start, stop) if not text[at].isspace()} or set(range(start, stop))
        shared = [len(own & set(range(*span))) for span in spans]
        if any(shared):
            found[int(np.argmax(shared))].append(token)
    return found


def with_rest(groups: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The same groups, and each of `count` tokens that is in none by itself, in the order of their first tokens."""
    known = {token for group in groups for token in group}
    return sorted([*(list(one) for one in groups if one), *([one] for one in range(count) if one not in known)])


def summed(values_n: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """The sum of each group's values, with their signs."""
    return np.array([values_n[list(group)].sum() for group in groups])


def parsed(text: str, flag: str = "spans") -> list[Span]:
    """`0:5,9:12` as spans.

    Raises:
        UserError: it is none, or two of them overlap: a token is of one.
    """
    try:
        found = [(int(start), int(stop)) for start, stop in (one.split(":") for one in text.split(","))]
    except ValueError:
        raise UserError(f"--{flag}: {text!r} must be as 0:5,9:12, characters from the first up to the last.") from None
    for (_, stop), (start, _) in itertools.pairwise(sorted(found)):
        if start < stop:
            raise UserError(f"--{flag}: in {text} two spans have characters together; give one of them at a time.")
    return found


def grouped(
    tokenizer: Tokenizer, tokens: Mapping[str, Sequence[Sequence[int]]], spans: Sequence[Span], by_word: bool
) -> list[dict[str, list[list[int]]]]:
    """The tokens of each span (of the text, or the source), or of each word, or each token by itself: of each row, by
    the site of their vectors.

    Raises:
        UserError: a span that is not within a text.
    """
    found: list[dict[str, list[list[int]]]] = [{} for _ in next(iter(tokens.values()))]
    for site, rows in tokens.items():
        for groups, row in zip(found, rows, strict=True):
            text, placed = tokenizer.decode(row), offsets(tokenizer, row)
            own = site != "decoder.embedding"
            if spans:
                groups[site] = tokens_of(spans, text, placed) if own else []
            else:
                groups[site] = with_rest(tokens_of(words(text), text, placed) if by_word else [], len(row))
    return found
