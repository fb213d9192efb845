"""Masked tokens, told from all that stands around them (Devlin et al. 2019, section 3.1)."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import without_padding
from model.errors import Range, UserError, check_range
from model.vocabulary import token_scores
from train.data import Rows, Tokenizer
from train.data.order import mixed, unit
from train.state import Params
from train.tasks.base import Batch, Loss, Sums, Task
from train.tasks.language_model import language_model

_OF_EVALUATION = 0x6D61736B  # what the masks of an evaluation are drawn from, beside the number of the row


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Task):
    """To tell masked tokens of text from those on both sides of them.

    Raises:
        UserError: a share out of its range, or shares of masked and replaced tokens that make more than 1.
    """

    HEAD: ClassVar[str] = "token"
    MARKS: ClassVar[tuple[str, ...]] = ("mask",)
    LOOKS_AHEAD: ClassVar[bool] = True

    share: float = 0.15  # share of the tokens of a row that are foretold, at least one
    masked: float = 0.8  # of these, the share whose place holds the mask
    replaced: float = 0.1  # and the share whose place holds any token at all; the others stand as they are
    whole_words: bool = False  # choose words, of which all tokens are foretold

    def __post_init__(self) -> None:
        check_range("config.objective.share", self.share, Range(1e-6, 1))
        for name in ("masked", "replaced"):
            check_range(f"config.objective.{name}", getattr(self, name), Range(0, 1))
        if self.masked + self.replaced > 1:
            raise UserError(
                f"--config.objective.masked={self.masked} and --config.objective.replaced={self.replaced} make more "
                "than 1; lower one of them."
            )

    def rows(self, data: Any) -> Rows:
        """Windows of which other tokens are masked in each epoch, by `data.seed`."""
        return MaskedRows(super().rows(data), data.tokenizer, self)

    def measured(self, data: Any, count: int = 0) -> Rows:
        """Windows whose masks are fixed: the same in every evaluation of every run with these keys."""
        return MaskedRows(super().measured(data, count), data.tokenizer, self)

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """That of a language model, at the chosen places alone."""
        return language_model(graphdef, label_smoothing=train.label_smoothing, z_loss=train.z_loss)

    def sums(self, graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Sums]:
        """`nll` in nats, and `accuracy`: how often the likeliest token is the right one; per foretold token."""

        def sums(params: Params, batch: Batch) -> Sums:
            model, valid_BT = nnx.merge(graphdef, params), batch.get("valid")
            x_BTD = model.vectors(**self.inputs(batch))
            targets_BT, weights_BT = (without_padding(batch[name], valid_BT) for name in ("targets", "weights"))
            log_z_BT, target_BT, _, largest_BT = token_scores(x_BTD, model.readout(), targets_BT)
            found = {"nll": log_z_BT - target_BT, "accuracy": (target_BT >= largest_BT).astype(jnp.float32)}
            return {name: (jnp.sum(x_BT * weights_BT), jnp.sum(weights_BT)) for name, x_BT in found.items()}

        return sums


class MaskedRows:
    """Windows, or other rows of text, of whose `tokens` some are masked; `targets` are what stood there, and `weights`
    1 at these.

    Of the n tokens of a row that stand for text, max(1, round(share n)) are chosen; ends of documents never are. Of
    whole words, in the order drawn, one that would make more is passed over. Each chosen place by itself then holds the
    mask, any token of the tokenizer's, marks aside, or what it held.
    """

    def __init__(self, windows: Rows, tokenizer: Tokenizer, task: MaskedLM) -> None:
        self._windows, self._task, self._tokenizer = windows, task, tokenizer
        self._text_V = np.array([bool(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
        self._begins_V, self._ends_V = (
            np.array([_is_word(tokenizer.token_bytes(token)[where]) for token in range(tokenizer.vocab_size)])
            for where in (slice(0, 1), slice(-1, None))
        )

    def __len__(self) -> int:
        return len(self._windows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._windows, name)  # what a report tells of the text: its length, its bytes

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many rows, as (B, T) arrays."""
        indices_B = np.asarray(indices, np.int64)
        rows = self._windows.rows(indices_B, draws)
        tokens_BT, (B, T) = rows["tokens"], rows["tokens"].shape
        bits_B = mixed(indices_B.astype(np.uint64) + _OF_EVALUATION) if draws is None else draws
        bits_3BT = mixed(bits_B[:, None] + np.arange(3 * T, dtype=np.uint64)).reshape(B, 3, T).swapaxes(0, 1)
        order_BT, kind_BT = unit(bits_3BT[0]), unit(bits_3BT[1])
        open_BT = self._text_V[tokens_BT] & (rows["segment_ids"] > 0)
        chosen_BT = self._chosen(tokens_BT, rows["segment_ids"], open_BT, order_BT)
        other_BT = (bits_3BT[2] % np.uint64(self._tokenizer.vocab_size - len(self._tokenizer.marks))).astype(np.int32)
        is_masked_BT = chosen_BT & (kind_BT < self._task.masked)
        is_other_BT = chosen_BT & ~is_masked_BT & (kind_BT < self._task.masked + self._task.replaced)
        seen_BT = np.where(is_masked_BT, self._tokenizer.marks["mask"], np.where(is_other_BT, other_BT, tokens_BT))
        return rows | {
            "tokens": seen_BT.astype(np.int32),
            "targets": tokens_BT,
            "weights": chosen_BT.astype(np.float32),
        }

    def _chosen(
        self, tokens_BT: np.ndarray, ids_BT: np.ndarray, open_BT: np.ndarray, order_BT: np.ndarray
    ) -> np.ndarray:
        count_B = open_BT.sum(axis=1)
        most_B = np.where(count_B > 0, np.maximum(1, np.rint(self._task.share * count_B)), 0).astype(int)
        if not self._task.whole_words:
            rank_BT = np.argsort(np.argsort(np.where(open_BT, order_BT, 2.0), axis=1), axis=1)
            return open_BT & (rank_BT < most_B[:, None])
        goes_on_BT = np.zeros_like(open_BT)
        goes_on_BT[:, 1:] = self._begins_V[tokens_BT[:, 1:]] & self._ends_V[tokens_BT[:, :-1]]
        goes_on_BT[:, 1:] &= open_BT[:, :-1] & (ids_BT[:, 1:] == ids_BT[:, :-1])
        word_BT = np.cumsum(~goes_on_BT, axis=1)
        chosen_BT = np.zeros_like(open_BT)
        for row, (word_T, open_T, order_T, most) in enumerate(zip(word_BT, open_BT, order_BT, most_B, strict=True)):
            words, first, sizes = np.unique(word_T[open_T], return_index=True, return_counts=True)
            taken, left = set[int](), int(most)
            for one in np.argsort(order_T[open_T][first]):
                if sizes[one] <= left:
                    taken.add(int(words[one]))
                    left -= int(sizes[one])
            chosen_BT[row] = open_T & np.isin(word_T, [*taken])
        return chosen_BT


def _is_word(byte: bytes) -> bool:
    return bool(byte) and (byte.isalnum() or byte == b"_" or byte >= b"\x80")
