"""What all evaluators share: one pass over rows, whose sums are added up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from train.data import Rows, eval_batches
from train.devices.placing import on_host

Value = float | np.ndarray


class Evaluator:
    """Adds up `sums(params, batch)` of every row once, in float64, and makes values of the totals.

    `sums` gives a tree of arrays, with N seeds of leading axes N. `place` puts a host batch on the devices; `local` are
    the rows of each batch that this process loads. Who looks into models takes `models`, which makes one of params for
    each seed, by its number, and reads what of it is asked in the keys of the `task`.
    """

    NAMES: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        sums: Callable[[Any, Any], Any],
        rows: Rows,
        batch_size: int,
        place: Callable[[dict[str, np.ndarray]], Any] = lambda batch: batch,
        local: Sequence[int] | np.ndarray | None = None,
        models: Callable[[Any], Mapping[int, Any]] = lambda params: {},
        task: Any = None,
    ):
        self.models, self._task = models, task
        self.sums, self.rows, self.batch_size, self.place, self.local = sums, rows, batch_size, place, local

    def __call__(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Iterator[tuple[str, Value]]:
        """Yields names and values: floats, or (N,) with seeds; stopped early, nothing."""
        totals = self.totals(params, should_stop)
        if totals is not None:
            yield from self.named(totals)

    def totals(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Any:
        """The sums of all rows; None where it was stopped early."""
        totals: Any = None
        for batch in eval_batches(self.rows, self.batch_size, self.local):
            if should_stop():
                return None
            one = jax.tree.map(lambda x: np.asarray(x, np.float64), on_host(self.sums(params, self.place(batch))))
            totals = one if totals is None else self.added(totals, one)
        return totals

    def named(self, totals: Any) -> Iterator[tuple[str, Value]]:
        """Yields the values of totals: floats, or (N,) with seeds."""
        for name, value in self.values(totals):
            yield name, float(value) if np.ndim(value) == 0 else value

    def added(self, totals: Any, one: Any) -> Any:
        """The totals with those of one batch."""
        return jax.tree.map(np.add, totals, one)

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields the names and values that the totals stand for."""
        raise NotImplementedError

    def records(self, totals: Any) -> Iterator[dict[str, Any]]:
        """Yields what was answered of each example, in their order, as `eval.metrics.records` has it; nothing where
        what is measured are no answers to examples.
        """
        yield from ()
