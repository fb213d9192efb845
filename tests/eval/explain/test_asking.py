"""What is asked is what is explained: texts as rows, answers at their places."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval.explain.asking import asked_for, continued, masked, read
from eval.runs import Run
from model.errors import UserError
from tests.eval.explain.runs import logits, made, shares


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asked")


@pytest.fixture(scope="module")
def gpt(folder: Path) -> Run:
    return made(folder, "gpt", "language_model")


@pytest.fixture(scope="module")
def masks(folder: Path) -> Run:
    return made(folder, "bert", "masked_lm")


def rows(run: Run, texts: Sequence[str]) -> list[list[int]]:
    return [[run.tokenizer.end, *text.encode()] for text in texts]


def test_a_continuation_is_all_of_its_tokens_behind_each_text(gpt: Run) -> None:
    texts, more = ["ab", "abc"], "xyz"
    given, target, kind = continued(gpt, [{"text": text} for text in texts], more)
    assert (kind, given.tokens["embedding"]) == ("continuation", rows(gpt, ["abxy", "abcxy"]))
    parts_BTV, want = shares(logits(gpt, given.inputs)), []
    for row, text in enumerate(texts):
        each = [parts_BTV[row, len(text) + number, letter] for number, letter in enumerate(more.encode())]
        want.append(np.prod(each))  # behind `end` and the text, and then behind each letter of its own
    np.testing.assert_allclose(target.value(gpt.model, given.inputs), np.log(want), rtol=1e-4)


def test_a_continuation_of_what_is_written_of_a_source(folder: Path) -> None:
    run = made(folder, "encoder_decoder", "translation")
    given, target, _ = continued(run, [{"source": "abc", "target": "x"}, {"source": "d"}], "yz")
    start = run.tokenizer.marks["start"]
    assert given.tokens["decoder.embedding"] == [[start, *b"xy"], [start, *b"y"]]
    assert given.tokens["encoder.embedding"] == [[*b"abc", run.tokenizer.end], [*b"d", run.tokenizer.end]]
    assert np.asarray(target.places_BP).tolist() == [[1, 2], [0, 1]]
    assert np.asarray(target.answers_BP).tolist() == [[*b"yz"]] * 2
    assert target.of_all


def test_one_answer_is_told_from_another(gpt: Run) -> None:
    """The one that is named, or the likeliest, is the answer; `against` is what it is told from; `at` is where."""
    given = read(gpt, [{"text": "ab"}, {"text": "abcde"}])
    logits_BTV = logits(gpt, given.inputs)
    for name, at in (("x", None), ("", None), ("", 1)):
        found, target, kind = asked_for(gpt, given, at=at, target=name, against="(end)")
        places = [2, 5] if at is None else [at, at]
        answers = [ord("x")] * 2 if name else logits_BTV[[0, 1], places].argmax(-1).tolist()
        assert (found, kind) == (given, "token")
        assert np.asarray(target.places_BP)[:, 0].tolist() == places
        assert np.asarray(target.answers_BP)[:, 0].tolist() == answers
        assert target.against_BP is not None
        assert np.asarray(target.against_BP)[:, 0].tolist() == [gpt.tokenizer.end] * 2
    less_B = logits_BTV[[0, 1], places, answers] - logits_BTV[[0, 1], places, gpt.tokenizer.end]
    np.testing.assert_allclose(target.value(gpt.model, given.inputs), less_B, rtol=1e-4)


@pytest.mark.rest
def test_the_token_at_a_mask_is_asked_for(masks: Run) -> None:
    """The first that is masked, or the last token, or the one at a place: what is none is masked."""
    given, mask = read(masks, [{"text": "abc"}, {"text": "a<mask>c<mask>"}]), masks.tokenizer.marks["mask"]
    end = masks.tokenizer.end
    for at, places, tokens in (
        (None, [3, 2], [[end, *b"ab", mask], [end, *b"a", mask, *b"c", mask]]),
        (1, [1, 1], [[end, mask, *b"bc"], [end, mask, mask, *b"c", mask]]),
    ):
        found, target, _ = asked_for(masks, given, at=at)
        assert np.asarray(target.places_BP)[:, 0].tolist() == places
        assert found.tokens["embedding"] == tokens
        np.testing.assert_array_equal(found.inputs["tokens_BT"], found.batch["tokens"])
        said_BV = logits(masks, found.inputs)[[0, 1], places]
        assert np.asarray(target.answers_BP)[:, 0].tolist() == said_BV.argmax(-1).tolist()
    assert given.tokens["embedding"][0] == [end, *b"abc"]


def test_of_two_texts_the_last_token_is_masked_and_not_the_mark_behind_it(folder: Path) -> None:
    run = made(folder, "bert", "next_sentence", **{"model.types": 2})
    found, places_B = masked(
        run, read(run, [{"text": "abc", "second_text": "de"}, {"text": "a", "second_text": "b"}]), None
    )
    mask, start, separator = (run.tokenizer.marks[name] for name in ("mask", "start", "separator"))
    assert places_B.tolist() == [6, 3]
    first, second = found.tokens["embedding"]
    assert first == [start, *b"abc", separator, *b"d", mask, separator]
    assert second == [start, *b"a", separator, mask, separator]


@pytest.mark.rest
def test_the_tag_of_the_first_word_is_asked_for(folder: Path) -> None:
    run = made(folder, "bert", "tagging", "O", "B-X", "I-X")
    given = read(run, [{"words": "xy z"}, {"words": ["z"]}])
    said_BTV = logits(run, given.inputs)
    for at, place in ((None, 1), (2, 2)):
        _, target, kind = asked_for(run, given, at=at)
        assert (kind, np.asarray(target.places_BP)[:, 0].tolist()) == ("tag", [place, place])
        assert np.asarray(target.answers_BP)[:, 0].tolist() == said_BTV[:, place].argmax(-1).tolist()
    assert np.asarray(asked_for(run, given, target="I-X")[1].answers_BP).tolist() == [[2], [2]]
    with pytest.raises(UserError, match=r"--against=X is none of the 3 classes \(O, B-X, I-X\)"):
        asked_for(run, given, against="X")
