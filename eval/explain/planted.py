"""How much of what a label stands on an explanation finds, where that is known."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from eval.evaluator import Evaluator
from eval.explain.faithfulness.judging import joined
from eval.explain.methods.table import METHODS, Asked
from eval.explain.targets import Target
from model.layers import choose
from train.tasks.rationale import Rationale

MOST = 64  # examples that are explained


def precision(map_Bn: np.ndarray, text_Bn: np.ndarray, rationale_Bn: np.ndarray) -> np.ndarray:
    """The share of the rationale's k tokens among the k tokens of the text with the largest numbers, (B,); of tokens
    with the same number as many are taken as chance would (DeYoung et al. 2020, section 4; here k is known).
    """
    found = []
    for map_n, text_n, rationale_n in zip(map_Bn, text_Bn, rationale_Bn, strict=True):
        values, wanted = map_n[text_n], rationale_n[text_n]
        k = int(wanted.sum())
        least = np.sort(values)[-k]
        above, equal = values > least, values == least
        found.append((wanted[above].sum() + (k - above.sum()) * wanted[equal].mean()) / k)
    return np.array(found)


def drawn(asked: Asked, text_BT: np.ndarray, seed: int) -> np.ndarray:
    """A map of numbers drawn at random."""
    return np.random.default_rng(seed).random(text_BT.shape)


def counted(asked: Asked, text_BT: np.ndarray, seed: int) -> np.ndarray:
    """How often each token stands in its text: a map that no model has a part in."""
    tokens_BT = np.asarray(asked.inputs["tokens_BT"])
    return np.sum((tokens_BT[:, :, None] == tokens_BT[:, None]) & text_BT[:, None], axis=2)


def _of_method(name: str) -> Callable[[Asked, np.ndarray, int], np.ndarray]:
    return lambda asked, text_BT, seed: joined(METHODS[name].call(asked))


FINDERS: dict[str, Callable[[Asked, np.ndarray, int], np.ndarray]] = {
    "random": drawn,
    "counts": counted,
    **{name: _of_method(name) for name in METHODS},
}


class Found(Evaluator):
    """Explains the labels of the first 64 rows that have a rationale, of each seed, by what its task
    names.

    Raises:
        UserError: there is no such method.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("val/precision_at_k",)

    def __init__(self, *given: Any, **named: Any):
        super().__init__(*given, **named)
        self.finder = choose(FINDERS, self._task.explained_by, "objective.explained_by")

    def totals(self, params: Any, should_stop: Callable[[], bool] = lambda: False) -> Any:
        """The precision of each example, (64,), or with seeds (N, 64); None where it was stopped early."""
        rows = self.rows.rows(np.arange(len(self.rows)))
        some = np.flatnonzero(rows["rationale"].any(axis=1))[:MOST]
        batch = {name: x[some] for name, x in rows.items()}
        places_BP = jnp.zeros((len(some), 1), jnp.int32)
        target = Target(places_BP, jnp.asarray(batch["labels"])[:, None])
        inputs = Rationale.inputs(jax.tree.map(jnp.asarray, batch))
        found = []
        for seed, model in self.models(params).items():
            if should_stop():
                return None
            map_Bn = self.finder(Asked.of(model, inputs, target), batch["text"], seed)
            found.append(precision(map_Bn, batch["text"], batch["rationale"]))
        return found[0] if len(found) == 1 else np.stack(found)

    def values(self, totals: Any) -> Iterator[tuple[str, Any]]:
        """Yields val/precision_at_k, the mean over examples."""
        yield "val/precision_at_k", totals.mean(axis=-1)
