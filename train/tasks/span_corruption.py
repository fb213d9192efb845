"""Spans of text that were taken out, told from what is left of it: T5's pre-training (Raffel et al. 2020, section
3.1.4).
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from model.errors import Range, UserError, check_range
from model.families.encoder_decoder import Pairs
from model.vocabulary import token_scores
from train.data import Data, Rows
from train.data.order import mixed
from train.data.sentinels import names
from train.state import Params
from train.tasks.base import Batch, Sums
from train.tasks.pairs import Encoded, OfPairs, laid

_OF_EVALUATION = 0x7370616E  # what the spans of an evaluation are drawn from, beside the number of the row
_LEAST = 2  # tokens that can be corrupted: one is kept, one taken out


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(OfPairs):
    """To write the spans that were taken out of a text, from the text with a mark in place of each.

    Of `a b c d e f` the source may be `a <extra_id_0> d <extra_id_1> f end`, and the target `<extra_id_0> b c
    <extra_id_1> e end`. `data.length` is that of sources; targets are shorter.

    Raises:
        UserError: a key out of its range.
    """

    MARKS: ClassVar[tuple[str, ...]] = ("start",)

    noise_density: float = 0.15  # share of the tokens of a text that is taken out, at least one
    mean_span_length: float = 3.0  # tokens of a span that is taken out, on average

    def __post_init__(self) -> None:
        check_range("config.objective.noise_density", self.noise_density, Range(1e-6, 1, below=True))
        check_range("config.objective.mean_span_length", self.mean_span_length, Range(1, 1e6))

    def counts(self, sizes: Any) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens of texts of these sizes, at least 2, are taken out, and in how many spans.

        Half a token is rounded to an even number of them, as in T5. What is kept has as many spans.
        """
        noise = np.clip(np.rint(np.multiply(sizes, self.noise_density)), 1, np.subtract(sizes, 1)).astype(int)
        spans = np.clip(np.rint(noise / self.mean_span_length), 1, sizes - noise).astype(int)
        return noise, spans

    def lengths(self, S: int) -> "Lengths":
        """What rows with sources of length S have room for."""
        return Lengths(self, S)

    def marks(self, length: int) -> tuple[str, ...]:
        """The start, and a sentinel for each span of the longest text."""
        return (*self.MARKS, *names(self.lengths(length).spans))

    def target_length(self, length: int) -> int:
        """That of arrays which the target of the longest text fits into."""
        return self.lengths(length).target

    def vocab_size(self, config: ConfigDict) -> int:
        """The tokens that the config asks for.

        Raises:
            UserError: the length has no room for three tokens, of which one is taken out.
        """
        check_range("config.data.length", config.data.length, Range(4, 2**24))
        return super().vocab_size(config)

    def rows(self, data: Any) -> Rows:
        """Pieces of documents of which other spans are taken out in each epoch, by `data.seed`."""
        return SpanRows(data, "train", self)

    def measured(self, data: Any, count: int = 0) -> Rows:
        """Those of the validation split, with spans that are the same in every evaluation of every run."""
        return SpanRows(data, "validation", self, count)

    def sums(self, graphdef: nnx.GraphDef) -> Callable[[Params, Batch], Sums]:
        """`nll` in nats per token of the targets, and `accuracy` per token of text in them, sentinels and ends left
        out: how often it is the likeliest one of text. The tokens before are given, and that text goes on.
        """

        def sums(params: Params, batch: Batch) -> Sums:
            model = nnx.merge(graphdef, params)
            x_BTD, targets_BT, weights_BT = model.vectors(Pairs.of(batch)), batch["targets"], batch["weights"]
            readout, V = model.readout(), model.config.vocab_size
            log_z_BT, target_BT, *_ = token_scores(x_BTD, readout, targets_BT)
            end = V - len(self.marks(model.config.max_length)) - 1  # as tokenizers number it
            bias_V = jnp.zeros(V) if readout.bias is None else readout.bias
            of_text = dataclasses.replace(readout, bias=jnp.where(jnp.arange(V) < end, bias_V, -1e9))
            _, score_BT, _, largest_BT = token_scores(x_BTD, of_text, targets_BT)
            text_BT = weights_BT * (targets_BT < end)
            right_BT = (score_BT >= largest_BT).astype(jnp.float32)
            return {
                "nll": (jnp.sum((log_z_BT - target_BT) * weights_BT), jnp.sum(weights_BT)),
                "accuracy": (jnp.sum(right_BT * text_BT), jnp.sum(text_BT)),
            }

        return sums


class Lengths:
    """Of rows whose sources have length S: the longest text that fits, what becomes of it, and the length of targets.

    Attributes:
        text: tokens of the longest text, of which neither source nor target is cut.
        spans: that are taken out of it.
        target: length T of the targets' arrays: S halved as often as they fit and S is even, so that devices which
            share a sequence can share these.
    """

    def __init__(self, task: SpanCorruption, S: int) -> None:
        sizes = np.arange(_LEAST, 2 * S)  # both halves together have room for no more
        noise, spans = task.counts(sizes)
        self._sources, self._targets = sizes - noise + spans + 1, noise + spans + 1  # with their ends
        self.text = int(sizes[max(self._largest(S, S) - _LEAST, 0)])
        self.spans = int(spans[self.text - _LEAST])
        self.source = self.target = S
        while self.target % 2 == 0 and self.target // 2 >= self._targets[self.text - _LEAST]:
            self.target //= 2

    def needs(self, size: int) -> tuple[int, int]:
        """The lengths of source and target of a text of this size, ends included."""
        return int(self._sources[size - _LEAST]), int(self._targets[size - _LEAST])

    def fitting(self) -> list[list[int]]:
        """For each room up to that of a row, in the source and in the target: the size of the largest text that fits;
        below 2: none.
        """
        rooms = (self._sources, self.source), (self._targets, self.target)
        return [(np.searchsorted(one, np.arange(most + 1), "right") + _LEAST - 1).tolist() for one, most in rooms]

    def _largest(self, source: int, target: int) -> int:
        room = min(np.searchsorted(self._sources, source, "right"), np.searchsorted(self._targets, target, "right"))
        return int(room) + _LEAST - 1


class SpanRows(Rows):
    """Rows of pieces of documents, in the order of the text: each piece is as long as a row has room for the pair that
    becomes of it, or as its document. No pair sees another, no span crosses a document's border, nothing is cut off.

    Of a piece of n tokens as many are taken out, in as many spans, as `counts(n)` says, of which no two meet: each way
    to do so is as likely. (T5's code always keeps the first token and takes out the last ones, which would be the same
    in each epoch of a text with one span.) Documents of one token have none to keep, and are left out: `told` counts
    them.

    Attributes:
        length: S, of the sources.
    """

    def __init__(self, data: Data, split: str, task: SpanCorruption, count: int = 0) -> None:
        self._stream, self._tokenizer, self.length = data.tokens(split), data.tokenizer, data.length
        self._task, self._lengths = task, task.lengths(data.length)
        starts, ends = data.token_offsets(split)[:-1], data.token_offsets(split)[1:] - 1  # without the documents' ends
        self._left_out = int((ends - starts == 1).sum())
        long = ends - starts >= _LEAST
        self._starts, self._sizes, self._firsts = _pieces(starts[long].tolist(), ends[long].tolist(), self._lengths)
        rows = len(self._firsts) - 1
        if not rows:
            raise UserError(f"the {split} split has no document of two tokens, of which one could be taken out.")
        self._places = np.arange(count) * rows // count if 0 < count < rows else np.arange(rows)

    def __len__(self) -> int:
        return len(self._places)

    def told(self) -> str:
        """Returns how much they hold, in words."""
        pieces = [slice(*self._firsts[place : place + 2]) for place in self._places]
        left = f"; documents of one token, which are left out: {self._left_out}" if self._left_out else ""
        return f"{sum(int(self._sizes[some].sum()) for some in pieces)} tokens in {len(self)} rows{left}"

    def rows(self, indices: Iterable[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns many rows, as arrays with a leading axis B; an index past the last gives zeros."""
        indices_B = np.asarray(indices, np.int64)
        places_B = self._places[np.minimum(indices_B, len(self) - 1)]
        bits_B = mixed(places_B.astype(np.uint64) + _OF_EVALUATION) if draws is None else draws
        some = [
            self._pairs(int(place), bits) if index < len(self) else []
            for index, place, bits in zip(indices_B, places_B, bits_B, strict=True)
        ]
        return laid(some, self.length, self._lengths.target, self._tokenizer)

    def _pairs(self, place: int, bits: np.uint64) -> list[Encoded]:
        pieces = slice(*self._firsts[place : place + 2])
        sizes, starts = self._sizes[pieces], self._starts[pieces]
        bits_N = mixed(bits + np.arange(sizes.sum(), dtype=np.uint64))
        parts = np.split(bits_N, np.cumsum(sizes)[:-1])
        return [
            self._corrupted(self._stream[start : start + size].astype(np.int32), part)
            for start, size, part in zip(starts, sizes, parts, strict=True)
        ]

    def _corrupted(self, tokens_N: np.ndarray, bits_N: np.ndarray) -> Encoded:
        noise, spans = (int(one) for one in self._task.counts(len(tokens_N)))
        sizes_K = np.diff(_some(noise - 1, spans - 1, bits_N[:noise]) + 1, prepend=0, append=noise)
        # Each span stands in a gap of its own between tokens that are kept, before the first or behind the last.
        gaps_K = _some(len(tokens_N) - noise + 1, spans, mixed(bits_N))
        first_N = gaps_K + np.cumsum(sizes_K) - sizes_K
        taken_N = np.zeros(len(tokens_N), bool)
        taken_N[np.repeat(gaps_K, sizes_K) + np.arange(noise)] = True
        sentinels_K = self._tokenizer.vocab_size - 1 - np.arange(spans)  # as `names` has them
        marked_N = np.insert(tokens_N, first_N, sentinels_K)
        return marked_N[~np.insert(taken_N, first_N, False)], marked_N[np.insert(taken_N, first_N, True)]


def _pieces(starts: list[int], ends: list[int], lengths: Lengths) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the pieces of documents begin, how long they are, and the number of the first piece of each row, and of
    one behind the last.
    """
    by_source, by_target = lengths.fitting()
    places: list[int] = []
    sizes: list[int] = []
    firsts: list[int] = []
    source = target = 0  # what is left of the row: of none yet
    for start, end in zip(starts, ends, strict=True):
        while end - start >= _LEAST:
            size = min(end - start, by_source[source], by_target[target])
            if size == end - start - 1:  # of which one could not be corrupted
                size -= 1
            if size < _LEAST:
                firsts.append(len(places))
                source, target = lengths.source, lengths.target
                continue
            places.append(start)
            sizes.append(size)
            needs = lengths.needs(size)
            source, target, start = source - needs[0], target - needs[1], start + size
    return np.array(places, np.int64), np.array(sizes, np.int64), np.array([*firsts, len(places)], np.int64)


def _some(total: int, count: int, bits: np.ndarray) -> np.ndarray:
    """So many of the numbers below the total, in order; each choice is as likely."""
    return np.sort(np.argsort(bits[:total])[:count])
