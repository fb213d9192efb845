import gzip
import lzma
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.baselines import keeping
from eval.baselines import text as module
from eval.baselines.text import baselines, compressor_bits_per_byte, known_baselines, ngram_bits_per_byte
from model.errors import UserError


def ngrams(train: list[str], validation: list[str], max_context: int = 4) -> dict[int, float]:
    parts = [module._first(documents, None) for documents in (train, validation)]
    return ngram_bits_per_byte(*parts[0], *parts[1], max_context)


def test_a_text_worked_by_hand() -> None:
    # Train: E a b E, targets a, b, E. Validation: E a a E, targets a, a, E.
    # Context 0: n = 3, so each seen symbol has (1 + 5/256) / 8.
    p0 = (1 + 5 / 256) / 8
    # Context 1: (E) was followed by a once: (1 + 5 p0) / 6. (a) was followed by b once: a and E have 5 p0 / 6.
    p1 = [(1 + 5 * p0) / 6, 5 * p0 / 6, 5 * p0 / 6]
    # Context 2: the first target has no more than (E). (E, a) was followed by b once. (a, a) was never seen.
    p2 = [p1[0], 5 * p1[1] / 6, p1[2]]
    expected = {0: -3 * math.log2(p0) / 2, 1: -sum(map(math.log2, p1)) / 2, 2: -sum(map(math.log2, p2)) / 2}
    assert ngrams(["ab"], ["aa"], 2) == pytest.approx(expected, rel=1e-12)


def slow(train: list[str], validation: list[str], context: int) -> float:
    """The same model as dictionaries, one symbol at a time."""

    def events(documents: list[str]) -> list[tuple[bytes, int]]:
        """Each target with all that stands before it in its document, the opening E included."""
        closed = [b"\xff" + text.encode() + b"\xff" for text in documents]
        return [(text[:at], text[at]) for text in closed for at in range(1, len(text))]

    counts: Counter[tuple[bytes, int]] = Counter()
    for before, target in events(train):
        counts.update((before[len(before) - c :], target) for c in range(min(context, len(before)) + 1))
    totals: Counter[bytes] = Counter()
    for (before, _), count in counts.items():
        totals[before] += count

    def probability(before: bytes, target: int, c: int) -> float:
        if c < 0:
            return 1 / 256
        shorter = probability(before, target, c - 1)
        if c > len(before):
            return shorter
        seen = before[len(before) - c :]
        return (counts[seen, target] + 5 * shorter) / (totals[seen] + 5)

    bits = -sum(math.log2(probability(before, target, context)) for before, target in events(validation))
    return bits / sum(len(text.encode()) for text in validation)


DOCUMENTS = st.lists(st.text(alphabet="abé\n", max_size=7), min_size=1, max_size=5)


@given(train=DOCUMENTS, validation=DOCUMENTS.filter(any))
def test_equals_the_slow_model(train: list[str], validation: list[str]) -> None:
    expected = {context: slow(train, validation, context) for context in range(5)}
    assert ngrams(train, validation) == pytest.approx(expected, rel=1e-10)


def test_compressors_measure_the_text_alone() -> None:
    words = np.random.default_rng(3).integers(0, 1009, 20011)
    text = b" ".join(b"word%d" % word for word in words)
    assert len(gzip.compress(text, 9)) != len(gzip.compress(text, 6))
    bits = compressor_bits_per_byte(text)
    sizes = {"gzip": len(gzip.compress(text, compresslevel=9)), "xz": len(lzma.compress(text, preset=9))}
    assert bits == {name: 8 * size / len(text) for name, size in sizes.items()}


def test_all_of_a_dataset(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    documents = {"train": ["abba", "abab", "bbb"], "validation": ["ab", "ba"]}
    data = SimpleNamespace(documents=documents.__getitem__)
    found = baselines(data)
    assert {f"ngram_{context}": bits for context, bits in ngrams(*documents.values()).items()}.items() <= found.items()
    assert found.keys() == {*(f"ngram_{c}" for c in range(5)), "gzip", "xz", "train_bytes"}
    assert found["train_bytes"] == 11
    assert caplog.messages == []
    monkeypatch.setattr(module, "MAX_TRAIN_BYTES", 5)  # the third document begins beyond it
    assert baselines(data)["ngram_2"] == ngrams(documents["train"][:2], documents["validation"])[2]
    assert caplog.messages == ["the n-gram baselines count the first 8 bytes of the train split"]


def test_are_computed_once_for_each_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(keeping, "cache_folder", lambda: tmp_path / "cache")
    read: list[str] = []

    def documents(split: str) -> list[str]:
        read.append(split)
        return ["ab", "ba"]

    first = known_baselines(SimpleNamespace(documents=documents, fingerprint="1" * 64))
    assert known_baselines(SimpleNamespace(documents=documents, fingerprint="1" * 64)) == first
    assert len(read) == 2
    known_baselines(SimpleNamespace(documents=documents, fingerprint="2" * 64))
    assert len(read) == 4


def test_refusals() -> None:
    one = b"a", np.array([0, 1])
    with pytest.raises(UserError, match=r"no text.*--config.data.validation_split"):
        ngram_bits_per_byte(*one, b"", np.array([0]))
    with pytest.raises(ValueError, match="0xFF"):
        ngram_bits_per_byte(b"\xff", np.array([0, 1]), *one)
    with pytest.raises(ValueError, match="at most 7"):
        ngram_bits_per_byte(*one, *one, max_context=8)
