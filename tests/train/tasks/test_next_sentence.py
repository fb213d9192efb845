"""Pairs of segments: of which documents they are, that nothing but what they say tells them apart, when they are drawn
anew, and what is summed."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from eval.accuracy import Pairs
from launch.configs import load
from launch.train import check
from model import UserError
from model.families.bert import BERT, BERTConfig
from tests.tiny import write_text
from train.data import ByteTokenizer, batches
from train.data.order import draws
from train.tasks.next_sentence import NextSentence, SegmentPairs
from train.tasks.table import make_task

T = 23
TOKENIZER = ByteTokenizer(["mask", "start", "separator"])
MASK, START, SEP = (TOKENIZER.marks[name] for name in ("mask", "start", "separator"))
SIZES = [90, 1, 2, 37, 0, 20, 21, 64, 3, 41]  # of documents; one of fewer than two tokens makes no pair


def data(sizes: list[int] = SIZES) -> Any:
    """Document d holds 10 d + 0, 10 d + 1, ..., so that a token tells where it is from: ids beyond those of bytes."""
    parts = [np.array([1000 * number + place for place in range(size)] + [-1]) for number, size in enumerate(sizes)]
    offsets = np.cumsum([1, *(size + 1 for size in sizes)])
    stream = np.concatenate([[-1], *parts])
    return SimpleNamespace(
        tokens=lambda split: stream, token_offsets=lambda split: offsets, tokenizer=TOKENIZER, length=T
    )


def segments(row: dict[str, np.ndarray]) -> tuple[list[int], list[int]]:
    """The two segments of a row, whose marks and types are as they should be."""
    tokens = row["tokens"][row["valid"]].tolist()
    first = next(place for place, one in enumerate(tokens) if one == SEP and place)
    assert (tokens[0], tokens[-1]) == (START, SEP)
    types = [0] * (first + 1) + [1] * (len(tokens) - first - 1)
    assert row["types"].tolist() == types + [0] * (T - len(tokens))
    np.testing.assert_array_equal(row["segment_ids"], row["valid"])
    assert not row["valid"][len(tokens) :].any()
    return tokens[1:first], tokens[first + 1 : -1]


def drawn(count: int) -> tuple[SegmentPairs, list[tuple[int, list[int], list[int]]]]:
    """All pairs, each `count` times: (random, A, B)."""
    pairs = SegmentPairs(data(), "train")
    numbers = np.tile(np.arange(len(pairs)), count)
    found = pairs.rows(numbers, draws(np.arange(len(numbers)), 3))
    rows = [{name: x[row] for name, x in found.items()} for row in range(len(numbers))]
    return pairs, [(int(row["random"]), *segments(row)) for row in rows]


def test_a_pair_follows_or_is_of_another_document() -> None:
    pairs, rows = drawn(200)
    assert pairs.told() == f"{len(pairs)} pairs of segments (documents of fewer than two tokens, which are left out: 2)"
    for is_random, first, second in rows:
        for some in (first, second):  # each is a run of one document
            assert some == list(range(some[0], some[0] + len(some)))
            assert some[-1] % 1000 < SIZES[some[0] // 1000]
        follows = second[0] == first[-1] + 1
        assert (first[0] // 1000 != second[0] // 1000) if is_random else follows
    share = np.mean([is_random for is_random, _, _ in rows])
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(rows))


def test_every_document_contributes_and_every_token_is_seen() -> None:
    """By A, or B where it follows: once in a pass in which all follow."""
    pairs, rows = drawn(200)
    once: dict[int, list[int]] = {}
    for number, (is_random, first, second) in enumerate(rows):
        if not is_random:
            once[number % len(pairs)] = first + second
    assert len(once) == len(pairs)
    seen = sorted(token for some in once.values() for token in some)
    assert seen == [1000 * n + place for n, size in enumerate(SIZES) if size > 1 for place in range(size)]
    others = [second[0] // 1000 for is_random, _, second in rows if is_random]
    assert {*others} == {n for n, size in enumerate(SIZES) if size > 1}
    assert max(len(some) for some in once.values()) == T - 3


def test_neither_length_nor_place_tells_them_apart() -> None:
    """Of documents that are long enough: both halves are as long, and B begins where second halves begin."""
    pairs = SegmentPairs(data([400, 397, 311, 290]), "train")
    numbers = np.tile(np.arange(len(pairs)), 100)
    found = pairs.rows(numbers, draws(np.arange(len(numbers)), 3))
    by_kind: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for row in range(len(numbers)):
        first, second = segments({name: x[row] for name, x in found.items()})
        assert len(first) - len(second) in (0, 1)
        by_kind[int(found["random"][row])].append((second[0], len(second)))
    places = [{place for place, _ in by_kind[kind]} for kind in (0, 1)]
    assert len(places[1] - places[0]) <= 4  # the last of a document, where its rest is too short
    sizes = [np.mean([size for _, size in by_kind[kind]]) for kind in (0, 1)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def told(targets_T: np.ndarray) -> tuple[int, ...]:
    """The first segment."""
    return tuple(targets_T[: int(np.argmax(targets_T == SEP))].tolist())


def test_an_epoch_draws_pairs_anew_and_an_evaluation_never(tmp_path: Any) -> None:
    config = load("base", **write_text(tmp_path) | {"family": "bert", "task": "next_sentence"})
    task = make_task(config)
    opened = task.open(config)
    rows = task.rows(opened)
    read = batches(rows, len(rows), seed=3, prefetch=0)
    first, second = next(read), next(read)  # an epoch each
    by_a = [
        {told(row): kind for row, kind in zip(one["targets"], one["random"], strict=True)} for one in (first, second)
    ]
    assert by_a[0].keys() == by_a[1].keys()  # each stretch once
    assert len(by_a[0]) > 0.8 * len(rows)  # some begin with the same words
    assert 0.25 < np.mean([by_a[0][key] != by_a[1][key] for key in by_a[0]]) < 0.75
    again = next(batches(rows, len(rows), seed=3, start=1, prefetch=0))
    for name in first:
        np.testing.assert_array_equal(again[name], second[name])
    measured = task.measured(opened)
    one, both = measured.rows([1]), measured.rows([0, 1, len(measured)])
    for name in one:
        np.testing.assert_array_equal(one[name][0], both[name][1])
        assert not both[name][2].any()
    # Marks are never asked for.
    asked = first["targets"][first["weights"] == 1]
    assert len(asked)
    assert (asked < TOKENIZER.vocab_size - 3).all()
    few = task.measured(opened, 3)
    assert len(few) == 3


def test_sums_are_those_of_numpy(tmp_path: Any) -> None:
    keys = write_text(tmp_path) | {"family": "bert", "task": "next_sentence", "data.length": T}
    config = load("base", **keys)
    task = NextSentence()
    rows = task.measured(task.open(config))
    sizes = BERTConfig(vocab_size=260, max_length=T, head="pair", labels=0, num_layers=1, width=6, num_heads=1, types=2)
    graphdef, params = nnx.split(BERT(sizes, rngs=nnx.Rngs(4)))
    params = jax.tree.map(lambda x: 3 * x, params)
    found = dict(Pairs(jax.jit(task.sums(graphdef)), rows, 16)(params))
    batch = rows.rows(np.arange(len(rows)))
    model = nnx.merge(graphdef, params)
    named = {"tokens_BT": batch["tokens"], "types_BT": batch["types"], "valid_BT": batch["valid"]}
    logits_BTV, follows_B2 = jax.jit(
        lambda named: (lambda both: (model.readout()(both[0]), both[1]))(model.both(**named))
    )(named)
    logits_BTV, follows_B2 = np.asarray(logits_BTV, np.float64), np.asarray(follows_B2, np.float64)
    nats, right, pair_nats, pair_right, total = [], [], [], [], 0.0
    for row in range(len(rows)):
        log_p_2 = follows_B2[row] - np.log(np.exp(follows_B2[row]).sum())
        kind = batch["random"][row]
        pair_nats.append(-log_p_2[kind])
        pair_right.append(log_p_2.argmax() == kind)
        for place in np.flatnonzero(batch["weights"][row]):
            logits_V, target = logits_BTV[row, place], batch["targets"][row, place]
            nats.append(np.log(np.exp(logits_V).sum()) - logits_V[target])
            right.append(logits_V.argmax() == target)
            total += nats[-1] + pair_nats[-1]
    expected = {
        "val/loss": total / len(nats),
        "val/nll": np.mean(nats),
        "val/accuracy": np.mean(right),
        "val/pair_nll": np.mean(pair_nats),
        "val/pair_accuracy": np.mean(pair_right),
    }
    assert 0 < expected["val/pair_accuracy"] < 1
    assert found == pytest.approx(expected, rel=1e-5)


def test_mistakes_are_answered_in_one_sentence() -> None:
    with pytest.raises(UserError, match="the train split has 1 document of two tokens, and pairs of segments need at"):
        SegmentPairs(data([50, 1]), "train")
    for keys, sentence in (
        ({"data.length": 5}, "--config.data.length=5 must be at least 6 "),
        ({"train.z_loss": 1e-4}, "--config.train.z_loss=0.0001: the loss of next_sentence has none; leave it 0."),
        ({"family": "gpt"}, "--config.family='gpt' cannot learn --config.task='next_sentence'; take bert."),
    ):
        with pytest.raises(UserError) as error:
            check(load("base", **{"family": "bert", "task": "next_sentence"} | keys))
        assert str(error.value).startswith(sentence)
