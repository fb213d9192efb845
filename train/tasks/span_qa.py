"""Questions whose answer is a part of a text (Devlin et al. 2019, sections 4.2 and 4.3)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import check_within
from model.errors import Range, UserError, check_range
from train.data import Rows, Tokenizer
from train.data.examples import Answer, Question
from train.data.examples.opened import ExampleData
from train.data.examples.rows import ExampleRows
from train.data.examples.words import PlacedTokens, as_words, placed_tokens
from train.state import Params
from train.tasks.base import Batch, Sums
from train.tasks.classification import Classification

NEVER = -1e30  # a logit of what is not allowed; the sum of two is still a number
_TOGETHER = 256  # examples that are encoded at once, where all are looked at


class SpanRows(ExampleRows):
    """`start question separator context separator`, where of two texts that are too long the longer one is cut.

    `labels` (B, 2) are the first and the last token of the first answer that the row holds, `allowed` (B, T) is the
    context, with the place of `start` where there may be no answer. A row that holds no answer has weight 0, and 1 in
    `cut`: nothing is learned of it, and in evaluation it counts as wrong.
    """

    def __init__(self, data: ExampleData, split: str, count: int = 0) -> None:
        super().__init__(data, split, count)
        self._may_be_none = data.corpus.some_unanswered

    def sizes(self, examples: Sequence[Question]) -> list[int]:
        """Returns the tokens that each has, with its marks, before it is cut."""
        return [3 + len(question.ids) + len(context.ids) for question, context in self._tokens(examples)]

    def lost(self, cut: Sequence[Question]) -> int:
        """Returns how many of these have an answer that their row no longer holds."""
        asked = [one for one in cut if one.answers]
        parts = [asked[first : first + _TOGETHER] for first in range(0, len(asked), _TOGETHER)]
        return sum(int((self.arrays(some)["weights"] == 0).sum()) for some in parts)

    def weights(self) -> Any:
        """Yields those of all rows, some at a time."""
        for some in self._parts():
            yield self.rows(some)["weights"]

    def _parts(self) -> list[np.ndarray]:
        return [np.arange(first, min(first + _TOGETHER, len(self))) for first in range(0, len(self), _TOGETHER)]

    def arrays(self, examples: Sequence[Question]) -> dict[str, np.ndarray]:
        """Returns the rows of these questions."""
        texts = self._tokens(examples)
        found = self.laid([[question.ids, context.ids] for question, context in texts])
        context_BT, first_B = _context(found)
        places_B2, weights_B = np.zeros((len(examples), 2), np.int32), np.zeros(len(examples), np.float32)
        for row, (one, (_, context)) in enumerate(zip(examples, texts, strict=True)):
            held = int(context_BT[row].sum())
            for answer, start in zip(one.answers, one.starts, strict=True):
                first, last = context.within(start, start + len(answer))
                if last < held:
                    places_B2[row], weights_B[row] = (first_B[row] + first, first_B[row] + last), 1
                    break
            if not one.answers and self._may_be_none:
                weights_B[row] = 1
        allowed_BT = context_BT.copy()
        allowed_BT[:, 0] = self._may_be_none
        return found | {"allowed": allowed_BT, "labels": places_B2, "weights": weights_B, "cut": 1 - weights_B}

    def predicted(self, answers_B2: np.ndarray) -> list[Answer]:
        """Returns what stands at the places of answers, letter by letter as the context has it."""
        found: list[Answer] = []
        for some in self._parts():
            examples = [self._all[int(place)] for place in self._places[some]]
            texts = self._tokens(examples)
            first_B = _context(self.laid([[question.ids, context.ids] for question, context in texts]))[1]
            spans_B2 = answers_B2[some].astype(int) - first_B[:, None]
            for one, (_, context), (first, last) in zip(examples, texts, spans_B2, strict=True):
                start = int(context.starts[first]) if first >= 0 else -1
                found.append(Answer(one.context[start : context.stops[last]], start) if first >= 0 else Answer(""))
        return found

    def _tokens(self, examples: Sequence[Question]) -> list[tuple[PlacedTokens, PlacedTokens]]:
        texts = placed_tokens([text for one in examples for text in (one.question, one.context)], self._tokenizer)
        return list(zip(texts[::2], texts[1::2], strict=True))


def _context(rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Where the context of each row is, (B, T), and its first place, (B,): behind the question's separator."""
    context_BT = (rows["types"] == 1) & rows["valid"]
    last_B = rows["valid"].sum(axis=1) - 1
    context_BT[np.arange(len(last_B)), last_B] = False  # the separator behind it
    return context_BT, context_BT.argmax(axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanQA(Classification):
    """To tell where the answer to a question begins and ends in its context. Rows are not packed.

    Where 'train' has questions without an answer, none is told by the place of `start`, and given where its score is
    above that of the best answer by more than `threshold`; where it has none such, only the context is allowed.

    Raises:
        UserError: a key is out of its range.
    """

    HEAD: ClassVar[str] = "span"
    ARRAYS: ClassVar[dict[str, str]] = Classification.ARRAYS | {
        "labels": "B2 int32",
        "allowed": "BT bool",
        "cut": "B float32",
    }
    KIND: ClassVar[type] = Question
    ROWS: ClassVar[type[ExampleRows]] = SpanRows

    longest: int = 30  # tokens of an answer that is given, at most
    threshold: float = 0.0  # nats by which no answer must be likelier than the best one; not read where each has one

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("config.objective.longest", self.longest, Range(1, 2**24))
        check_range("config.objective.threshold", self.threshold, Range(-1e6, 1e6))

    def open(self, config: ConfigDict, tokenizer: Tokenizer | None = None, **how: Any) -> ExampleData:
        """The questions of a config, and a tokenizer of their words."""
        return super().open(config, tokenizer, spelled=as_words, **how)

    def measured(self, data: Any, count: int = 0) -> Rows:
        """What is evaluated: all (0) questions of the validation split, or `count` spread evenly over them.

        Raises:
            UserError: no row holds its answer.
        """
        rows = SpanRows(data, "validation", count)
        if not (data.corpus.some_unanswered or any(one.answers for one in rows.examples)):
            raise UserError(
                f"none of the {len(rows)} questions of validation has an answer, and each one of train has: so there "
                "is nothing to measure; give validation some with an answer, or train some without."
            )
        if not any(weights_B.any() for weights_B in rows.weights()):
            raise UserError(
                f"none of the {len(rows)} answers of validation is within the --config.data.length={data.length} "
                "tokens of its row; raise it."
            )
        return rows

    def check(self, batch: dict[str, np.ndarray], model: Any) -> None:
        """Refuses a batch of this process.

        Raises:
            UserError: a token outside of the vocabulary, or a place outside of the row.
        """
        super().check(batch, model)
        T = batch["tokens"].shape[-1]
        check_within(batch["labels"], T, "labels:", f"is outside of the row of {T} tokens")

    def check_labels(self, labels: np.ndarray, count: int) -> None:
        """Nothing: they are places, of which the data have no names."""

    def worst(self, model: Any) -> float:
        """The loss of one who knows nothing, in nats."""
        return 2 * math.log(model.max_length)

    def judged(self, logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> dict[str, jax.Array]:
        """`loss` and `nll`, as `of_places`, and `accuracy`: how often both places are right."""
        right_B = jnp.all(self.likeliest(logits) == labels, axis=-1)
        return of_places(logits, labels, smoothing) | {"accuracy": right_B.astype(jnp.float32)}

    def likeliest(self, logits: jax.Array) -> jax.Array:
        """The places of the best answer, (B, 2)."""
        return best_spans(logits, self.longest, self.threshold)

    def summed(self, found: dict[str, jax.Array], batch: Batch) -> Sums:
        """The sums of what is told of the answers that rows hold; `cut` is the share of the others."""
        cut_B = batch["cut"]
        return super().summed(found, batch) | {"cut": (jnp.sum(cut_B), jnp.sum(batch["weights"] + cut_B))}

    def _logits(self, graphdef: nnx.GraphDef, params: Params, batch: Batch, keys_B: jax.Array | None) -> jax.Array:
        return jnp.where(batch["allowed"][..., None], super()._logits(graphdef, params, batch, keys_B), NEVER)


def of_places(logits_BT2: jax.Array, places_B2: jax.Array, smoothing: float = 0.0) -> dict[str, jax.Array]:
    """`nll` and `loss` (B,) of where an answer begins and ends, among the places whose logit is not `NEVER`: the sum of
    both. With smoothing a place is mixed with all that are allowed, alike (Szegedy et al. 2016, section 7).
    """
    log_p_BT2 = jax.nn.log_softmax(logits_BT2, axis=1)
    nll_B = -jnp.take_along_axis(log_p_BT2, places_B2[:, None], axis=1).sum(axis=(1, 2))
    if not smoothing:
        return {"loss": nll_B, "nll": nll_B}
    allowed_BT2 = logits_BT2 > NEVER
    mean_B2 = jnp.sum(jnp.where(allowed_BT2, log_p_BT2, 0.0), axis=1) / jnp.maximum(allowed_BT2.sum(axis=1), 1)
    return {"loss": (1 - smoothing) * nll_B - smoothing * mean_B2.sum(axis=1), "nll": nll_B}


def best_spans(logits_BT2: jax.Array, longest: int, threshold: float = 0.0) -> jax.Array:
    """The first and the last place (B, 2) of the answer with the highest sum of logits, of at most `longest` tokens;
    of equal ones the first. Both are 0 for no answer, where place 0 has a logit that is not `NEVER`.
    """
    (B, T, _), K = logits_BT2.shape, min(longest, logits_BT2.shape[1])
    context_BT2 = logits_BT2.at[:, 0].set(NEVER)
    last_TK = np.add.outer(np.arange(T), np.arange(K))
    last_BTK = context_BT2[..., 1].at[:, last_TK].get(mode="fill", fill_value=NEVER)
    scores_BX = (context_BT2[..., :1] + last_BTK).reshape(B, T * K)
    best_B = jnp.argmax(scores_BX, axis=1)
    none_B = jnp.sum(logits_BT2[:, 0], axis=-1) - jnp.max(scores_BX, axis=1) > threshold
    spans_B2 = jnp.stack([best_B // K, best_B // K + best_B % K], axis=-1)
    return jnp.where(none_B[:, None], 0, spans_B2)
