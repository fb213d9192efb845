"""How far heads specialise: the one that looks most at the token before, and at what came after an equal one."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from eval.evaluator import Evaluator
from eval.explain.faithfulness.judging import drawn_anew
from eval.explain.methods.heads import specialised


class Specialised(Evaluator):
    """Scores the heads of each seed on random tokens that repeat themselves (drawn by its number), or, as the task
    says, those of a control.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("val/previous_token", "val/prefix_matching")

    def totals(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Any:
        """Both scores, (2,), or with seeds (N, 2); None where it was stopped early."""
        found = []
        for seed, model in self.models(params).items():
            if should_stop():
                return None
            own = drawn_anew(model, seed) if self._task.control == "untrained" else model
            scores = specialised(own, seed, shuffled=self._task.control == "shuffled")
            found.append([scores["previous"], scores["prefix"]])
        return np.array(found[0] if len(found) == 1 else found)

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields val/previous_token and val/prefix_matching: the largest share of its weights that any head gives to
        the token before, and to tokens that came after one that is equal to the query's.
        """
        yield from zip(self.NAMES, np.moveaxis(totals, -1, 0), strict=True)
