"""Tokens of words know their characters: any answer comes back letter by letter, whatever bytes its letters have."""

import itertools
import re
from pathlib import Path

import numpy as np

from train.data import ByteTokenizer, Tokenizer
from train.data.examples import Question
from train.data.examples.words import as_words, placed_tokens
from train.data.training import cached_bpe

TEXTS = [
    "def f(größe=None, naïve='ß€😀'):",
    "  begins with spaces,\n\tand\u3000ends with one ",
    "x",
    "",
    " \n ",
    "日本語 の text—with “signs” 😀😀",
    "e\u0301 combined",
]


def tokenizers(folder: Path) -> list[Tokenizer]:
    learned = cached_bpe(("\n".join([text, *TEXTS]) for text in TEXTS), 300, "f", folder)
    return [ByteTokenizer(["start"]), learned]


def test_every_run_of_words_comes_back(tmp_path: Path) -> None:
    for tokenizer in tokenizers(tmp_path):
        for text, found in zip(TEXTS, placed_tokens(TEXTS, tokenizer), strict=True):
            assert tokenizer.decode(found.ids) == re.sub(r"\s", "", text)
            edges = [0, *(at for at in range(1, len(text)) if not text[at - 1 : at + 1].isalnum()), len(text)]
            for start, stop in itertools.combinations(edges, 2):
                if text[start:stop].strip():
                    first, last = found.within(start, stop)
                    assert 0 <= first <= last < len(found.ids)
                    assert text[found.starts[first] : found.stops[last]] == text[start:stop].strip()


def test_a_part_of_a_word_is_held_by_the_fewest_tokens(tmp_path: Path) -> None:
    text = "größer als 1990s 😀"
    for tokenizer in tokenizers(tmp_path):
        (found,) = placed_tokens([text], tokenizer)
        for start, stop in itertools.combinations(range(len(text) + 1), 2):
            if not text[start:stop].strip():
                continue
            first, last = found.within(start, stop)
            touched = [n for n in range(len(found.ids)) if found.starts[n] < stop and start < found.stops[n]]
            assert (first, last) == (touched[0], touched[-1])


def test_a_word_has_the_same_tokens_wherever_it_stands(tmp_path: Path) -> None:
    for tokenizer in tokenizers(tmp_path):
        places = placed_tokens(["word", "of a word ", "(word=word)"], tokenizer)
        for one in places:
            size = len(places[0].ids)
            windows = np.lib.stride_tricks.sliding_window_view(one.ids, size)
            assert (windows == places[0].ids).all(axis=1).any()


def test_spaces_are_no_tokens() -> None:
    spaces = 25_000
    (found,) = placed_tokens(["a" + " " * spaces + "\n?"], ByteTokenizer())
    assert found.ids.tolist() == [*b"a?"]
    assert found.starts.tolist() == [0, spaces + 2]


def test_a_tokenizer_learns_words_and_signs_alone() -> None:
    assert [*as_words(Question("what is x?", "f(x = -1)"))] == ["what\nis\nx\n?", "f\n(\nx\n=\n-\n1\n)"]
