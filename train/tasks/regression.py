"""A number of a text, or of a pair of texts, such as how near two sentences are in meaning."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.errors import UserError
from train.data.examples import Labelled
from train.data.examples.rows import ExampleRows
from train.tasks.base import Loss
from train.tasks.classification import Classification, LabelledRows


class NumberRows(LabelledRows):
    """`labels` (B,) are the numbers themselves."""

    def labels(self, examples: Sequence[Labelled]) -> np.ndarray:
        """Returns the numbers, float32 (B,)."""
        return np.array([one.label for one in examples], np.float32)

    def predicted(self, answers_B: np.ndarray) -> list[Any]:
        """Returns the numbers that are answered."""
        return answers_B.tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(Classification):
    """To tell the number of a text, or of a pair of texts, from the only logit that the head `class` then has."""

    ARRAYS: ClassVar[dict[str, str]] = Classification.ARRAYS | {"labels": "B float32"}
    FORM: ClassVar[str] = "number"
    ROWS: ClassVar[type[ExampleRows]] = NumberRows

    def check_labels(self, labels: np.ndarray, count: int) -> None:
        """Refuses numbers that are not finite.

        Raises:
            UserError: names the first row.
        """
        if not (finite_B := np.isfinite(labels)).all():
            raise UserError(f"labels: row {np.flatnonzero(~finite_B)[0]} holds no finite number.")

    def worst(self, model: Any) -> float:
        """No loss is that of one who knows nothing: it is the variance of the labels, which only the data know."""
        return math.inf

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """The squared error, per row.

        Raises:
            UserError: labels are to be smoothed, which numbers cannot be.
        """
        if train.label_smoothing:
            raise UserError(
                f"--config.train.label_smoothing={train.label_smoothing} mixes classes, and the labels of this task "
                "are numbers; leave it 0."
            )
        return super().loss(graphdef, train)

    def judged(self, logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> dict[str, jax.Array]:
        """`loss`, (x - y)^2, of logits (B, 1)."""
        return {"loss": jnp.square(self.likeliest(logits) - labels)}

    def likeliest(self, logits: jax.Array) -> jax.Array:
        """The number, (B,)."""
        return logits[..., 0]
