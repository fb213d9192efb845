"""Windows in streams: a stream is a long window, streams are shuffled, and row b follows row b of the batch before."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.data.test_data import END, expected_rows, numbered, numbers, stream_of, windows_of
from train.data import Streams, Windows, batches


def streams(count: int, in_turn: int) -> Streams:
    """Windows of one token each, their own number."""
    windows = Windows(np.arange(count * in_turn + 1, dtype=np.int32), -1, 1, num_bytes=0)
    return Streams(windows, in_turn, np.zeros(1, np.int64))


@given(st.lists(st.lists(st.integers(0, 6), max_size=11), min_size=1, max_size=7), st.integers(1, 5), st.integers(1, 4))
def test_windows_of_a_stream_equal_a_walk_through_it(documents: list[list[int]], length: int, in_turn: int) -> None:
    rows = Streams(windows_of(documents, length), in_turn, np.flatnonzero(stream_of(documents) == END))
    expected = expected_rows(documents, length * in_turn)
    assert len(rows) == len(expected) * in_turn
    found = rows.rows(range(len(rows) + 1))
    for name, wanted in zip(found, zip(*itertools.chain(*expected), strict=True), strict=True):
        assert found[name].shape == (len(rows) + 1, length)
        if name == "segment_ids":  # which count from 1 in each window
            wanted_BT = np.reshape(wanted, (-1, length))
            wanted = (np.maximum(wanted_BT - wanted_BT[:, :1] + 1, 0) * (wanted_BT > 0)).ravel()
        assert found[name][:-1].ravel().tolist() == list(wanted)
    assert found["weights"][-1].tolist() == [0] * length


@pytest.mark.parametrize(("in_turn", "batch_size"), [(3, 5), (2, 11), (5, 3), (1, 7)])
def test_streams_are_shuffled_as_windows_are_and_each_window_is_read_once_in_an_epoch(
    in_turn: int, batch_size: int
) -> None:
    count = 7
    order = itertools.chain.from_iterable(map(numbers, batches(numbered(count), batch_size, seed=3)))
    read = list(itertools.islice(batches(streams(count, in_turn), batch_size, seed=3), count * in_turn))
    assert len(read) * batch_size == batch_size * count * in_turn  # as many epochs as a batch has rows
    seen = []
    for turn in range(count):
        for row, stream in enumerate(itertools.islice(order, batch_size)):
            own = [numbers(read[turn * in_turn + part])[row] for part in range(in_turn)]
            assert own == [stream * in_turn + part for part in range(in_turn)]
            seen += own
    epochs = np.reshape(seen, (batch_size, count * in_turn))
    assert (np.sort(epochs) == np.arange(count * in_turn)).all()
    assert len({*map(tuple, epochs)}) == batch_size


def test_a_window_is_read_without_its_stream() -> None:
    """Of which as many as a batch has rows would not fit into memory."""
    stream = np.broadcast_to(np.int32(3), 2**36 + 1)
    rows = Streams(Windows(stream, END, 7, num_bytes=0), 2**26, np.array([0, 100])).rows(
        [14, 2**26 - 1, 2**26, 2**26 + 3]
    )
    assert rows["positions"][:, 0].tolist() == [98, 7 * 2**26 - 107, 0, 21]


def test_streams_go_on_from_any_batch_with_any_rows_and_for_several_seeds() -> None:
    rows, count, size, start = streams(19, 3), 20, 8, 4
    whole = [list(itertools.islice(batches(rows, size, seed, prefetch=0), start + count))[start:] for seed in (5, 7)]
    for parts in (1, 2, 4):
        shares = [np.arange(size).reshape(parts, -1)[part] for part in range(parts)]
        read = [batches(rows, size, seed=[5, 7], start=start, rows=share) for share in shares]
        for both in zip(*whole, strict=True):
            found = [next(one)["tokens"] for one in read]
            np.testing.assert_array_equal(np.concatenate(found, axis=1), [one["tokens"] for one in both])
