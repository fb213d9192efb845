"""Tags of words: which pieces are asked, what is cut, loss and entities beside plain Python."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from eval.metrics import scores
from eval.scored import Tags
from launch import train
from model.families.bert import BERT, BERTConfig
from tests.tiny import SIZES, call, words
from train.data import ByteTokenizer
from train.data.examples import Corpus, Tagged
from train.data.examples.opened import ExampleData
from train.tasks.tagging import TaggedRows, Tagging

T, NAMES = 13, ("O", "B-X", "I-X")
TOKENIZER = ByteTokenizer(["start", "separator"])
START, SEP = TOKENIZER.marks["start"], TOKENIZER.marks["separator"]
EXAMPLES = [
    Tagged(("a", "bc", "d"), ("B-X", "I-X", "O")),
    Tagged(("abc", "defg", "hi", "k"), ("O", "B-X", "O", "B-X")),  # of which the last two words are cut
    Tagged(("x",), ("B-X",)),
]


def rows() -> TaggedRows:
    corpus: Corpus[Tagged] = Corpus({"train": EXAMPLES, "validation": EXAMPLES}, "f", NAMES)
    return TaggedRows(ExampleData(corpus, TOKENIZER, T), "validation")


def test_the_first_piece_of_a_word_is_asked() -> None:
    found = rows().rows([0, 1, 3])
    tokens_BT, labels_BT, asked_BT = found["tokens"], found["labels"], found["weights"] == 1
    assert tokens_BT[0].tolist() == [START, *b" a bc d", SEP, 0, 0, 0, 0]
    assert np.flatnonzero(asked_BT[0]).tolist() == [1, 3, 6]
    assert labels_BT[0][asked_BT[0]].tolist() == [1, 2, 0]
    assert tokens_BT[1].tolist() == [START, *b" abc defg h", SEP][: T - 1] + [SEP]
    assert labels_BT[1][asked_BT[1]].tolist() == [0, 1, 0]
    assert not any(x[2].any() for name, x in found.items() if name != "positions")
    assert not found["valid"][0, 9:].any()


def test_cut_words_are_told() -> None:
    """Of the rows, with start and separator, 9, 16 and 4 tokens."""
    assert rows().told() == "3 examples, of which 1 have more than --config.data.length=13 tokens and are cut"


def test_loss_and_entities_are_those_of_plain_python() -> None:
    config = BERTConfig(vocab_size=258, max_length=T, head="tag", labels=3, num_layers=1, width=6, num_heads=1)
    graphdef, params = nnx.split(BERT(config, rngs=nnx.Rngs(1)))
    params = jax.tree.map(lambda x: 3 * x, params)
    found = dict(Tags(jax.jit(Tagging().sums(graphdef)), rows(), 2)(params))
    nats, predicted = [], []
    for number in range(3):
        row = rows().rows([number])
        size = int(row["valid"].sum())
        logits_TC = np.asarray(nnx.merge(graphdef, params)(row["tokens"][:, :size])[0], np.float64)
        asked = np.flatnonzero(row["weights"][0])
        log_p = logits_TC - np.log(np.exp(logits_TC).sum(-1, keepdims=True))
        nats += [-log_p[place, row["labels"][0, place]] for place in asked]
        predicted.append(tuple(NAMES[tag] for tag in logits_TC[asked].argmax(-1)))
    assert found["val/loss"] == pytest.approx(np.mean(nats), rel=1e-5)
    assert {name: found[f"val/{name}"] for name in scores(predicted, EXAMPLES)} == scores(predicted, EXAMPLES)
    assert set(found) == set(Tags.NAMES)


@pytest.mark.rest
def test_a_run_learns_tags(tmp_path: Path) -> None:
    lines = [{"words": ["x", f"w{n}", "y"], "tags": ["O", "B-X", "O"]} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    keys: dict[str, Any] = {"family": "bert", "task": "tagging", "data.path": f"{tmp_path}/rows.jsonl"}
    keys |= {"data.dir": f"{tmp_path}/data", "data.length": 16, "data.batch_size": 8, "train.prompt": ""}
    keys |= {"train.steps": 20, "train.evaluate_every": 20, "optimizer.learning_rate": 0.02, "model.norm_place": "pre"}
    outcome = call(train.main, words(tmp_path / "run", SIZES | keys))
    assert outcome.status == 0, outcome.err
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert last["val/f1"] == 1.0
    assert "commonest_tag" in outcome.out
