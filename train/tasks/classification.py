"""Classes of texts, or of pairs of texts (Devlin et al. 2019, section 4.1)."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import check_within
from model.errors import Range, UserError, check_range
from train.data import Rows, Tokenizer
from train.data.examples import Labelled
from train.data.examples.opened import ExampleData, open_examples
from train.data.examples.rows import ExampleRows
from train.data.order import mixed, unit
from train.state import Params
from train.tasks.base import MARKED, Batch, Loss, Sums, Task

SHORTEST = 5  # start, text, separator, second text, separator


class LabelledRows(ExampleRows):
    """`start text separator`, with `second_text separator` behind it where there is one, and `labels` (B, ...)."""

    def arrays(self, examples: Sequence[Labelled]) -> dict[str, np.ndarray]:
        """Returns the rows of these examples."""
        texts = [(one.text, one.second_text) if one.second_text else (one.text,) for one in examples]
        weights_B = np.ones(len(examples), np.float32)
        return self.joined(texts) | {"labels": self.labels(examples), "weights": weights_B}

    def sizes(self, examples: Sequence[Labelled]) -> list[int]:
        """Returns the tokens that each has, with its marks, before it is cut."""
        ids = self._tokenizer.encode_batch([text for one in examples for text in (one.text, one.second_text)])
        pairs = zip(examples, ids[::2], ids[1::2], strict=True)
        return [2 + len(first) + (1 + len(second) if one.second_text else 0) for one, first, second in pairs]

    def labels(self, examples: Sequence[Labelled]) -> np.ndarray:
        """Returns the label of each by its number, (B,)."""
        return np.array([self.names.index(str(one.label)) for one in examples], np.int32)

    def predicted(self, answers_B: np.ndarray) -> list[Any]:
        """Returns the names of answers."""
        return [self.names[int(number)] for number in answers_B]


class HiddenRows:
    """Rows of which a share of the tokens that stand for text is hidden as if it were padding, drawn for each by itself
    and for each epoch anew: word dropout (Iyyer et al. 2015, section 3). Without draws, nothing is.
    """

    def __init__(self, rows: Rows, tokenizer: Tokenizer, share: float) -> None:
        self._rows, self._share, self._first_mark = rows, share, tokenizer.vocab_size - len(tokenizer.marks)

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)  # what a report tells of the examples

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many rows, as `valid` and `segment_ids` (B, T) leave them."""
        found = self._rows.rows(indices, draws)
        if draws is None:
            return found
        tokens_BT = found["tokens"]
        drawn_BT = unit(mixed(draws[:, None] + np.arange(tokens_BT.shape[1], dtype=np.uint64)))
        seen_BT = found["valid"] & ((tokens_BT >= self._first_mark) | (drawn_BT >= self._share))
        return found | {"valid": seen_BT, "segment_ids": found["segment_ids"] * seen_BT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """To tell of which class a text, or a pair of texts, is: one of the names that the data have.

    KIND are its examples, FORM says what a label is, as `own_examples` takes it, and ROWS make arrays of them.

    Raises:
        UserError: a share out of its range, or tokens to be hidden of a task that answers for tokens.
    """

    HEAD: ClassVar[str] = "class"
    ARRAYS: ClassVar[dict[str, str]] = MARKED | {"labels": "B int32", "weights": "B float32"}
    MARKS: ClassVar[tuple[str, ...]] = ("start", "separator")
    LOOKS_AHEAD: ClassVar[bool] = True
    KIND: ClassVar[type] = Labelled
    FORM: ClassVar[str] = "one"
    ROWS: ClassVar[type[ExampleRows]] = LabelledRows

    hide: float = 0.0  # share of a text's tokens that are hidden from the model in training, others in each epoch

    def __post_init__(self) -> None:
        check_range("config.objective.hide", self.hide, Range(0, 1, below=True))
        if self.hide and self.HEAD != "class":
            raise UserError(f"--config.objective.hide={self.hide} is for labels of whole texts; leave it 0.")

    def vocab_size(self, config: ConfigDict) -> int:
        """The tokens that the config asks for.

        Raises:
            UserError: the length has no room for two texts between their marks.
        """
        check_range("config.data.length", config.data.length, Range(SHORTEST))
        return super().vocab_size(config)

    def open(self, config: ConfigDict, tokenizer: Tokenizer | None = None, **how: Any) -> ExampleData:
        """The labelled examples of a config."""
        return open_examples(self.KIND, config.data, tokenizer, marks=self.MARKS, form=self.FORM, **how)

    def rows(self, data: Any) -> Rows:
        """What is learned from, with other tokens hidden in each epoch, by `data.seed`."""
        rows = self.ROWS(data, "train")
        return HiddenRows(rows, data.tokenizer, self.hide) if self.hide else rows

    def measured(self, data: Any, count: int = 0) -> Rows:
        """What is evaluated: all (0) examples of the validation split, or `count` spread evenly over them."""
        return self.ROWS(data, "validation", count)

    @staticmethod
    def inputs(batch: Batch, dropout_keys_B: jax.Array | None = None) -> dict[str, Any]:
        """What the model takes of a batch, by the names of its arguments; `dropout_keys_B` turn dropout on."""
        return Task.inputs(batch, dropout_keys_B) | {"types_BT": batch["types"]}

    def check(self, batch: dict[str, np.ndarray], model: Any) -> None:
        """Refuses a batch of this process.

        Raises:
            UserError: a token outside of the vocabulary, or a label that is none.
        """
        rule = f"is outside of the vocabulary of {model.vocab_size}; encode with its tokenizer"
        check_within(batch["tokens"], model.vocab_size, "tokens:", rule, batch["valid"])
        self.check_labels(batch["labels"], model.labels)

    def check_labels(self, labels: np.ndarray, count: int) -> None:
        """Refuses a label that is none of so many.

        Raises:
            UserError: names the first, and its place.
        """
        check_within(labels, count, "labels:", f"is none of the {count} labels of the data")

    def worst(self, model: Any) -> float:
        """The loss of one who knows nothing, in nats."""
        return math.log(model.labels)

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """`loss`, and what else `judged` tells, per answer.

        Raises:
            UserError: label_smoothing outside of [0, 1), or a z_loss, which is of tokens.
        """
        check_range("config.train.label_smoothing", train.label_smoothing, Range(0, 1, below=True))
        if train.z_loss:
            raise UserError(f"--config.train.z_loss={train.z_loss} is for tasks that foretell tokens; leave it 0.")

        def loss(params: Params, batch: Batch, dropout_keys_B: jax.Array | None) -> Sums:
            logits = self._logits(graphdef, params, batch, dropout_keys_B)
            return self.summed(self.judged(logits, batch["labels"], train.label_smoothing), batch)

        return loss

    def sums(self, graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Any]:
        """The `loss` with its count, and the likeliest answer of each row, `answers`."""

        def sums(params: Params, batch: Batch) -> Any:
            logits = self._logits(graphdef, params, batch, None)
            loss = {"loss": self.judged(logits, batch["labels"])["loss"]}
            return {"sums": self.summed(loss, batch), "answers": self.likeliest(logits)}

        return sums

    def judged(self, logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> dict[str, jax.Array]:
        """`loss` (nats, of labels that are smoothed), and what else is told of each answer, of logits (..., C)."""
        return of_labels(logits, labels, smoothing)

    def likeliest(self, logits: jax.Array) -> jax.Array:
        """What is answered, as `predicted` of the rows takes it."""
        return jnp.argmax(logits, axis=-1)

    def summed(self, found: dict[str, jax.Array], batch: Batch) -> Sums:
        """The sums of what is told of each answer, by their weights."""
        weights = batch["weights"]
        return {name: (jnp.sum(x * weights), jnp.sum(weights)) for name, x in found.items()}

    def _logits(self, graphdef: nnx.GraphDef, params: Params, batch: Batch, keys_B: jax.Array | None) -> jax.Array:
        model = nnx.merge(graphdef, params)
        return model.answers(model.vectors(**self.inputs(batch, keys_B)), keys_B, batch["valid"])


def of_labels(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> dict[str, jax.Array]:
    """`nll`, `loss` (of a label that is mixed with all labels alike: Szegedy et al. 2016, section 7) and `accuracy`, of
    logits (..., C) and labels (...).
    """
    log_p = jax.nn.log_softmax(logits)
    nll = -jnp.take_along_axis(log_p, labels[..., None], axis=-1)[..., 0]
    loss = (1 - smoothing) * nll - smoothing * jnp.mean(log_p, axis=-1) if smoothing else nll
    return {"loss": loss, "nll": nll, "accuracy": (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)}
