"""Tokenizers: every text comes back, no text holds an end, and the same text trains the same BPE."""

import itertools
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import UserError
from tests.tiny import end, start
from train.data import ByteTokenizer, Tokenizer, bpe, load_tokenizer
from train.data.tokenizers import CALL, LONGEST, PART, parts
from train.data.training import cached_bpe, train_bpe

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


def unbroken(letters: str, length: int) -> str:
    return "".join(random.Random(0).choices(letters, k=length))


@pytest.mark.parametrize(
    "text",
    [unbroken("abcdefghij", 10**6), unbroken("語äß", 10**5), "\0" * 11_000_000, " " * 10**5, unbroken("\n \t#", 10**5)],
    ids=["letters", "語", "zeros", "spaces", "blank lines"],
)
def test_text_without_breaks_trains_in_seconds_and_comes_back(text: str) -> None:
    """Without cuts a million letters take minutes, and from ten million signs on the library panics."""
    began = time.process_time()
    tokenizer = train_bpe([text], 400)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.process_time() - began < 60


def test_parts_are_short_stretches_and_nothing_is_lost() -> None:
    text = "ab " * PART + "x" * (3 * LONGEST + 7) + "12" * LONGEST + "--- " * 700 + "end"
    cut = parts(text)
    assert "".join(cut) == text
    assert max(map(len, cut)) < 2 * PART
    longest = re.compile(rf"[^\W\d_]{{{2 * LONGEST}}}|[\W_]{{{2 * LONGEST}}}")
    assert longest.search(text)
    assert not any(map(longest.search, cut))
    assert parts("") == []
    lengths = [len(part) for part in parts("x" * 10 * LONGEST)]
    assert set(lengths) == {LONGEST}
    assert parts("1" * 10 * LONGEST) == ["1" * 10 * LONGEST]  # digits are cut by threes anyway


@pytest.mark.parametrize("length", [PART + 11, pytest.param(CALL + 7, marks=pytest.mark.rest)])
def test_cutting_at_breaks_changes_no_token(length: int) -> None:
    """Against the library itself, on text of every kind of piece."""
    drawn = random.Random(1)
    words = [
        "def ",
        "x",
        " y",
        "12345",
        "\n\n    ",
        "\t",
        " = ",
        "# Grüße, 世界",
        "--",
        "...\r\n",
        "²½ ",
        "\x1c",
        "e\u0301 ",
        "\u2028",
    ]
    text = "".join(drawn.choices(words, k=length // 2))
    tokenizer = train_bpe([text], 307)
    assert len(parts(text)) >= 2
    assert tokenizer.encode(text) == tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
    several = ["", text[:11], "", text, "a"]
    for ids, one in zip(tokenizer.encode_batch(several), several, strict=True):
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids) == one


def test_whoever_waits_for_training_may_end_it() -> None:
    class EnoughError(Exception):
        pass

    def enough() -> None:
        raise EnoughError

    began = time.monotonic()
    with pytest.raises(EnoughError):
        train_bpe([unbroken("abcdefghij ", 10**6)] * 100, 400, enough)
    with pytest.raises(EnoughError):
        TOKENIZERS["bpe"].encode_batch(["abcdefghij " * 10**7], enough)
    assert time.monotonic() - began < 5  # most of it makes these texts


def test_a_process_that_cannot_train_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = tmp_path / "ends.py"
    ends.write_text("import os; os.kill(os.getpid(), 9)")  # as the kernel does where memory is short
    monkeypatch.setattr(bpe, "__file__", str(ends))
    with pytest.raises(UserError, match="ended with status -9"):
        train_bpe([unbroken("abcdefghij ", 10**6)] * 3, 400)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_is_heard_by_who_waits(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler ends every process of a job; and the text that comes back is UTF-8, whatever the language is."""
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    monkeypatch.setenv("PYTHONUTF8", "0")
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    calls = itertools.count()

    def signalled() -> None:
        if next(calls) == 2:  # it has read two lines, or will, and listens
            time.sleep(0.5)
            started[0].send_signal(number)

    assert train_bpe(TEXTS, 307, signalled).fingerprint == TOKENIZERS["bpe"].fingerprint
    assert next(calls) > 2


TRAINING = """
import random, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts behind an & ignores it
from train.data.training import train_bpe
words = ["".join(random.choices("abcdefghijklmnop", k=7)) for _ in range(10**5)]
text = " ".join(random.choices(words, k=6 * 10**6))
print("training", flush=True)
try:
    train_bpe([text], 4096)
except KeyboardInterrupt:
    print(time.monotonic(), flush=True)
"""


@pytest.mark.rest
@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_training_is_interrupted_at_once(seconds: float) -> None:
    """The library alone answers a minute later."""
    process = start("-c", TRAINING)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    time.sleep(seconds)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    outcome = end(process)
    assert (outcome.status, outcome.err) == (0, "")
    assert float(outcome.out) - sent < 2


def test_a_process_that_is_asked_for_nothing_says_nothing() -> None:
    """As where a second Ctrl-C has ended whoever began it before it could say what for."""
    done = subprocess.run([sys.executable, "-P", bpe.__file__], input=b"", capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
