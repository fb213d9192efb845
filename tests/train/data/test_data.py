"""Windows and batches: each token a target once, no window sees two documents as one, the order from (seed, number)."""

import itertools
import math
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import UserError
from train.data import ByteTokenizer, Windows, batches, eval_batches
from train.data.files import make_once
from train.data.order import shuffled
from train.data.windows import CHUNK, SomeWindows, tokenise

END = 255


def stream_of(documents: list[list[int]]) -> np.ndarray:
    return np.array([END, *itertools.chain.from_iterable([*document, END] for document in documents)], np.uint8)


def windows_of(documents: list[list[int]], length: int) -> Windows:
    return Windows(stream_of(documents), END, length, num_bytes=sum(map(len, documents)))


def numbered(num_windows: int) -> Windows:
    """Windows of one token each, whose first input is their own number (int32, so any number)."""
    return Windows(np.arange(num_windows + 1, dtype=np.int32), -1, 1, num_bytes=num_windows)


def numbers(batch: dict[str, np.ndarray]) -> list[int]:
    return batch["tokens"][:, 0].tolist()


def expected_rows(documents: list[list[int]], length: int) -> list[list[tuple[int, int, int, int, float]]]:
    """Walks the stream token by token: (token, target, segment, position, weight) for each place of each window."""
    stream = stream_of(documents).tolist()
    places, rows = list(itertools.pairwise(stream)), []
    for start in range(0, len(places), length):
        row, segment, position = [], 1, 0
        for token, target in places[start : start + length]:
            if token == END and row:
                segment, position = segment + 1, 0
            row.append((token, target, segment, position, 1.0))
            position += 1
        rows.append(row + [(END, END, 0, 0, 0.0)] * (length - len(row)))
    return rows


@given(st.lists(st.lists(st.integers(0, 6), max_size=11), min_size=1, max_size=7), st.integers(1, 13))
def test_windows_equal_a_walk_through_the_stream(documents: list[list[int]], length: int) -> None:
    windows = windows_of(documents, length)
    expected = expected_rows(documents, length)
    assert len(windows) == len(expected)
    for row, window in zip(expected, windows, strict=True):
        for want, got in zip(zip(*row, strict=True), window.values(), strict=True):
            assert got.tolist() == list(want)


def test_a_hand_made_window() -> None:
    first, second = windows_of([[1, 2, 3], [4]], length=5)
    assert list(first) == ["tokens", "targets", "segment_ids", "positions", "weights"]
    assert first["tokens"].tolist() == [END, 1, 2, 3, END]
    assert first["targets"].tolist() == [1, 2, 3, END, 4]
    assert first["segment_ids"].tolist() == [1, 1, 1, 1, 2]
    assert first["positions"].tolist() == [0, 1, 2, 3, 0]
    assert second["tokens"].tolist() == [4, END, END, END, END]
    assert second["targets"][:1].tolist() == [END]
    assert second["segment_ids"].tolist() == [1, 0, 0, 0, 0]
    assert second["weights"].tolist() == [1, 0, 0, 0, 0]
    dtypes = {name: array.dtype for name, array in first.items()}
    assert dtypes.pop("weights") == np.float32
    assert set(dtypes.values()) == {np.dtype(np.int32)}


def test_windows_count_and_refuse() -> None:
    windows = windows_of([[1, 2, 3], [4]], length=5)
    assert (windows.num_tokens, windows.num_bytes, windows.length) == (6, 4, 5)
    for outside in (2, -1):
        with pytest.raises(IndexError):
            windows[outside]


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_each_token_is_a_target_once_in_an_epoch(batch_size: int) -> None:
    documents = [[(7 * i + j) % 97 for j in range(i % 11)] for i in range(23)]
    windows = windows_of(documents, length=5)
    shuffled = itertools.islice(batches(windows, batch_size, seed=3), len(windows))  # batch_size whole epochs
    for iterator, epochs in ((shuffled, batch_size), (eval_batches(windows, batch_size), 1)):
        seen: Counter[int] = Counter()
        for batch in iterator:
            assert batch["tokens"].shape == (batch_size, 5)
            seen.update(batch["targets"][batch["weights"] == 1].tolist())
        assert seen == Counter({k: n * epochs for k, n in Counter(stream_of(documents)[1:].tolist()).items()})


def test_eval_batches_are_in_order_and_filled_up() -> None:
    first, second = eval_batches(numbered(5), 3)
    assert (numbers(first), numbers(second)[:2]) == ([0, 1, 2], [3, 4])
    assert second["weights"].ravel().tolist() == [1, 1, 0]
    assert second["segment_ids"].ravel().tolist() == [1, 1, 0]


def test_every_epoch_is_another_order_of_all_windows_and_batches_straddle_epochs() -> None:
    windows = numbered(101)
    stream = [n for batch in itertools.islice(batches(windows, 7, seed=0), 101) for n in numbers(batch)]
    epochs = [tuple(stream[i : i + 101]) for i in range(0, len(stream), 101)]
    assert len(epochs) == len(set(epochs)) == 7
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(range(101))}
    other = [n for batch in itertools.islice(batches(windows, 7, seed=1), 101) for n in numbers(batch)]
    others = {tuple(other[i : i + 101]) for i in range(0, len(other), 101)}
    assert others.isdisjoint(epochs)  # a seed is not another seed some epochs later


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 97, 2**16, 2**16 + 1])  # grain's own shuffle fails at the last
def test_every_epoch_is_a_permutation(length: int) -> None:
    orders = shuffled(np.arange(3 * length), length, seed=7).reshape(3, length)
    for order in orders:
        assert sorted(order.tolist()) == list(range(length))


@pytest.mark.parametrize("length", [3, 4])
def test_every_permutation_is_as_likely(length: int) -> None:
    orders = shuffled(np.arange(6000 * length), length, seed=7).reshape(6000, length)
    counts = Counter(map(tuple, orders.tolist()))
    expected = 6000 / math.factorial(length)
    chi_squared = sum((counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(length)))
    freedom = math.factorial(length) - 1
    assert chi_squared < freedom + 4 * math.sqrt(2 * freedom)


def test_the_shuffle_reaches_everywhere_and_keeps_no_neighbours() -> None:
    orders = shuffled(np.arange(2000 * 37), 37, seed=7).reshape(2000, 37)
    counts = np.zeros((37, 37))
    np.add.at(counts, (np.broadcast_to(np.arange(37), orders.shape), orders), 1)
    steps = np.bincount(np.diff(orders, axis=1).ravel() % 37, minlength=37)[1:]
    for seen, freedom in ((counts, 36 * 36), (steps, 35)):
        assert ((seen - seen.mean()) ** 2 / seen.mean()).sum() < freedom + 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("prefetch", [0, 8])
def test_a_resumed_stream_is_the_stream(prefetch: int) -> None:
    windows = windows_of([[i % 13] * (i % 17) for i in range(61)], length=7)
    whole = list(itertools.islice(batches(windows, 3, seed=11), 60))
    for start in (0, 1, 17, 59):
        resumed = batches(windows, 3, seed=11, start=start, prefetch=prefetch)
        for want, got in zip(whole[start:], resumed, strict=False):
            for name in want:
                np.testing.assert_array_equal(want[name], got[name])


def test_several_seeds_read_what_each_reads_alone() -> None:
    """Also from the middle, and the rows of one process."""
    windows, rows = numbered(19), np.array([1, 4])
    together = batches(windows, 5, seed=[7, 11, 8], start=3, rows=rows)
    alone = [batches(windows, 5, seed=seed, start=3, rows=rows) for seed in (7, 11, 8)]
    for _ in range(9):
        both, each = next(together), [next(one) for one in alone]
        for name, x_NBT in both.items():
            np.testing.assert_array_equal(x_NBT, np.stack([one[name] for one in each]), err_msg=name)


def test_resuming_far_away_reads_nothing_before() -> None:
    reads: list[int] = []

    class Watched(Windows):
        def rows(self, indices: object, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
            reads.append(len(list(indices)))
            return super().rows(indices, draws)

    windows = Watched(np.arange(102, dtype=np.int32), -1, 1, num_bytes=101)
    next(batches(windows, 7, seed=0, start=10**12, prefetch=0))
    assert reads == [7]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_any_number_of_processes_reads_the_same_global_batches(num_processes: int) -> None:
    windows, share = numbered(37), 8 // num_processes
    rows = [range(p * share, (p + 1) * share) for p in range(num_processes)]
    for read in (lambda rows=None: batches(windows, 8, 2, rows=rows), lambda rows=None: eval_batches(windows, 8, rows)):
        parts = [list(itertools.islice(read(rows=mine), 11)) for mine in rows]
        for whole, *shares in zip(itertools.islice(read(), 11), *parts, strict=True):
            for name in whole:
                np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in shares]))


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("seed", -1), ("prefetch", -1)])
def test_bad_values_are_refused(name: str, value: int) -> None:
    arguments = {"batch_size": 2, "seed": 0, "prefetch": 1, name: value}
    with pytest.raises(UserError, match=f"^--config.data.{name}={value} must be at least "):
        batches(numbered(3), **arguments)


def test_tokens_are_written_once_and_whole(tmp_path) -> None:
    def broken():
        yield "abc"
        raise InterruptedError

    folder, tokenizer = tmp_path / "tokens", ByteTokenizer()
    with pytest.raises(InterruptedError):
        tokenise(broken(), tokenizer, folder)
    assert not folder.exists()
    first = tokenise(["aß", "", "b"], tokenizer, folder)
    again = tokenise(broken(), tokenizer, folder)  # not read a second time
    for file in (first, again):
        assert file.stream.tolist() == [255, 97, 195, 159, 255, 255, 98, 255]
        assert file.token_offsets.tolist() == [1, 5, 6, 8]
        assert file.byte_offsets.tolist() == [0, 3, 3, 4]
    assert first.stream.dtype == np.uint8


def test_whoever_waits_for_tokens_may_end_it(tmp_path) -> None:
    waits = []

    def three_times() -> None:
        waits.append(len(waits))
        if len(waits) == 3:
            raise InterruptedError

    texts = ["a" * CHUNK] * 5
    with pytest.raises(InterruptedError):
        tokenise(texts, ByteTokenizer(), tmp_path / "tokens", three_times)
    assert len(tokenise(texts, ByteTokenizer(), tmp_path / "tokens").stream) == 5 * (CHUNK + 1) + 1


def test_a_file_is_made_by_one_and_waited_for_by_the_others(tmp_path) -> None:
    made = []

    def make(path: Path) -> None:
        made.append(path)
        time.sleep(0.1)
        path.write_text("whole")

    with ThreadPoolExecutor(5) as pool:
        paths = list(pool.map(lambda _: make_once(tmp_path / "file", make, Path.exists), range(5)))
    assert len(made) == 1
    assert {path.read_text() for path in paths} == {"whole"}


def test_some_windows_are_spread_evenly_and_count_their_own_bytes() -> None:
    stream = np.array([6, *np.random.default_rng(0).integers(0, 6, 47), 6])
    bytes_V = np.array([1, 2, 3, 5, 7, 11, 0])
    whole = Windows(stream, 6, 5, 1000)
    assert len(whole) == 10
    some = SomeWindows(whole, 3, bytes_V)
    wanted = [whole[at] for at in (0, 3, 6)]
    assert len(some) == 3
    for found, window in zip((some[0], some[1], some[2]), wanted, strict=True):
        for name, array_T in window.items():
            np.testing.assert_array_equal(found[name], array_T)
    assert some.num_tokens == 15
    assert some.num_bytes == sum(int(bytes_V[token]) for window in wanted for token in window["targets"])
    padded = some.rows([2, 3])["weights"]
    assert padded.sum(axis=1).tolist() == [5, 0]
    last = SomeWindows(whole, 10, bytes_V)
    assert last.num_tokens == whole.num_tokens
