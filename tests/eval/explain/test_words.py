"""Words and spans of texts, and the tokens that are theirs."""

import numpy as np
import pytest

from eval.explain.words import grouped, offsets, summed, tokens_of, with_rest, words
from model.errors import UserError
from train.data.tokenizers import ByteTokenizer, Tokenizer
from train.data.training import train_bpe

TEXT = "def  naïve_é(x): 🙂\n"


class Pieces(Tokenizer):
    """A tokenizer of given pieces."""

    def __init__(self, *parts: bytes) -> None:
        super().__init__([*parts, b""], end=len(parts), fingerprint="pieces", marks=("mask",))


def test_tokens_stand_for_their_characters() -> None:
    tokenizer = Pieces(b"a\xc3", b"\xa9", b" b", "🙂".encode()[:1], "🙂".encode()[1:] + b"c")
    tokens = [tokenizer.end, 0, 1, tokenizer.marks["mask"], 2, 3, 4]
    assert offsets(tokenizer, tokens, "aé b🙂c") == [(0, 0), (0, 2), (1, 2), (2, 2), (2, 4), (4, 5), (4, 6)]
    assert offsets(tokenizer, tokens) == offsets(tokenizer, tokens, "aé b🙂c")
    assert offsets(tokenizer, [2, 0, 1], "baé") == [(0, 1), (1, 3), (2, 3)]  # behind a blank that is not the text's
    with pytest.raises(UserError, match="do not spell the text"):
        offsets(tokenizer, tokens, "ab")


def test_bytes_find_their_characters() -> None:
    placed = offsets(ByteTokenizer(), TEXT.encode(), TEXT)
    assert placed == [(at, at + 1) for at, letter in enumerate(TEXT) for _ in letter.encode()]


def test_words_are_sums_of_their_pieces() -> None:
    tokenizer = Pieces(b"de", b"f", b" ", b" na", "ïve_".encode(), "é(".encode(), b"x", b"): ", "🙂".encode(), b"\n")
    tokens = [tokenizer.end, *range(10)]
    placed = offsets(tokenizer, tokens, TEXT)
    groups = tokens_of(words(TEXT), TEXT, placed)
    assert [TEXT[slice(*span)] for span in words(TEXT)] == ["def", "naïve_é", "(", "x", "):", "🙂"]
    assert groups == [[1, 2], [4, 5, 6], [], [7], [8], [9]]
    whole = with_rest(groups, len(tokens))
    assert whole == [[0], [1, 2], [3], [4, 5, 6], [7], [8], [9], [10]]
    values_n = np.random.default_rng(0).standard_normal(11)
    sums = summed(values_n, whole)
    assert sums[3] == pytest.approx(values_n[4] + values_n[5] + values_n[6])
    assert sums.sum() == pytest.approx(values_n.sum())


def test_spans_are_within_the_text() -> None:
    placed = offsets(ByteTokenizer(), TEXT.encode(), TEXT)
    assert tokens_of([(4, 6)], TEXT, placed) == [[4, 5]]
    for span in ((-1, 2), (3, 3), (4, 2), (0, len(TEXT) + 1)):
        with pytest.raises(UserError, match="not within the text, which has 19 characters"):
            tokens_of([span], TEXT, placed)


def test_groups_are_of_each_row_and_spans_of_the_source_alone() -> None:
    tokenizer = ByteTokenizer(("start",))
    end, start = tokenizer.end, tokenizer.marks["start"]
    sources, written = [[*b"ab c", end], [*b"de", end]], [[start, *b"x y"], [start]]
    tokens = {"decoder.embedding": written, "encoder.embedding": sources}
    spans = grouped(tokenizer, tokens, [(0, 1)], by_word=False)
    assert spans == [{"decoder.embedding": [], "encoder.embedding": [[0]]}] * 2
    assert grouped(tokenizer, {"embedding": sources}, [(0, 2)], by_word=False) == [{"embedding": [[0, 1]]}] * 2
    assert grouped(tokenizer, tokens, [], by_word=True) == [
        {"decoder.embedding": [[0], [1], [2], [3]], "encoder.embedding": [[0, 1], [2], [3], [4]]},
        {"decoder.embedding": [[0]], "encoder.embedding": [[0, 1], [2]]},
    ]
    (alone, _) = grouped(tokenizer, tokens, [], by_word=False)
    assert alone == {"decoder.embedding": [[0], [1], [2], [3]], "encoder.embedding": [[0], [1], [2], [3], [4]]}


def test_bpe_loses_no_character() -> None:
    tokenizer = train_bpe([TEXT * 7], 300)
    tokens = tokenizer.encode(TEXT)
    covered = {at for span in offsets(tokenizer, tokens, TEXT) for at in range(*span)}
    assert covered == set(range(len(TEXT)))
