"""Classes of texts, or of pairs of texts (Devlin et al. 2019, section 4.1)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import check_within
from model.errors import Range, check_range
from train.data import Rows, Tokenizer
from train.data.examples import Labelled
from train.data.examples.opened import ExampleData, open_examples
from train.data.examples.rows import ExampleRows
from train.state import Params
from train.tasks.base import Batch, Loss, Sums, Task

SHORTEST = 5  # start, text, separator, second text, separator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """To tell of which class a text, or a pair of texts, is: one of the names that the data have."""

    HEAD: ClassVar[str] = "class"
    MARKS: ClassVar[tuple[str, ...]] = ("start", "separator")
    LOOKS_AHEAD: ClassVar[bool] = True
    KIND: ClassVar[type] = Labelled

    def vocab_size(self, config: ConfigDict) -> int:
        """The tokens that the config asks for.

        Raises:
            UserError: the length has no room for two texts between their marks.
        """
        check_range("config.data.length", config.data.length, Range(SHORTEST))
        return super().vocab_size(config)

    def open(self, config: ConfigDict, tokenizer: Tokenizer | None = None, **how: Any) -> ExampleData:
        """The labelled examples of a config."""
        return open_examples(self.KIND, config.data, tokenizer, marks=self.MARKS, **how)

    def rows(self, data: Any) -> Rows:
        """What is learned from."""
        return LabelledRows(data, "train")

    def measured(self, data: Any, count: int = 0) -> Rows:
        """What is evaluated: all (0) examples of the validation split, or `count` spread evenly over them."""
        return LabelledRows(data, "validation", count)

    def inputs(self, batch: Batch) -> dict[str, jax.Array | None]:
        """What the model takes of a batch, by the names of its arguments."""
        return super().inputs(batch) | {"types_BT": batch["types"]}

    def check(self, batch: dict[str, np.ndarray], model: Any) -> None:
        """Refuses a batch of this process.

        Raises:
            UserError: a token outside of the vocabulary, or a label that is none.
        """
        rule = f"is outside of the vocabulary of {model.vocab_size}; encode with its tokenizer"
        check_within(batch["tokens"], model.vocab_size, "tokens:", rule, batch["valid"])
        check_within(batch["labels"], model.labels, "labels:", f"is none of the {model.labels} labels of the data")

    def worst(self, model: Any) -> float:
        """The loss of one who knows nothing, in nats."""
        return math.log(model.labels)

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """`nll` in nats, `accuracy`, and `loss`, which is nll with the label smoothed; per row."""

        def loss(params: Params, batch: Batch, dropout_keys_B: jax.Array | None) -> Sums:
            logits_BC = self._logits(graphdef, params, batch, dropout_keys_B)
            found = of_labels(logits_BC, batch["labels"], train.label_smoothing)
            return {name: (jnp.sum(x_B * batch["weights"]), jnp.sum(batch["weights"])) for name, x_B in found.items()}

        return loss

    def sums(self, graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Any]:
        """`nll` and `accuracy`, each with its count, and the likeliest label of each row, `answers`."""

        def sums(params: Params, batch: Batch) -> Any:
            logits_BC = self._logits(graphdef, params, batch, None)
            found, weights_B = of_labels(logits_BC, batch["labels"]), batch["weights"]
            summed = {name: (jnp.sum(found[name] * weights_B), jnp.sum(weights_B)) for name in ("nll", "accuracy")}
            return {"sums": summed, "answers": jnp.argmax(logits_BC, axis=-1)}

        return sums

    def _logits(self, graphdef: nnx.GraphDef, params: Params, batch: Batch, keys_B: jax.Array | None) -> jax.Array:
        model = nnx.merge(graphdef, params)
        return model.answers(model.vectors(**self.inputs(batch), dropout_keys_B=keys_B), keys_B)


def of_labels(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> dict[str, jax.Array]:
    """`nll`, `loss` (of a label that is mixed with all labels alike: Szegedy et al. 2016, section 7) and `accuracy`, of
    logits (..., C) and labels (...).
    """
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    loss = (1 - smoothing) * nll - smoothing * jnp.mean(log_p, axis=-1) if smoothing else nll
    return {"loss": loss, "nll": nll, "accuracy": (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)}


class LabelledRows(ExampleRows):
    """`start text separator`, with `second_text separator` behind it where there is one; `labels` (B,) by number."""

    def arrays(self, examples: Sequence[Labelled]) -> dict[str, np.ndarray]:
        """Returns the rows of these examples."""
        texts = [(one.text, one.second_text) if one.second_text else (one.text,) for one in examples]
        labels_B = np.array([self.names.index(str(one.label)) for one in examples], np.int32)
        return self.joined(texts) | {"labels": labels_B, "weights": np.ones(len(examples), np.float32)}

    def predicted(self, answers_B: np.ndarray) -> list[str]:
        """Returns the names of answers."""
        return [self.names[int(number)] for number in answers_B]
