"""Texts, or pairs of texts, each with any number of labels: each label is a question of its own."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from model.errors import UserError
from train.data.examples import Labelled
from train.data.examples.rows import ExampleRows
from train.tasks.classification import Classification, LabelledRows


class SeveralRows(LabelledRows):
    """`labels` (B, C) are 1 for those that a text has, and 0."""

    def labels(self, examples: Sequence[Labelled]) -> np.ndarray:
        """Returns (B, C), with a column for each name."""
        said = [one.label if isinstance(one.label, tuple) else () for one in examples]
        return np.array([[name in labels for name in self.names] for labels in said], np.int32)

    def predicted(self, answers_BC: np.ndarray) -> list[Any]:
        """Returns the names of the labels that each row is held to have."""
        return [tuple(name for name, one in zip(self.names, row, strict=True) if one) for row in answers_BC]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeveralLabels(Classification):
    """To tell which labels a text, or a pair of texts, has: any number of the names that the data have."""

    ARRAYS: ClassVar[dict[str, str]] = Classification.ARRAYS | {"labels": "BC int32"}
    FORM: ClassVar[str] = "several"
    ROWS: ClassVar[type[ExampleRows]] = SeveralRows

    def check_labels(self, labels: np.ndarray, count: int) -> None:
        """Refuses labels that are not 0 or 1 in so many columns.

        Raises:
            UserError: names what they are.
        """
        if labels.shape[-1] != count or not np.isin(labels, (0, 1)).all():
            raise UserError(
                f"labels of shape {labels.shape} must be 0 or 1 for each of the {count} labels of the data."
            )

    def worst(self, model: Any) -> float:
        """The loss of one who knows nothing, in nats."""
        return math.log(2)

    def judged(self, logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> dict[str, jax.Array]:
        """`nll`, `loss` (of a label that is mixed with both answers alike) and `exact_match`, of logits (B, C).

        Both are means over the labels of their cross entropies, log(1 + exp(x)) - y x each, in nats.
        """
        mixed_BC = (1 - smoothing) * labels + smoothing / 2
        nats_BC = jax.nn.softplus(logits)
        right_BC = self.likeliest(logits) == labels
        return {
            "loss": jnp.mean(nats_BC - mixed_BC * logits, axis=-1),
            "nll": jnp.mean(nats_BC - labels * logits, axis=-1),
            "exact_match": jnp.all(right_BC, axis=-1).astype(jnp.float32),
        }

    def likeliest(self, logits: jax.Array) -> jax.Array:
        """1 for each label that is likelier than not, else 0: (B, C)."""
        return (logits > 0).astype(jnp.int32)
