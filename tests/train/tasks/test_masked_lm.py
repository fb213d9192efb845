"""Masked tokens: which are chosen, what stands in their place, when they are drawn anew, and what is summed."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from eval.accuracy import Accuracy
from launch.configs import load
from model import UserError
from model.families.bert import BERT, BERTConfig
from tests.tiny import write_text
from train.data import ByteTokenizer, Windows, batches
from train.tasks.masked_lm import MaskedLM, MaskedRows
from train.tasks.table import make_task

T, WINDOWS = 53, 40
TOKENIZER = ByteTokenizer(["mask"])
MASK = TOKENIZER.marks["mask"]


def windows(seed: int = 0) -> Windows:
    """Documents of words of letters, with ends between them and padding at last."""
    rng, text = np.random.default_rng(seed), []
    while len(text) < T * (WINDOWS - 1) + T // 3:
        text += [TOKENIZER.end, *b" ".join(rng.bytes(3).hex().encode()[: rng.integers(1, 7)] for _ in range(11))]
    stream = np.array([*text[: T * (WINDOWS - 1) + T // 3], TOKENIZER.end])
    return Windows(stream, TOKENIZER.end, T, len(stream))


def drawn(count: int = 50, **keys: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """All windows as they are, and as they are masked, `count` times anew."""
    rows, places = MaskedRows(windows(), TOKENIZER, MaskedLM(**keys)), np.tile(np.arange(WINDOWS), count)
    bits = np.random.default_rng(1).integers(0, 2**64, len(places), np.uint64)
    return windows().rows(places), rows.rows(places, bits)


@pytest.mark.parametrize("share", [0.15, 0.5, 1e-6])
def test_the_share_is_exact_and_each_kind_as_frequent_as_it_should_be(share: float) -> None:
    plain, found = drawn(share=share)
    open_BT = (plain["tokens"] != TOKENIZER.end) & (plain["segment_ids"] > 0)
    chosen_BT = found["weights"] == 1
    assert not (chosen_BT & ~open_BT).any()
    expected_B = np.maximum(1, np.rint(share * open_BT.sum(axis=1)))
    np.testing.assert_array_equal(chosen_BT.sum(axis=1), expected_B)
    np.testing.assert_array_equal(found["targets"], plain["tokens"])
    for name in ("segment_ids", "positions"):
        np.testing.assert_array_equal(found[name], plain[name])
    np.testing.assert_array_equal(found["tokens"][~chosen_BT], plain["tokens"][~chosen_BT])
    if share == 0.15:
        seen, stood = found["tokens"][chosen_BT], plain["tokens"][chosen_BT]
        kinds = np.mean(seen == MASK), np.mean(seen == stood), np.mean((seen != MASK) & (seen != stood))
        # A token that is drawn for a place may be the one that stood there.
        expected = 0.8, 0.1 + 0.1 / 256, 0.1 - 0.1 / 256
        np.testing.assert_allclose(kinds, expected, atol=4 * np.sqrt(0.16 / len(seen)))
        others = seen[(seen != MASK) & (seen != stood)]
        assert set(np.unique(others)) > set(range(0, 256, 5))
        assert others.max() < MASK
        # Every place that may be chosen is as likely as the others of its row.
        by_place = chosen_BT.reshape(50, WINDOWS, T).mean(axis=0)[open_BT[:WINDOWS]]
        assert abs(by_place.mean() - 0.15) < 0.01
        assert by_place.max() < 0.15 + 5 * np.sqrt(0.15 * 0.85 / 50)


def test_whole_words_are_chosen_whole() -> None:
    plain, found = drawn(whole_words=True)
    chosen_BT, tokens_BT = found["weights"] == 1, plain["tokens"]
    is_letter_BT = (tokens_BT != TOKENIZER.end) & (tokens_BT != ord(" ")) & (plain["segment_ids"] > 0)
    inside_BT = (
        is_letter_BT[:, 1:] & is_letter_BT[:, :-1] & (plain["segment_ids"][:, 1:] == plain["segment_ids"][:, :-1])
    )
    np.testing.assert_array_equal(chosen_BT[:, 1:][inside_BT], chosen_BT[:, :-1][inside_BT])
    open_B = ((tokens_BT != TOKENIZER.end) & (plain["segment_ids"] > 0)).sum(axis=1)
    most_B = np.maximum(1, np.rint(0.15 * open_B))
    assert (chosen_BT.sum(axis=1) <= most_B).all()
    assert chosen_BT.sum() > 0.9 * most_B.sum()


def test_an_epoch_is_masked_anew_and_an_evaluation_never() -> None:
    rows = MaskedRows(windows(), TOKENIZER, MaskedLM())
    read = batches(rows, WINDOWS, seed=3, prefetch=0)
    first, second = next(read), next(read)  # an epoch each
    by_text = [{row.tobytes(): place for place, row in enumerate(one["targets"])} for one in (first, second)]
    same = [np.array_equal(first["weights"][by_text[0][key]], second["weights"][by_text[1][key]]) for key in by_text[0]]
    assert np.mean(same) < 0.1
    again = next(batches(rows, WINDOWS, seed=3, start=1, prefetch=0))
    other = next(batches(rows, WINDOWS, seed=4, start=1, prefetch=0))
    for name in first:
        np.testing.assert_array_equal(again[name], second[name])
    assert (other["tokens"] != second["tokens"]).any()
    one, both = rows.rows([5]), rows.rows([4, 5, WINDOWS])
    for name in one:
        np.testing.assert_array_equal(one[name][0], both[name][1])
    assert not both["weights"][2].any()  # past the last: padding


def test_sums_are_those_of_numpy() -> None:
    config = BERTConfig(vocab_size=257, max_length=T, head="token", labels=0, num_layers=1, width=6, num_heads=1)
    model, rows = BERT(config, rngs=nnx.Rngs(10)), MaskedRows(windows(), TOKENIZER, MaskedLM())
    graphdef, params = nnx.split(model)
    params = jax.tree.map(lambda x: 3 * x, params)
    found = dict(Accuracy(jax.jit(MaskedLM().sums(graphdef)), rows, 16)(params))
    batch = rows.rows(np.arange(WINDOWS))
    forward = jax.jit(lambda tokens, ids, positions: nnx.merge(graphdef, params)(tokens, ids, positions))
    logits = np.asarray(forward(batch["tokens"], batch["segment_ids"], batch["positions"]), np.float64)
    chosen = batch["weights"] == 1
    logits, targets = logits[chosen], batch["targets"][chosen]
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(targets)), targets]
    expected = {"val/loss": nats.mean(), "val/accuracy": np.mean(logits.argmax(-1) == targets)}
    assert 0 < expected["val/accuracy"] < 1
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"task": "masked"}, "--config.task='masked' is not one of: language_model, heads, masked_lm"),
        ({"task": "masked_lm"}, "--config.family='gpt' cannot learn --config.task='masked_lm'; take bert."),
        ({"family": "bert"}, "--config.family='bert' cannot learn --config.task='language_model'; take gpt"),
        ({"objective.share": 0.3}, "--config.objective.share: there is no such key"),
        ({"family": "bert", "task": "masked_lm", "objective.share": 0.0}, "--config.objective.share=0.0 must be"),
        (
            {"family": "bert", "task": "masked_lm", "objective.replaced": 0.3},
            "--config.objective.masked=0.8 and --config.objective.replaced=0.3 make more than 1; lower one of them.",
        ),
    ],
)
def test_mistakes_are_answered_in_one_sentence(keys: dict[str, Any], sentence: str) -> None:
    from launch.train import check

    with pytest.raises(UserError) as error:
        check(load("base", **keys))
    assert str(error.value).startswith(sentence), error.value


def test_the_tokenizer_of_a_run_has_the_marks_of_its_task(tmp_path: Any) -> None:
    keys = write_text(tmp_path) | {"family": "bert", "task": "masked_lm"}
    for kind in ("bytes", "bpe"):
        config = load("base", **keys | {"data.tokenizer": kind, "data.vocab_size": 300})
        task = make_task(config)
        tokenizer = task.open(config).tokenizer
        plain = load(
            "base", **keys | {"data.tokenizer": kind, "data.vocab_size": 300, "family": "gpt", "task": "language_model"}
        )
        without = make_task(plain).open(plain).tokenizer
        assert tokenizer.marks == {"mask": without.vocab_size}
        assert tokenizer.vocab_size == without.vocab_size + 1
        assert tokenizer.encode("def main") == without.encode("def main")
        assert tokenizer.decode([tokenizer.marks["mask"], *tokenizer.encode("x")]) == "x"
        assert tokenizer.fingerprint != without.fingerprint
        tokenizer.save(tmp_path / "tokenizer.json")
        from train.data import load_tokenizer

        again = load_tokenizer(tmp_path / "tokenizer.json")
        assert (again.marks, again.fingerprint) == (tokenizer.marks, tokenizer.fingerprint)
