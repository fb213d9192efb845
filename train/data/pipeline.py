"""From windows to batches, by Grain: shuffle first, shard after, so the number of processes changes no batch."""

import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from model.errors import Range, check_range
from train.data.order import draws, shuffled
from train.data.rows import Rows

THREADS = 1  # a batch is made in less than a millisecond: more threads would only fight the step for the interpreter


def batches(
    windows: Rows,
    batch_size: int,
    seed: int | Sequence[int],
    start: int = 0,
    prefetch: int = 8,
    rows: Sequence[int] | np.ndarray | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields shuffled batches for ever, from batch `start` on; batch k depends on (seed, k) alone.

    Each epoch is another order of all windows, drawn from (seed, epoch). A batch may straddle two epochs, so none is
    lost. The only state is the number of batches taken; starting anywhere costs the same. Of windows that are in
    streams, these are shuffled, and row b follows row b of the batch before until its stream, K batches long, ends.

    Args:
        windows: what is shuffled, row by row.
        batch_size: rows B of the global batch.
        seed: fixes the order, any integer >= 0; several give arrays (N, B, T), each (B, T) of them as by its own seed.
        start: how many batches were taken before.
        prefetch: how many batches are made ahead, in threads; 0 for none.
        rows: which rows of the global batch this process loads (default: all).

    Raises:
        UserError: batch_size, seed or prefetch is out of range.
    """
    seeds, lead = ([seed], ()) if isinstance(seed, int) else (seed, (len(seed),))
    _check(batch_size=batch_size, seed=min(seeds), prefetch=prefetch)
    taken = np.arange(batch_size) if rows is None else np.asarray(rows)

    def batch(number: int) -> dict[str, np.ndarray]:
        turn, part = divmod(number, windows.in_turn)
        streams, places = len(windows) // windows.in_turn, turn * batch_size + taken
        indices = np.concatenate([shuffled(places, streams, one) for one in seeds]) * windows.in_turn + part
        bits = np.concatenate([draws(number * batch_size + taken, one) for one in seeds])
        rows = windows.rows(indices, bits)
        return {name: x.reshape(*lead, len(taken), *x.shape[1:]) for name, x in rows.items()}

    iterator = iter(_read(grain.MapDataset.range(sys.maxsize // batch_size).map(batch), prefetch))
    iterator.set_state({"next_index": start})
    return iterator


def eval_batches(
    windows: Rows, batch_size: int, rows: Sequence[int] | np.ndarray | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every window once, in order; the last batch is filled up with rows of weight 0."""
    _check(batch_size=batch_size)
    taken = np.arange(batch_size) if rows is None else np.asarray(rows)
    numbers = grain.MapDataset.range(-(-len(windows) // batch_size))
    return iter(_read(numbers.map(lambda k: windows.rows(k * batch_size + taken)), prefetch=2))


RANGES = {
    "length": Range(1, 2**24),
    "batch_size": Range(1, 2**24),
    "seed": Range(0, 2**63 - 1),
    "prefetch": Range(0, 2**10),
}


def _check(**values: int) -> None:
    for name, value in values.items():
        check_range(f"config.data.{name}", value, RANGES[name])


def _read(dataset: grain.MapDataset, prefetch: int) -> grain.IterDataset:
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=prefetch))
