"""Masked tokens of two segments, and whether the second follows the first (Devlin et al. 2019, sections 3.1, A.2)."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.bounds import without_padding
from model.errors import Range, UserError, check_range
from model.vocabulary import token_scores
from train.data import Rows
from train.data.order import mixed
from train.state import Params
from train.tasks.base import MARKED, TEXT, Batch, Loss, Sums, Task
from train.tasks.masked_lm import MaskedLM, MaskedRows

SHORTEST = 6  # start, two separators, and three tokens, so that what is left of a document is never a single one
_OF_PAIRS = 0x70616972  # what pairs are drawn from beside the bits of a row, of which its masks are drawn too
_OF_EVALUATION = 0x6E657874


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextSentence(MaskedLM):
    """To tell masked tokens of two segments, and whether the second follows the first in its document."""

    ARRAYS: ClassVar[dict[str, str]] = TEXT | MARKED | {"random": "B int32"}
    HEAD: ClassVar[str] = "pair"
    MARKS: ClassVar[tuple[str, ...]] = ("mask", "start", "separator")

    def vocab_size(self, config: ConfigDict) -> int:
        """The tokens that the config asks for.

        Raises:
            UserError: the length has no room for two segments between their marks.
        """
        check_range("config.data.length", config.data.length, Range(SHORTEST))
        return super().vocab_size(config)

    def rows(self, data: Any) -> Rows:
        """Pairs that are drawn anew in each epoch, and so are their masks, by `data.seed`."""
        return MaskedRows(SegmentPairs(data, "train"), data.tokenizer, self)

    def measured(self, data: Any, count: int = 0) -> Rows:
        """Pairs that are fixed, and so are their masks."""
        return MaskedRows(SegmentPairs(data, "validation", count), data.tokenizer, self)

    @staticmethod
    def inputs(batch: Batch, dropout_keys_B: jax.Array | None = None) -> dict[str, Any]:
        """What the model takes of a batch, by the names of its arguments; `dropout_keys_B` turn dropout on."""
        return Task.inputs(batch, dropout_keys_B) | {"types_BT": batch["types"]}

    def loss(self, graphdef: nnx.GraphDef, train: ConfigDict) -> Loss:
        """`loss` is `nll` + `pair_nll`, per masked token: `pair_nll` weighs in it as its row has masked tokens.

        So it is one sum over one count; where all rows are as full it is Devlin's sum of two means. Each is reported by
        itself, per masked token and per pair, beside `accuracy` and `pair_accuracy`; in nats.

        Raises:
            UserError: a label_smoothing or a z_loss, which it has not.
        """
        for name in ("label_smoothing", "z_loss"):
            if train[name]:
                raise UserError(f"--config.train.{name}={train[name]}: the loss of next_sentence has none; leave it 0.")
        return lambda params, batch, dropout_keys_B: self._sums(graphdef, params, batch, dropout_keys_B)

    def sums(self, graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Sums]:
        """The same without dropout."""
        return lambda params, batch: self._sums(graphdef, params, batch, None)

    def _sums(self, graphdef: nnx.GraphDef, params: Params, batch: Batch, keys_B: jax.Array | None) -> Sums:
        model, valid_BT = nnx.merge(graphdef, params), batch["valid"]
        x_BTD, follows_B2 = model.both(**self.inputs(batch, keys_B))
        targets_BT, weights_BT = (without_padding(batch[name], valid_BT) for name in ("targets", "weights"))
        log_z_BT, target_BT, _, largest_BT = token_scores(x_BTD, model.readout(), targets_BT)
        nll_BT, right_BT = log_z_BT - target_BT, (target_BT >= largest_BT).astype(jnp.float32)
        asked_B = jnp.sum(weights_BT, axis=1)
        real_B = (asked_B > 0).astype(jnp.float32)
        pair_nll_B = -jnp.take_along_axis(jax.nn.log_softmax(follows_B2), batch["random"][:, None], axis=1)[:, 0]
        pair_right_B = (jnp.argmax(follows_B2, axis=1) == batch["random"]).astype(jnp.float32)
        count, rows = jnp.sum(weights_BT), jnp.sum(real_B)
        nll = jnp.sum(nll_BT * weights_BT)
        return {
            "loss": (nll + jnp.sum(pair_nll_B * asked_B), count),
            "nll": (nll, count),
            "accuracy": (jnp.sum(right_BT * weights_BT), count),
            "pair_nll": (jnp.sum(pair_nll_B * real_B), rows),
            "pair_accuracy": (jnp.sum(pair_right_B * real_B), rows),
        }


class SegmentPairs(Rows):
    """`start A separator B separator` of documents; `random` (B,) is 0 where B follows A, 1 where it is of another.

    Each document is cut into as few stretches as fit into a row, of equal length but for one token: row i is stretch i,
    and A is its first half. By an even chance B is its second half; else it is as long, of another document, each of
    whose stretches is as likely, from where the second half of that stretch begins, or earlier so that it fits: so
    neither the length of B nor its place tells which it is, but where the other document is shorter. A document of
    fewer than two tokens makes no pair. `types` are 0 up to the first separator, then 1.
    """

    def __init__(self, data: Any, split: str, count: int = 0) -> None:
        """Takes all stretches of a split, or `count` of them, spread evenly.

        Raises:
            UserError: there are not two documents of two tokens.
        """
        self._stream, self._offsets_D = data.tokens(split), data.token_offsets(split)
        self._marks, self.length = data.tokenizer.marks, data.length
        self._sizes_D = np.diff(self._offsets_D) - 1  # without the end
        pieces_D = np.where(self._sizes_D > 1, -(-self._sizes_D // (self.length - 3)), 0)
        self._left_out, kept = int((pieces_D == 0).sum()), int((pieces_D > 0).sum())
        if kept < 2:
            raise UserError(
                f"the {split} split has {kept} document{'s' * (kept != 1)} of two tokens, and pairs of segments need "
                "at least 2: add text, or take --config.task=masked_lm."
            )
        self._firsts_D = np.concatenate([[0], np.cumsum(pieces_D)])  # the number of each document's first stretch
        total = int(self._firsts_D[-1])
        self._places = np.arange(count) * total // count if 0 < count < total else np.arange(total)

    def __len__(self) -> int:
        return len(self._places)

    def told(self) -> str:
        """Returns how many there are, in words."""
        few = f" (documents of fewer than two tokens, which are left out: {self._left_out})" if self._left_out else ""
        return f"{len(self)} pairs of segments{few}"

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many rows, as arrays with a leading axis B; an index past the last gives zeros."""
        indices_B = np.asarray(indices, np.int64)
        B, T = len(indices_B), self.length
        there_B = indices_B < len(self)
        stretch_B = self._places[np.minimum(indices_B, len(self) - 1)]
        bits_B = mixed(stretch_B.astype(np.uint64) + _OF_EVALUATION) if draws is None else draws
        document_B, begin_B, middle_B, end_B = self._stretch(stretch_B)
        random_B, bits_B = there_B & (mixed(bits_B + _OF_PAIRS) >> 63 == 1), mixed(bits_B + _OF_PAIRS + 1)
        other_B, _, place_B, _ = self._stretch(self._of_another(document_B, bits_B))
        wanted_B = end_B - middle_B
        place_B = np.where(random_B, np.clip(place_B, 0, np.maximum(self._sizes_D[other_B] - wanted_B, 0)), middle_B)
        other_B = np.where(random_B, other_B, document_B)
        found = {name: np.zeros((B, T), np.int32) for name in ("tokens", "types", "positions")}
        valid_BT = np.zeros((B, T), bool)
        for row in np.flatnonzero(there_B):
            first = self._tokens(document_B[row], begin_B[row], middle_B[row] - begin_B[row])
            second = self._tokens(other_B[row], place_B[row], wanted_B[row])
            size = len(first) + len(second) + 3
            tokens = [self._marks["start"], *first, self._marks["separator"], *second, self._marks["separator"]]
            found["tokens"][row, :size], valid_BT[row, :size] = tokens, True
            found["types"][row, len(first) + 2 : size] = 1
            found["positions"][row] = np.arange(T)
        more = {"segment_ids": valid_BT.astype(np.int32), "valid": valid_BT}
        return found | more | {"random": random_B.astype(np.int32)}

    def _stretch(self, number_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of stretches by number: their document, and where in it they begin, have their middle, and end."""
        document_B = np.searchsorted(self._firsts_D, number_B, side="right") - 1
        first_B, size_B = self._firsts_D[document_B], self._sizes_D[document_B]
        pieces_B, piece_B = self._firsts_D[document_B + 1] - first_B, number_B - first_B
        begin_B, end_B = piece_B * size_B // pieces_B, (piece_B + 1) * size_B // pieces_B
        return document_B, begin_B, (begin_B + end_B + 1) // 2, end_B

    def _of_another(self, document_B: np.ndarray, bits_B: np.ndarray) -> np.ndarray:
        """A stretch, by number, of another document than each of these, all such alike."""
        first_B, next_B = self._firsts_D[document_B], self._firsts_D[document_B + 1]
        others_B = self._firsts_D[-1] - (next_B - first_B)
        number_B = (bits_B % others_B.astype(np.uint64)).astype(np.int64)
        return np.where(number_B < first_B, number_B, number_B + next_B - first_B)

    def _tokens(self, document: int, place: int, count: int) -> np.ndarray:
        """So many tokens of a document, from a place of it on, or as many as it has."""
        start = self._offsets_D[document] + place
        return self._stream[start : min(start + count, self._offsets_D[document + 1] - 1)]
