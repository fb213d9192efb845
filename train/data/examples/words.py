"""Tokens of words and signs, each with the characters that it stands for; spaces are no tokens."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from train.data.examples.types import Labelled, Pair, Question, Tagged, asked
from train.data.tokenizers import Tokenizer

_WORD = re.compile(r"\w+|[^\w\s]")


class PlacedTokens(NamedTuple):
    """Tokens of a text (n,): token i holds some or all of the characters from starts[i] to stops[i]."""

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def within(self, start: int, stop: int) -> tuple[int, int]:
        """Returns the first and the last token that hold anything of these characters, of which one is no space."""
        first = np.searchsorted(self.stops, start, side="right")
        return int(first), int(np.searchsorted(self.starts, stop, side="left")) - 1


def placed_tokens(texts: Sequence[str], tokenizer: Tokenizer) -> list[PlacedTokens]:
    """Returns the tokens of each text, whose words and signs are encoded one by one.

    So a word has the same tokens wherever it stands, and an answer that ends with a word ends with a token.
    """
    found = [[(word[0], word.start()) for word in _WORD.finditer(text)] for text in texts]
    distinct = [*dict.fromkeys(word for words in found for word, _ in words)]
    encoded = zip(distinct, tokenizer.encode_batch(distinct), strict=True)
    known = {word: _placed(word, ids, tokenizer) for word, ids in encoded}
    empty = PlacedTokens(*3 * [np.zeros(0, np.int64)])
    return [_joined([(known[word], start) for word, start in words] or [(empty, 0)]) for words in found]


def as_words(example: Labelled | Tagged | Question | Pair) -> Iterator[str]:
    """Yields the texts of an example with a word or sign on each line: what a tokenizer of `placed_tokens` learns."""
    return ("\n".join(_WORD.findall(text)) for text in asked(example))


def _placed(word: str, ids: np.ndarray, tokenizer: Tokenizer) -> PlacedTokens:
    """The tokens of one word, which are bytes: one may begin or end within a character."""
    ends = np.cumsum([len(tokenizer.token_bytes(one)) for one in ids])
    character_of = np.repeat(np.arange(len(word)), [len(letter.encode()) for letter in word])
    return PlacedTokens(ids, character_of[np.r_[0, ends[:-1]]], character_of[ends - 1] + 1)


def _joined(words: Sequence[tuple[PlacedTokens, int]]) -> PlacedTokens:
    return PlacedTokens(
        np.concatenate([one.ids for one, _ in words]),
        np.concatenate([one.starts + at for one, at in words]),
        np.concatenate([one.stops + at for one, at in words]),
    )
