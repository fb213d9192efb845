"""Classes of texts: rows, loss and scores beside plain Python, the names of labels through a run, and mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.scored import Classes
from launch import evaluate, generate, train
from launch.configs import load
from launch.train import check
from model import UserError
from model.families.bert import BERT, BERTConfig
from tests.tiny import SIZES, call, metrics, words
from train.data import ByteTokenizer
from train.data.examples import Corpus, Labelled
from train.data.examples.opened import ExampleData
from train.data.order import draws
from train.tasks.classification import Classification, LabelledRows, of_labels
from train.tasks.regression import Regression
from train.tasks.several_labels import SeveralLabels

T, NAMES = 17, ("cat", "dog", "eel")
TEXTS = ["a", "bb", "a much longer text than fits", "d", "ee"]
TOKENIZER = ByteTokenizer(["start", "separator"])
START, SEP = TOKENIZER.marks["start"], TOKENIZER.marks["separator"]


def data() -> ExampleData:
    examples = [
        Labelled(text, NAMES[number % 3], "a pair of its own" * (number % 2)) for number, text in enumerate(TEXTS)
    ]
    return ExampleData(Corpus({"train": examples, "validation": examples}, "f", NAMES), TOKENIZER, T)


def test_rows_are_cut_and_filled() -> None:
    rows = LabelledRows(data(), "train")
    found = rows.rows([0, 2, 5, 1])
    first, long, beyond, pair = ({name: x[number] for name, x in found.items()} for number in range(4))
    assert first["tokens"][:3].tolist() == [START, ord("a"), SEP]
    assert (first["valid"].sum(), first["labels"], first["weights"]) == (3, 0, 1)
    assert long["tokens"].tolist() == [START, *TEXTS[2].encode()[: T - 2], SEP]
    assert (long["valid"].all(), long["labels"], long["types"].any()) == (True, 2, False)
    assert not any(x.any() for x in beyond.values())
    # The longer of two texts is cut.
    expected = [START, *b"bb", SEP, *b"a pair of its own"[: T - 5], SEP]
    assert pair["tokens"].tolist() == expected
    assert pair["types"].tolist() == [0] * 4 + [1] * (T - 4)
    np.testing.assert_array_equal(found["segment_ids"], found["valid"])
    some = LabelledRows(data(), "validation", 2)
    assert [one.text for one in some.examples] == ["a", TEXTS[2]]
    np.testing.assert_array_equal(some.rows([1])["tokens"][0], long["tokens"])


def test_hidden_tokens_are_drawn_by_place_and_epoch_and_only_in_training() -> None:
    task, plain, B = Classification(hide=0.7), LabelledRows(data(), "train"), 211
    indices, bits = np.arange(B) % 5, draws(np.arange(B), 3)
    whole, found = plain.rows(indices), task.rows(data()).rows(indices, bits)
    np.testing.assert_array_equal(found["segment_ids"], found["valid"])
    for name in ("tokens", "types", "positions", "labels", "weights"):
        np.testing.assert_array_equal(found[name], whole[name])
    marks_BT, seen_BT = np.isin(whole["tokens"], (START, SEP)), found["valid"]
    assert (seen_BT[marks_BT]).all()
    assert not seen_BT[~whole["valid"]].any()
    text_BT = whole["valid"] & ~marks_BT
    count = text_BT.sum()
    assert abs(seen_BT[text_BT].mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / count)  # so many coins, each by itself
    pairs_BT = text_BT[:, 1:] & text_BT[:, :-1]
    both = (seen_BT[:, 1:] & seen_BT[:, :-1])[pairs_BT].mean()
    assert abs(both - 0.09) < 4 * np.sqrt(0.09 * 0.91 / pairs_BT.sum())
    # A row by itself is as in its batch; another epoch draws others; an index past the last hides nothing there is.
    alone = task.rows(data()).rows(indices[7:8], bits[7:8])
    np.testing.assert_array_equal(alone["valid"][0], seen_BT[7])
    later = task.rows(data()).rows(indices, draws(np.arange(B) + B, 3))["valid"]
    assert (later[text_BT] != seen_BT[text_BT]).mean() == pytest.approx(2 * 0.3 * 0.7, abs=0.1)
    assert not task.rows(data()).rows([5], bits[:1])["valid"].any()
    for rows in (task.rows(data()), task.measured(data())):
        np.testing.assert_array_equal(rows.rows(range(5))["valid"], plain.rows(range(5))["valid"])


def test_what_is_cut_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through hidden tokens; of very many, by those looked at: rows 0, 2 and 4 of five, of which row 2 is cut."""
    cut = "5 examples, of which {} have more than --config.data.length=17 tokens and are cut"
    assert Classification(hide=0.7).rows(data()).told() == cut.format(3)
    assert LabelledRows(data(), "validation", 1).told() == "1 examples"
    monkeypatch.setattr("train.data.examples.rows.LOOKED_AT", 3)
    assert LabelledRows(data(), "train").told() == cut.format("about 2")


def test_what_is_hidden_tells_the_model_nothing() -> None:
    config = BERTConfig(
        vocab_size=258, max_length=T, head="class", labels=3, num_layers=1, width=6, num_heads=1, types=2, pool="mean"
    )
    task, graphdef_and_params = Classification(hide=0.5), nnx.split(BERT(config, rngs=nnx.Rngs(0)))
    loss = jax.jit(task.loss(graphdef_and_params[0], load("base").train))
    batch = task.rows(data()).rows(np.arange(5), draws(np.arange(5), 0))
    hidden_BT = ~batch["valid"]
    assert (hidden_BT & LabelledRows(data(), "train").rows(range(5))["valid"]).any()
    other = batch | {"tokens": np.where(hidden_BT, 7, batch["tokens"])}
    seen = batch | {"tokens": np.where(hidden_BT, batch["tokens"], START)}
    first, second, third = (loss(graphdef_and_params[1], one, None)["loss"][0] for one in (batch, other, seen))
    assert first == second
    assert first != third


@pytest.mark.parametrize("task", [Classification, SeveralLabels, Regression])
def test_tokens_of_all_tasks_of_texts_can_be_hidden(task: type[Classification]) -> None:
    labels = {"one": "cat", "several": ("cat",), "number": 1.0}
    example = Labelled("a text of some length", labels[task.FORM])
    some = ExampleData(Corpus({"train": [example]}, "f", NAMES), TOKENIZER, T)
    both = [task(hide=hide).rows(some).rows([0], draws(np.arange(1), 0)) for hide in (0.0, 0.5)]
    np.testing.assert_array_equal(both[0]["labels"], both[1]["labels"])
    assert both[0]["valid"].sum() > both[1]["valid"].sum()


@pytest.mark.parametrize(
    ("task", "hide", "sentence"),
    [
        ("classification", 1.0, "--config.objective.hide=1.0 must be"),
        ("classification", -0.1, "--config.objective.hide=-0.1 must be"),
        ("tagging", 0.5, "--config.objective.hide=0.5 is for labels of whole texts; leave it 0."),
        ("span_qa", 0.5, "--config.objective.hide=0.5 is for labels of whole texts; leave it 0."),
    ],
)
def test_what_cannot_be_hidden_is_refused(task: str, hide: float, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        check(load("base", family="bert", task=task, **{"objective.hide": hide}))


def test_sums_and_scores_are_those_of_numpy() -> None:
    config = BERTConfig(
        vocab_size=258, max_length=T, head="class", labels=3, num_layers=1, width=6, num_heads=1, types=2
    )
    rows, task = LabelledRows(data(), "validation"), Classification()
    both = [nnx.split(BERT(config, rngs=nnx.Rngs(seed))) for seed in (0, 1)]
    graphdef, params_N = both[0][0], jax.tree.map(lambda *x: jnp.stack([3 * one for one in x]), both[0][1], both[1][1])
    sums = jax.jit(jax.vmap(task.sums(graphdef), (0, None)))
    found = dict(Classes(sums, rows, 2)(params_N))  # the last batch has a row of padding
    for seed in range(2):
        params = jax.tree.map(lambda x, seed=seed: x[seed], params_N)
        nats, right = [], []
        for number in range(5):  # one by one, without its padding
            row = rows.rows([number])
            size = int(row["valid"].sum())
            tokens, types = row["tokens"][:, :size], row["types"][:, :size]
            logits = np.asarray(nnx.merge(graphdef, params)(tokens, types_BT=types)[0], np.float64)
            label = int(row["labels"][0])
            nats.append(np.log(np.exp(logits).sum()) - logits[label])
            right.append(logits.argmax() == label)
        assert found["val/loss"][seed] == pytest.approx(np.mean(nats), rel=1e-5)
        assert found["val/accuracy"][seed] == pytest.approx(np.mean(right))
    assert set(found) == set(Classes.NAMES)


def test_smoothed_labels_are_mixed_with_all_alike() -> None:
    logits_BC, labels_B = np.random.default_rng(0).standard_normal((7, 5)), np.arange(7) % 5
    found = of_labels(jnp.asarray(logits_BC, jnp.float32), jnp.asarray(labels_B), 0.2)
    log_p = logits_BC - np.log(np.exp(logits_BC).sum(-1, keepdims=True))
    target_BC = 0.8 * np.eye(5)[labels_B] + 0.2 / 5
    np.testing.assert_allclose(found["loss"], -(target_BC * log_p).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(found["nll"], -log_p[np.arange(7), labels_B], rtol=1e-5)


def own(folder: Path, count: int = 60) -> dict[str, Any]:
    """A run on a file of one's own, whose class is the letter that its text begins with."""
    rows = [{"text": f"{'xyz'[n % 3]} and {n}", "label": NAMES[n % 3]} for n in range(count)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-9]))
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[-9:]))
    keys = {"family": "bert", "task": "classification", "data.path": f"{folder}/*.jsonl", "data.dir": f"{folder}/data"}
    return SIZES | keys | {"data.length": 16, "data.batch_size": 8, "optimizer.learning_rate": 0.02, "train.prompt": ""}


@pytest.mark.rest
def test_a_run_learns_and_is_evaluated_with_its_names(tmp_path: Path) -> None:
    keys, run = (
        own(tmp_path) | {"train.steps": 30, "train.evaluate_every": 30, "model.norm_place": "pre"},
        tmp_path / "run",
    )
    trained = call(train.main, words(run, keys))
    assert trained.status == 0, trained.err
    assert "share of the texts whose class is told (more is better):" in trained.out
    assert "naive_bayes" in trained.out
    passport = json.loads((run / "passport.json").read_text())
    assert sorted(passport["data"]["names"]) == sorted(NAMES)
    told = call(evaluate.main, [f"--workdir={run}"])
    assert "9 examples:" in told.out, told.err
    lines = dict(line.split() for line in told.out.splitlines() if line.startswith("  val/"))
    assert float(lines["val/accuracy"]) > 0.9
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert float(lines["val/loss"]) == pytest.approx(last["val/loss"], abs=1e-3)
    step = metrics(run)[-1]["step"]
    file = run / f"predictions-{step}.jsonl"
    assert told.out.splitlines()[-1] == f"predictions: {file}"
    found = [json.loads(line) for line in file.read_text().splitlines()]
    given = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [{name: one[name] for name in ("text", "label")} for one in found] == given
    assert {one["predicted"] for one in found} <= {*NAMES}
    assert [one["right"] for one in found] == [one["predicted"] == one["label"] for one in found]
    assert float(lines["val/accuracy"]) == pytest.approx(np.mean([one["right"] for one in found]), abs=1e-4)
    file.unlink()
    file.mkdir()  # where no file can be
    blocked = call(evaluate.main, [f"--workdir={run}"])
    assert (blocked.status, blocked.out.splitlines()) == (2, told.out.splitlines()[:-1])
    assert blocked.err.startswith(f"{file} cannot be written (Is a directory): the scores are above; ")
    assert sorted(one.name for one in run.glob(".pred*")) == []
    refused = call(generate.main, [f"--workdir={run}", "--prompt=x"])
    assert refused.status == 2
    assert (
        "does not write; take a run whose --config.task is one of: language_model, heads, translation, " in refused.err
    )
    assert refused.err.endswith(", span_corruption, streamed_text.\n")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"text": "x", "label": "bat"}, "bat"),
        ({"text": "", "label": "cat"}, "empty"),
        ({"text": "x"}, "label"),
        ({"txt": "x", "label": "cat"}, "txt"),
    ],
)
def test_a_bad_line_is_told(tmp_path: Path, line: dict[str, str], sentence: str) -> None:
    keys = own(tmp_path, 20)
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    outcome = call(train.main, words(tmp_path / "run", keys))
    assert outcome.status == 2
    assert "validation.jsonl" in outcome.err
    assert sentence in outcome.err
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_rows_without_room_for_text_are_refused(task: str) -> None:
    with pytest.raises(UserError, match=r"--config.data.length=4 must be at least 5 "):
        check(load("base", family="bert", task=task, **{"data.length": 4}))


def test_text_and_other_examples_are_refused() -> None:
    config = load("base", family="bert", task="classification", **{"data.name": "roles"})
    with pytest.raises(
        UserError, match="--config.data.name='roles' has no .*, which the task takes: give packages, rationales, a TFDS"
    ):
        Classification().open(config)
