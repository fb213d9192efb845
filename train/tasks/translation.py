"""A text from another one: translation, and whatever else reads one text and writes another (Sutskever et al. 2014)."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.axes import unsplit
from model.beam import Beam, beam_search
from model.errors import Range, check_range
from model.families.encoder_decoder import Pairs
from model.vocabulary import token_scores
from train.data import Rows, Tokenizer
from train.data.examples import Pair
from train.data.examples.opened import ExampleData, open_examples
from train.data.examples.rows import ExampleRows
from train.state import Params
from train.tasks.base import Batch
from train.tasks.pairs import Encoded, OfPairs, laid

GREEDY = Beam(size=1, alpha=0.0, form="huggingface")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(OfPairs):
    """To write the second text of a pair, having read the first.

    Raises:
        UserError: a key out of its range.
    """

    MARKS: ClassVar[tuple[str, ...]] = ("start",)
    WRITES: ClassVar[bool] = True

    packed: bool = False  # learn from rows of as many pairs as fit, of which none sees another

    def vocab_size(self, config: ConfigDict) -> int:
        """The tokens that the config asks for.

        Raises:
            UserError: the length has no room for a token and the end behind it.
        """
        check_range("config.data.length", config.data.length, Range(2))
        return super().vocab_size(config)

    def open(self, config: ConfigDict, tokenizer: Tokenizer | None = None, **how: Any) -> ExampleData:
        """The pairs of a config."""
        return open_examples(Pair, config.data, tokenizer, marks=self.MARKS, **how)

    def rows(self, data: Any) -> Rows:
        """What is learned from."""
        return PackedRows(data, "train") if self.packed else PairRows(data, "train")

    def measured(self, data: Any, count: int = 0) -> Rows:
        """What is evaluated: all (0) pairs of the validation split, or `count` spread evenly over them."""
        return PairRows(data, "validation", count)

    def reported(self, data: Any) -> dict[str, Rows]:
        """The pairs of all other splits, such as numbers that are longer than those that were learned."""
        return {split: PairRows(data, split) for split in data.corpus.splits if split not in ("train", "validation")}

    def sums(self, graphdef: nnx.GraphDef, beam: Beam = GREEDY) -> Callable[[Params, Batch], Any]:
        """`loss` in nats and `accuracy` per token, where those before are given, each with its count; and, as `answers`
        (B, T), what the model writes by itself up to the end: the best of a beam, or always the likeliest token.
        """

        def sums(params: Params, batch: Batch) -> Any:
            model, pairs = nnx.merge(graphdef, params), Pairs.of(batch)
            log_z_BT, target_BT, _, largest_BT = token_scores(model.vectors(pairs), model.readout(), batch["targets"])
            found = {"loss": log_z_BT - target_BT, "accuracy": (target_BT >= largest_BT).astype(jnp.float32)}
            weights_BT = batch["weights"]
            summed = {name: (jnp.sum(x_BT * weights_BT), jnp.sum(weights_BT)) for name, x_BT in found.items()}
            end = model.config.vocab_size - len(self.MARKS) - 1  # as every tokenizer numbers it
            return {"sums": summed, "answers": written(model, pairs, end, beam)}

        return sums


def written(model: Any, pairs: Pairs, end: int, beam: Beam = GREEDY) -> jax.Array:
    """What a model writes of each source by a beam, (B, T), with `end` from its end on.

    The first of the targets' tokens is what each begins with; there are no others.
    """
    T = pairs.tokens_BT.shape[1]
    memory_BSD = model.encode(pairs)
    with unsplit("length"):  # a token at a time is nothing to share
        cache = model.init_cache(memory_BSD, pairs.source_segment_ids_BS, T)
        first_B = pairs.tokens_BT[:, 0]
        found = beam_search(model.decode, cache, first_B, jnp.zeros_like(first_B), beam=beam, end=end, limit=T)
    return found.tokens_BKT[:, 0]


class PairRows(ExampleRows):
    """`source end` and `start target`, whose `targets` are `target end`; what is too long is cut, a target at its end.

    Arrays as in a batch of `Pairs`, and `weights`, 1 at what is to be written; all (B, T).
    """

    def sizes(self, examples: Sequence[Pair]) -> list[int]:
        """Returns the tokens of the longer side of each, with its end, before it is cut."""
        return [1 + max(map(len, one)) for one in _encoded(examples, self._tokenizer)]

    def arrays(self, examples: Sequence[Pair]) -> dict[str, np.ndarray]:
        """Returns the rows of these examples."""
        return laid([[one] for one in _encoded(examples, self._tokenizer)], self.length, self.length, self._tokenizer)

    def predicted(self, answers_BT: np.ndarray) -> list[str]:
        """Returns the texts that answers stand for, up to their ends; bytes that are not UTF-8 become U+FFFD."""
        found = []
        for answer_T in answers_BT.astype(int):
            kept = answer_T[: int(np.argmax(np.append(answer_T, self._tokenizer.end) == self._tokenizer.end))]
            found.append(b"".join(map(self._tokenizer.token_bytes, kept.tolist())).decode("utf-8", "replace"))
        return found


class PackedRows(Rows):
    """Rows of as many pairs as fit, one after the other, in the order of the data; segment n is the n-th pair."""

    def __init__(self, data: ExampleData, split: str) -> None:
        self._tokenizer, self._length = data.tokenizer, data.length
        self._rows: list[list[Encoded]] = []
        self._pairs, room = PairRows(data, split), [0, 0]
        for one in _encoded(data.corpus.splits[split], data.tokenizer):
            sizes = [min(len(side) + 1, data.length) for side in one]
            if not self._rows or any(size > left for size, left in zip(sizes, room, strict=True)):
                self._rows.append([])
                room = [data.length] * 2
            self._rows[-1].append(one)
            room = [left - size for size, left in zip(sizes, room, strict=True)]

    def __len__(self) -> int:
        return len(self._rows)

    def told(self) -> str:
        """Returns how many pairs there are, how many of them are cut, and in how many rows they are, in words."""
        return f"{self._pairs.told()}, in {len(self)} rows"

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many rows, as arrays with a leading axis B; an index past the last gives zeros."""
        some = [self._rows[one] if one < len(self) else [] for one in indices]
        return laid(some, self._length, self._length, self._tokenizer)


def _encoded(examples: Sequence[Pair], tokenizer: Tokenizer) -> list[Encoded]:
    ids = tokenizer.encode_batch([text for one in examples for text in (one.source, one.target)])
    return list(zip(ids[::2], ids[1::2], strict=True))
