"""Tokenizers: every text comes back, no text holds an end, and the same text trains the same BPE."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import UserError
from train.data import ByteTokenizer, Tokenizer, load_tokenizer
from train.data.tokenizers import cached_bpe, train_bpe

TEXTS = ['def main(argv):\n    """Says: Grüße, 世界 🙂."""\n\n    return [1234, "x" * 7]\n', "class A:\n\tpass\r\n"] * 3
TOKENIZERS = {"bytes": ByteTokenizer(), "bpe": train_bpe(TEXTS, 307)}
every_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@every_tokenizer
@given(st.text())
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.end not in ids


@every_tokenizer
@pytest.mark.parametrize(
    "text",
    ["", " ", " a", "\n\n\n", "<|endoftext|>", "[UNK]", "\0\x1f\x7f", "e\u0301 \u00e9", "\ufeffa", "a\r\nb\u2028"],
)
def test_awkward_texts_come_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@every_tokenizer
def test_ids_stand_for_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(tokenizer.end) == b""
    assert tokenizer.decode([tokenizer.end, *tokenizer.encode("a"), tokenizer.end]) == "a"
    euro = [
        i for byte in "€".encode() for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == bytes([byte])
    ]
    assert tokenizer.decode(euro) == "€"
    assert tokenizer.decode(euro[:2]) == "\ufffd"  # half a character
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(KeyError):
            tokenizer.token_bytes(outside)


@every_tokenizer
def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"'\\ud83d' at position 2"):
        tokenizer.encode("ab\ud83d")


@every_tokenizer
def test_a_saved_tokenizer_is_the_tokenizer(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert vars(loaded).keys() == vars(tokenizer).keys()
    assert (loaded.fingerprint, loaded.vocab_size, loaded.end) == (
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        tokenizer.end,
    )
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])


def test_the_byte_tokenizer_is_utf8() -> None:
    tokenizer = TOKENIZERS["bytes"]
    assert tokenizer.encode("aß") == [97, 195, 159]
    assert (tokenizer.vocab_size, tokenizer.end) == (256, 255)


def test_bpe_holds_all_bytes_and_joins_what_is_frequent() -> None:
    tokenizer = TOKENIZERS["bpe"]
    pieces = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([i]) for i in range(256)} < pieces
    assert (tokenizer.vocab_size, tokenizer.end) == (307, 306)
    code = train_bpe(["if a:\n    b\n", "else:\n    c\n"] * 3, 270)
    assert b":\n    " in map(code.token_bytes, range(270))  # a line's end and the indentation after it are one
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode())


def test_bpe_training_is_deterministic_and_follows_the_text() -> None:
    assert train_bpe(TEXTS, 307).fingerprint == TOKENIZERS["bpe"].fingerprint
    assert train_bpe(TEXTS, 306).fingerprint != TOKENIZERS["bpe"].fingerprint
    assert train_bpe(["ab" * 9], 307).vocab_size < 307  # no more pairs to join: no ids without bytes


def test_bpe_is_trained_once_per_fingerprint(tmp_path) -> None:
    first = cached_bpe(TEXTS, 307, "one", tmp_path)
    assert cached_bpe([], 307, "one", tmp_path).fingerprint == first.fingerprint
    assert cached_bpe([], 307, "two", tmp_path).vocab_size == 257
    assert cached_bpe(TEXTS, 300, "one", tmp_path).vocab_size == 300
