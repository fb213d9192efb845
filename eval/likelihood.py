"""How well a language model predicts held-out text: loss, perplexity, bits per byte, and loss by position."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from eval import by_position
from train.data import Windows, eval_batches
from train.devices.placing import on_host

Sums = Callable[[Any, Any], tuple[Any, Any]]
Value = float | np.ndarray


class Likelihood:
    """Sums the negative log-likelihood of every target of `windows` once, the ends of documents included.

    `sums(params, batch)` gives (nats, number of targets) of one batch by quarters of the window, plain: without
    dropout, label smoothing or z-loss; both are (4,), with N seeds (N, 4). `place` puts a host batch on the devices;
    `rows` are those of each batch that this process loads.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/perplexity", "val/bits_per_byte", *by_position.NAMES)

    def __init__(
        self,
        sums: Sums,
        windows: Windows,
        batch_size: int,
        place: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        self.sums, self.windows, self.batch_size, self.place, self.rows = sums, windows, batch_size, place, rows

    def __call__(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, Value]]:
        """Yields val/loss (nats per token), val/perplexity, val/bits_per_byte and what `by_position` yields: floats, or
        (N,) with seeds.

        Bits per byte: all nats / (ln 2 x UTF-8 bytes of the text). Stopped early, it yields nothing.
        """
        nats_Q: Any = np.float64(0)
        targets_Q: Any = np.float64(0)
        for batch in eval_batches(self.windows, self.batch_size, self.rows):
            if should_stop():
                return
            both = [np.asarray(one, np.float64) for one in on_host(self.sums(params, self.place(batch)))]
            nats_Q, targets_Q = nats_Q + both[0], targets_Q + both[1]
        nats, targets = nats_Q.sum(axis=-1), targets_Q.sum(axis=-1)
        loss = nats / targets
        yield "val/loss", _plain(loss)
        with np.errstate(over="ignore"):  # of a run that diverges: infinity is what there is to say
            perplexity = np.exp(loss)
        yield "val/perplexity", _plain(perplexity)
        yield "val/bits_per_byte", _plain(nats / (math.log(2) * self.windows.num_bytes))
        for name, value in by_position.by_position(nats_Q, targets_Q):
            yield name, _plain(value)


def _plain(value: Any) -> Value:
    return float(value) if np.ndim(value) == 0 else value
