"""What faithfulness is measured on: which rows, tokens and answers, by hand."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.explain.faithfulness.validation import kind_of_target, validation
from eval.explain.targets import Target
from model.families.encoder_decoder import Pairs
from tests.eval.explain.bag import V, bag
from tests.eval.explain.cases import case
from train.data.tokenizers import ByteTokenizer
from train.tasks.language_model import LanguageModel

RNG = np.random.default_rng(0)


class Rows:
    """Arrays by name as a data set, its own rows, and those that are measured."""

    def __init__(self, **batch: np.ndarray) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["tokens"])

    def measured(self, count: int) -> "Rows":
        return Rows(**self.rows(np.arange(min(count, len(self)))))

    def rows(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        return {name: x[numbers] for name, x in self.batch.items()}


@dataclasses.dataclass(frozen=True)
class Asking:
    """A task that answers by a head, of rows as they are given."""

    HEAD: str = "class"
    FORM: str = "one"

    def measured(self, data: Rows, count: int) -> Rows:
        return data.measured(count)

    def inputs(self, batch: Any) -> dict[str, Any]:
        return {"tokens_BT": batch["tokens"], "valid_BT": batch["valid"]}


class Translating(Asking):
    def inputs(self, batch: Any) -> dict[str, Any]:
        return {"pairs": Pairs.of(batch)}


def run_of(task: Any, model: Any, folder: Path = Path(), **batch: np.ndarray) -> Any:
    """What is asked of a run, after two steps."""
    return SimpleNamespace(
        **{"folder": folder, "model": model, "step": 2, "data": Rows(**batch), "tokenizer": ByteTokenizer()},
        config=SimpleNamespace(train=SimpleNamespace(seeds=1)),
        experiment=SimpleNamespace(task=task),
    )


def test_as_many_rows_and_tokens_are_measured_as_are_said() -> None:
    """Of 64 examples the first 64 tokens: and of several labels each is a question of its own."""
    model, tokens_BT = bag(2)[0], RNG.integers(0, V, (71, 67))
    batch = {"tokens": tokens_BT, "valid": np.arange(67) < RNG.integers(1, 68, (71, 1))}
    one = validation(run_of(Asking(), model, **batch), "class")
    np.testing.assert_array_equal(one.inputs["tokens_BT"], tokens_BT[:64, :64])
    np.testing.assert_array_equal(one.inputs["valid_BT"], batch["valid"][:64, :64])
    several = validation(run_of(Asking(FORM="several"), model, **batch), "class")
    logits_B2 = np.asarray(model(**one.inputs), np.float64)
    odds_B2 = np.exp(logits_B2 - logits_B2.max(1, keepdims=True))
    likeliest = {"one": odds_B2.max(1) / odds_B2.sum(1), "several": 1 / (1 + np.exp(-logits_B2.max(1)))}
    for asked, want_B in zip((one, several), likeliest.values(), strict=True):
        np.testing.assert_array_equal(asked.target.answers_BP[:, 0], logits_B2.argmax(1))
        np.testing.assert_allclose(asked.target.probability(model, asked.inputs), want_B, rtol=1e-4)


@pytest.mark.rest
def test_of_tags_that_of_the_first_word_is_asked_about() -> None:
    model, inputs, _ = case("bert-tagging")
    weights_BT = np.zeros(inputs["tokens_BT"].shape, np.float32)
    weights_BT[[0, 0, 1, 2], [2, 3, 1, 4]] = 1
    batch = {"tokens": np.asarray(inputs["tokens_BT"]), "valid": np.asarray(inputs["valid_BT"]), "weights": weights_BT}
    found = validation(run_of(Asking("tag"), model, **batch), "tag").target
    assert found.places_BP.tolist() == [[2], [1], [4]]
    tags_B = np.asarray(model(**inputs))[np.arange(3), [2, 1, 4]].argmax(-1)
    np.testing.assert_array_equal(found.answers_BP[:, 0], tags_B)


SIZES = [[5, 4, 2], [3, 3, 3, 2], [3, 8], [4, 3, 3], [3]]  # of the documents of windows of 11 tokens
LAST = [(0, 5), (6, 9), (3, 11), (0, 4), (0, 3)]  # where the longest begins and ends, of those as long the last
FOLLOWED = {0: [1, 2, 3], 2: [7, 8, 9], 3: [0, 1, 2]}  # rows of more than 3 tokens, and the places before their last 3


@pytest.mark.rest
def test_packed_windows_ask_of_their_longest_document_alone() -> None:
    """The next token behind it, beside the second likeliest, or its own last three: with no other document in it."""
    model = case("gpt-language_model", **{"data.length": 11})[0]
    ids_BT = np.stack([np.pad(np.repeat(np.arange(len(s)) + 1, s), (0, 11 - sum(s))) for s in SIZES])
    tokens_BT, zeros_BT = RNG.integers(0, 19, ids_BT.shape), np.zeros(ids_BT.shape, np.int32)
    batch = {"tokens": tokens_BT, "segment_ids": ids_BT, "positions": zeros_BT + np.arange(11)}
    run = run_of(LanguageModel(), model, **batch)
    asked = {kind: validation(run, kind) for kind in ("token", "token against another", "continuation")}
    for kind, one in asked.items():
        rows = [*FOLLOWED] if kind == "continuation" else range(len(SIZES))
        own_BT = [[first <= place < last for place in range(11)] for first, last in (LAST[row] for row in rows)]
        np.testing.assert_array_equal(one.inputs["valid_BT"], own_BT)
        np.testing.assert_array_equal(one.inputs["tokens_BT"], tokens_BT[[*rows]])
        assert one.baseline["embedding"].shape[:2] == (len(rows), 11)
    logits_BTV = np.asarray(model(**asked["token"].inputs), np.float64)
    ordered_BV = logits_BTV[np.arange(5), [last - 1 for _, last in LAST]].argsort(-1)
    for kind in ("token", "token against another"):
        np.testing.assert_array_equal(asked[kind].target.places_BP[:, 0], [last - 1 for _, last in LAST])
        np.testing.assert_array_equal(asked[kind].target.answers_BP[:, 0], ordered_BV[:, -1])
    assert asked["token"].target.against_BP is None
    np.testing.assert_array_equal(asked["token against another"].target.against_BP[:, 0], ordered_BV[:, -2])
    whole = asked["continuation"]
    assert whole.target.of_all
    np.testing.assert_array_equal(whole.target.places_BP, [*FOLLOWED.values()])
    odds_BTV = np.exp(logits_BTV) / np.exp(logits_BTV).sum(-1, keepdims=True)
    want_B = [np.prod([odds_BTV[row, at, tokens_BT[row, at + 1]] for at in some]) for row, some in FOLLOWED.items()]
    np.testing.assert_allclose(whole.target.probability(model, whole.inputs), want_B, rtol=1e-4)


@pytest.mark.rest
def test_of_pairs_what_is_written_goes_on() -> None:
    """The last three tokens of the second text, and none of those that are as short."""
    model = case("encoder_decoder-translation", **{"data.length": 11})[0]
    sides = {name: RNG.integers(0, 19, (3, size)) for name, size in (("sources", 11), ("tokens", 7))}
    sizes = {"source_segment_ids": [[11], [2], [5]], "segment_ids": [[7], [3], [5]]}
    ids = {name: (np.arange(sides[side].shape[1]) < sizes[name]) + 0 for name, side in zip(sizes, sides, strict=True)}
    found = validation(run_of(Translating("target"), model, **sides, **ids), "continuation")
    np.testing.assert_array_equal(found.inputs["pairs"].sources_BS, sides["sources"][[0, 2]])
    np.testing.assert_array_equal(found.inputs["pairs"].segment_ids_BT, ids["segment_ids"][[0, 2]])
    assert found.target.places_BP.tolist() == [[3, 4, 5], [1, 2, 3]]
    np.testing.assert_array_equal(found.target.answers_BP, [sides["tokens"][0, 4:7], sides["tokens"][2, 2:5]])
    assert found.target.of_all


def test_a_target_beside_another_is_of_a_kind_of_its_own() -> None:
    one = bag(3)[2]
    beside = Target(one.places_BP, one.answers_BP, against_BP=1 - one.answers_BP)
    assert [kind_of_target(target, "class") for target in (one, beside)] == ["class", "class against another"]
