"""Spans that are taken out of text: how many, where, when they are drawn anew, and what is summed."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.accuracy import Accuracy
from launch.configs import load
from model import UserError
from model.families.table import FAMILIES
from tests.tiers import tiered
from tests.tiny import write_text
from train.data import ByteTokenizer, Tokenizer, batches
from train.experiment import make_experiment, make_model_config
from train.tasks.pairs import laid
from train.tasks.span_corruption import SpanCorruption, SpanRows
from train.tasks.table import make_task

S = 53


class Texts:
    """What `SpanRows` reads of a data set: documents of random bytes, of these sizes."""

    def __init__(self, task: SpanCorruption, length: int, sizes: list[int]) -> None:
        rng = np.random.default_rng(len(sizes))
        self.tokenizer: Tokenizer = ByteTokenizer(task.marks(length))
        self.length, end = length, self.tokenizer.end
        self.documents = [rng.integers(0, end, size) for size in sizes]
        self._stream = np.concatenate([[end], *(np.append(one, end) for one in self.documents)])
        self._offsets = np.cumsum([1, *(size + 1 for size in sizes)])

    def tokens(self, split: str) -> np.ndarray:
        return self._stream

    def token_offsets(self, split: str) -> np.ndarray:
        return self._offsets


SIZES = [200, 1, 2, 3, 0, 61, *range(4, 40), 1, 700]


def made(length: int = S, sizes: list[int] = SIZES, count: int = 0, **keys: Any) -> tuple[SpanRows, Texts]:
    task = SpanCorruption(**keys)
    texts = Texts(task, length, sizes)
    return SpanRows(texts, "validation", task, count), texts  # type: ignore[arg-type]


def pairs_of(batch: dict[str, np.ndarray]) -> Iterator[tuple[list[int], list[int]]]:
    """Source and target of each pair in the order of the rows, read back from the arrays."""
    for row in range(len(batch["tokens"])):
        last = batch["segment_ids"][row].max()
        assert batch["source_segment_ids"][row].max() == last
        for number in range(1, last + 1):
            here, there = (batch[name][row] == number for name in ("segment_ids", "source_segment_ids"))
            yield batch["sources"][row][there].tolist(), batch["targets"][row][here].tolist()


def put_back(source: list[int], target: list[int], vocab: int, end: int) -> tuple[list[int], list[int], list[int]]:
    """The text, and the sizes of what was kept and of what was taken out, in turn: sentinel by sentinel, in a loop."""
    assert source[-1] == end
    assert target[-1] == end
    source, target = source[:-1], target[:-1]
    text, kept, taken, number = [], [0], [], 0
    for token in source:
        if token != vocab - 1 - number:
            assert token < end
            text.append(token)
            kept[-1] += 1
            continue
        at = target.index(token) + 1
        span = []
        while at < len(target) and target[at] < end:
            span.append(target[at])
            at += 1
        text += span
        taken.append(len(span))
        kept.append(0)
        number += 1
    assert len(target) == number + sum(taken)
    assert [token for token in target if token > end] == [vocab - 1 - one for one in range(number)]
    return text, kept, taken


@pytest.mark.parametrize("length", [4, 5, 13, 53, 64, 128])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.5, 1.0), (0.9, 2.5), (0.01, 3.0), (0.3, 100.0)])
def test_spans_put_back_make_the_text(length: int, density: float, mean: float) -> None:
    """Every document once and in order, none with another, and T5's counts for each piece."""
    rows, texts = made(length, noise_density=density, mean_span_length=mean)
    bits = np.random.default_rng(0).integers(0, 2**64, len(rows), np.uint64)
    end, vocab = texts.tokenizer.end, texts.tokenizer.vocab_size
    for draws in (None, bits):
        batch = rows.rows(range(len(rows) + 2), draws if draws is None else np.append(draws, draws[:2]))
        assert not any(x[len(rows) :].any() for x in batch.values())
        assert batch["sources"].shape[1] == length
        documents = iter([one.tolist() for one in texts.documents if len(one) > 1])
        left: list[int] = []
        for source, target in pairs_of(batch):
            left = left or next(documents)
            text, kept, taken = put_back(source, target, vocab, end)
            assert text == left[: len(text)]  # so no piece holds two documents
            left = left[len(text) :]
            n = len(text)
            noise = min(max(round(n * density), 1), n - 1)
            spans = min(max(round(noise / mean), 1), n - noise)
            assert (sum(taken), len(taken)) == (noise, spans)
            assert min(kept[1:-1] + taken) >= 1
        assert not left
        assert next(documents, None) is None
    assert rows.told() == f"{sum(size for size in SIZES if size > 1)} tokens in {len(rows)} rows; documents of one " + (
        "token, which are left out: 2"
    )


def test_arrays_are_those_of_pairs() -> None:
    rows, texts = made()
    batch = rows.rows(range(len(rows)))
    start, end = texts.tokenizer.marks["start"], texts.tokenizer.end
    assert batch["segment_ids"].max() > 1
    for row in range(len(rows)):
        some = {name: x[row : row + 1] for name, x in batch.items()}
        each = [(np.array(source[:-1]), np.array(target[:-1])) for source, target in pairs_of(some)]
        again = laid([each], S, batch["tokens"].shape[1], texts.tokenizer)
        for name, x in some.items():
            np.testing.assert_array_equal(x, again[name], err_msg=name)
        first = (some["positions"] == 0) & (some["segment_ids"] > 0)
        np.testing.assert_array_equal(some["tokens"][first], start)
        later = ((some["positions"] > 0) & (some["segment_ids"] > 0))[:, 1:]
        np.testing.assert_array_equal(some["tokens"][:, 1:][later], some["targets"][:, :-1][later])
        assert (some["targets"] == end).sum() == (some["sources"] == end).sum() == len(each)


@pytest.mark.parametrize(("text", "source", "target"), [(568, 512, 114), (141, 128, 29), (70, 64, 14)])
def test_lengths_are_those_of_t5(text: int, source: int, target: int) -> None:
    """Of its code: raw tokens, inputs and targets; here, arrays are of a half, a quarter, ... of the source."""
    task = SpanCorruption()
    lengths = task.lengths(source)
    assert (lengths.text, *lengths.needs(lengths.text)) == (text, source, target)
    assert lengths.target == source // 4
    assert len(task.marks(source)) == 1 + lengths.spans


@pytest.mark.parametrize("length", [4, 7, 12, 53, 96])
@pytest.mark.parametrize("density", [0.15, 0.5, 0.85])
def test_lengths_hold_the_longest_text_and_no_longer_one(length: int, density: float) -> None:
    task, sizes = SpanCorruption(noise_density=density), range(2, 4 * length)

    def needs(size: int) -> tuple[int, int]:
        noise = min(max(round(size * density), 1), size - 1)
        spans = min(max(round(noise / 3), 1), size - noise)
        return size - noise + spans + 1, noise + spans + 1

    lengths = task.lengths(length)
    assert lengths.text == max(size for size in sizes if max(needs(size)) <= length)
    for size in range(2, lengths.text + 1):
        assert lengths.needs(size) == needs(size)
    assert length % lengths.target == 0
    assert needs(lengths.text)[1] <= lengths.target
    assert (length // lengths.target).bit_count() == 1


def test_rows_are_full() -> None:
    """Of long documents no more is padding than an odd token."""
    rows, _ = made(128, [5000, 3000, 7001])
    batch = rows.rows(range(len(rows) - 1))
    assert (batch["source_segment_ids"] > 0).mean() > 0.97
    assert batch["weights"].mean() > 0.9 * 29 / 32


def test_every_way_to_take_spans_out_is_as_likely() -> None:
    """Of 7 tokens 3 are taken out in 2 spans: 2 ways to cut these, and 10 to choose two of the gaps of 4 that stay."""
    rows, texts = made(16, [7], noise_density=0.45, mean_span_length=2.0)
    draws = np.random.default_rng(7).integers(0, 2**64, 8000, np.uint64)
    counts: dict[Any, int] = {}
    for pair in pairs_of(rows.rows(np.zeros(8000, int), draws)):
        _, kept, taken = put_back(*pair, texts.tokenizer.vocab_size, texts.tokenizer.end)
        counts[(*kept, *taken)] = counts.get((*kept, *taken), 0) + 1
    assert len(counts) == 20
    assert sum((one - 400) ** 2 / 400 for one in counts.values()) < 43.8  # chi squared, 19 degrees, p = .001


def test_an_epoch_is_drawn_anew_and_an_evaluation_never() -> None:
    rows, _ = made()
    read = batches(rows, len(rows), seed=3, prefetch=0)
    first, second = next(read), next(read)  # an epoch each
    words = [{tuple(source) for source, _ in pairs_of(one)} for one in (first, second)]
    assert len(words[0] & words[1]) < 0.5 * len(words[0])  # short documents can be corrupted in few ways
    again = next(batches(rows, len(rows), seed=3, start=1, prefetch=0))
    other = next(batches(rows, len(rows), seed=4, start=1, prefetch=0))
    for name in first:
        np.testing.assert_array_equal(again[name], second[name])
    assert (other["sources"] != second["sources"]).any()
    some, _ = made(count=5)
    whole, few = rows.rows(range(len(rows))), some.rows(range(6))
    assert len(some) == 5
    for name, x in few.items():
        np.testing.assert_array_equal(x[:5], whole[name][np.arange(5) * len(rows) // 5])
        assert not x[5].any()


KINDS = [name for name, kind in FAMILIES.items() if SpanCorruption.HEAD in kind.HEADS]


@functools.cache
def model(family: str, vocab: int) -> tuple[nnx.GraphDef, Any]:
    keys = {"family": family, "task": "span_corruption", "model.num_layers": 2, "model.width": 16, "data.length": S}
    config = make_model_config(load("base", **keys), vocab)
    graphdef, params = nnx.split(config.build(nnx.Rngs(0)))
    return graphdef, jax.tree.map(lambda x: 3 * x, nnx.to_pure_dict(params))


@pytest.mark.parametrize("family", tiered([(one,) for one in KINDS], lambda family: family == "encoder_decoder"))
def test_a_row_costs_what_its_pairs_cost_one_by_one(family: str) -> None:
    """Loss and gradients, sums and not means."""
    rows, texts = made(sizes=[31, 9, 5, 4, 2, 40])
    graphdef, params = model(family, texts.tokenizer.vocab_size)
    loss = SpanCorruption().loss(graphdef, load("base", task="span_corruption").train)

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda params: loss(params, batch, None)["loss"][0])(params)

    packed = rows.rows(range(6))
    each = [[(np.array(source[:-1]), np.array(target[:-1]))] for source, target in pairs_of(packed)]
    assert len(each) == 6 > len(rows) > 1
    alone = laid(each, S, packed["tokens"].shape[1], texts.tokenizer)
    some, other = (run(params, jax.tree.map(jnp.asarray, one)) for one in (packed, alone))
    for one, wanted in zip(jax.tree.leaves(some), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_sums_are_those_of_numpy() -> None:
    """The loss of all that is written, and the accuracy of its text alone, among what is text."""
    rows, texts = made()
    graphdef, params = model("encoder_decoder", texts.tokenizer.vocab_size)
    found = dict(Accuracy(jax.jit(SpanCorruption().sums(graphdef)), rows, 16)(params))
    batch, task = rows.rows(np.arange(len(rows))), SpanCorruption()
    forward = jax.jit(lambda params, batch: nnx.merge(graphdef, params)(**task.inputs(batch)))
    logits = np.asarray(forward(params, jax.tree.map(jnp.asarray, batch)), np.float64)
    written = batch["weights"] == 1
    logits, targets = logits[written], batch["targets"][written]
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
    text = targets < texts.tokenizer.end
    right = (logits[:, : texts.tokenizer.end].argmax(-1) == targets)[text]
    assert (logits.argmax(-1) != logits[:, : texts.tokenizer.end].argmax(-1)).any()
    assert 0 < right.mean() < 1
    assert text.mean() < 0.8
    assert found == pytest.approx({"val/loss": nats.mean(), "val/accuracy": right.mean()}, rel=1e-5)


def test_each_site_is_asked_for_its_own_length() -> None:
    keys = {"family": "encoder_decoder", "task": "span_corruption", "model.width": 16, "data.length": 64}
    experiment = make_experiment(load("base", **keys))
    asked = {name: (one[0].request.T, one[0].request.S) for name, one in experiment.attention.items()}
    assert asked == {"encoder": (64, 64), "decoder": (16, 16), "cross": (16, 16)}
    assert experiment.task.target_length(64) == 16


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"family": "gpt"}, "--config.family='gpt' cannot learn --config.task='span_corruption'; take encoder_decoder"),
        ({"objective.noise_density": 0.0}, "--config.objective.noise_density=0.0 must be at least 1e-06 and below 1."),
        ({"objective.noise_density": 1.0}, "--config.objective.noise_density=1.0 must be"),
        ({"objective.noise_density": math.nan}, "--config.objective.noise_density=nan: a number"),
        ({"objective.mean_span_length": 0.5}, "--config.objective.mean_span_length=0.5 must be at least 1 and"),
        ({"data.length": 3}, "--config.data.length=3 must be at least 4 and"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(keys: dict[str, Any], sentence: str) -> None:
    from launch.train import check

    with pytest.raises(UserError) as error:
        check(load("base", **{"family": "encoder_decoder", "task": "span_corruption"} | keys))
    assert str(error.value).startswith(sentence), error.value


def test_what_shares_sequences_divides_both_texts() -> None:
    keys = {"family": "encoder_decoder", "task": "span_corruption", "data.length": 24, "data.batch_size": 8}
    target = make_task(load("base", **keys)).target_length(24)
    assert 24 % 4 == 0 != target % 4
    sentence = rf"--config.data.length \(what its targets' length divides, too\)={math.gcd(24, target)} does not divide"
    with pytest.raises(UserError, match=sentence):
        make_experiment(load("base", **keys, **{"mesh.fsdp": 2, "mesh.context": 4}))


def test_text_without_two_tokens_to_a_document_is_refused() -> None:
    with pytest.raises(UserError, match=r"^the validation split has no document of two tokens, of which one could be"):
        made(sizes=[1, 0, 1])


def test_the_tokenizer_has_a_sentinel_for_each_span(tmp_path: Any) -> None:
    config = load("base", **write_text(tmp_path) | {"family": "encoder_decoder", "task": "span_corruption"})
    data = make_task(config).open(config)
    marks = data.tokenizer.marks
    assert [*marks] == ["start", "extra_id_2", "extra_id_1", "extra_id_0"]  # of 70 tokens, as the length is 64
    assert marks["extra_id_0"] == data.tokenizer.vocab_size - 1 == make_task(config).vocab_size(config) - 1
