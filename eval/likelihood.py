"""How well a language model predicts held-out text: loss, perplexity, bits per byte, and loss by position."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from eval import by_position
from eval.evaluator import Evaluator


class Likelihood(Evaluator):
    """Sums the negative log-likelihood of every target of windows once, the ends of documents included.

    `sums(params, batch)` gives (nats, number of targets) of one batch by quarters of the window, plain: without
    dropout, label smoothing or z-loss; both are (4,), with N seeds (N, 4).
    """

    NAMES: ClassVar[tuple[str, ...]] = ("val/loss", "val/perplexity", "val/bits_per_byte", *by_position.NAMES)

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields val/loss (nats per token), val/perplexity, val/bits_per_byte and what `by_position` yields.

        Bits per byte: all nats / (ln 2 x UTF-8 bytes of the text).
        """
        nats, targets = (one.sum(axis=-1) for one in totals)
        loss = nats / targets
        yield "val/loss", loss
        with np.errstate(over="ignore"):  # of a run that diverges: infinity is what there is to say
            perplexity = np.exp(loss)
        yield "val/perplexity", perplexity
        yield "val/bits_per_byte", nats / (math.log(2) * self.rows.num_bytes)  # type: ignore[attr-defined]
        yield from by_position.by_position(*totals)
