"""Several labels and numbers: rows, loss and scores beside NumPy, and runs on a file of one's own."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.metrics import scores
from eval.scored import Numbers, Several
from launch import evaluate, train
from launch.configs import load
from launch.train import check
from model import UserError
from model.families.bert import BERT, BERTConfig
from tests.tiny import SIZES, call, metrics, words
from train.data import ByteTokenizer
from train.data.examples import Corpus, Labelled
from train.data.examples.opened import ExampleData
from train.tasks.classification import Classification
from train.tasks.regression import NumberRows, Regression
from train.tasks.several_labels import SeveralLabels, SeveralRows

T, NAMES = 13, ("a", "b", "c")
LABELS: dict[str, list[Any]] = {
    "several_labels": [("c", "a"), (), ("b",), ("a", "b", "c"), ("a",)],
    "regression": [0.5, -2.0, 4.25, 1.0, 3.0],
}
TASKS: dict[str, Any] = {
    "several_labels": (SeveralLabels(), SeveralRows, Several),
    "regression": (Regression(), NumberRows, Numbers),
}


def examples(task: str) -> list[Labelled]:
    return [Labelled(f"{n} {n}", label, "w" * (n % 2)) for n, label in enumerate(LABELS[task])]


def rows(task: str) -> Any:
    some = examples(task)
    names = NAMES if task == "several_labels" else ("number",)
    corpus: Corpus[Labelled] = Corpus({"train": some, "validation": some}, "f", names)
    return TASKS[task][1](ExampleData(corpus, ByteTokenizer(["start", "separator"]), T), "validation")


def test_rows() -> None:
    several = rows("several_labels").rows([0, 1, 5])
    assert several["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert several["weights"].tolist() == [1, 1, 0]
    numbers = rows("regression").rows([1, 2])
    assert (numbers["labels"].tolist(), numbers["labels"].dtype) == ([-2.0, 4.25], np.float32)


@pytest.mark.parametrize("name", TASKS)
def test_sums_and_scores_are_those_of_numpy(name: str) -> None:
    task, _, evaluator = TASKS[name]
    labels = 3 if name == "several_labels" else 1
    config = BERTConfig(vocab_size=258, max_length=T, head="class", labels=labels, num_layers=1, width=6, num_heads=1)
    both = [nnx.split(BERT(config, rngs=nnx.Rngs(seed))) for seed in (0, 1)]
    graphdef, params_N = both[0][0], jax.tree.map(lambda *x: jnp.stack([3 * one for one in x]), both[0][1], both[1][1])
    made = evaluator(jax.jit(jax.vmap(task.sums(graphdef), (0, None))), rows(name), 2)
    found, lines = dict(made(params_N)), list(made.records(made.totals(params_N)))
    for seed in range(2):
        params, losses, predicted = jax.tree.map(lambda x, seed=seed: x[seed], params_N), [], list[Any]()
        for number, label in enumerate(LABELS[name]):  # one by one, without its padding
            row = rows(name).rows([number])
            size = int(row["valid"].sum())
            logits_C = np.asarray(nnx.merge(graphdef, params)(row["tokens"][:, :size])[0], np.float64)
            if name == "regression":
                losses.append((logits_C[0] - label) ** 2)
                predicted.append(float(logits_C[0]))
            else:
                p_C = 1 / (1 + np.exp(-logits_C))
                y_C = np.array([name in label for name in NAMES])
                losses.append(-np.mean(np.log(np.where(y_C, p_C, 1 - p_C))))
                predicted.append(tuple(name for name, p in zip(NAMES, p_C, strict=True) if p > 0.5))
        assert found["val/loss"][seed] == pytest.approx(np.mean(losses), rel=1e-5)
        for metric, value in scores(predicted, examples(name)).items():
            assert found[f"val/{metric}"][seed] == pytest.approx(value, rel=1e-4)
        if seed == 0:
            answers = [line["predicted"] for line in lines]
            assert answers == (pytest.approx(predicted, rel=1e-4) if name == "regression" else predicted)
    assert set(found) == set(evaluator.NAMES)


def test_smoothed_labels_are_mixed_with_both_answers_alike() -> None:
    rng = np.random.default_rng(0)
    logits_BC, labels_BC = rng.standard_normal((7, 3)), rng.integers(0, 2, (7, 3))
    found = SeveralLabels().judged(jnp.asarray(logits_BC, jnp.float32), jnp.asarray(labels_BC), 0.2)
    p_BC, y_BC = 1 / (1 + np.exp(-logits_BC)), 0.8 * labels_BC + 0.1
    nats_BC = -(y_BC * np.log(p_BC) + (1 - y_BC) * np.log(1 - p_BC))
    np.testing.assert_allclose(found["loss"], nats_BC.mean(-1), rtol=1e-5)
    exact_B = ((p_BC > 0.5) == labels_BC).all(-1)
    assert 0 < exact_B.mean() < 1
    np.testing.assert_array_equal(found["exact_match"], exact_B)


def own(folder: Path, task: str) -> dict[str, Any]:
    """A run on texts of two letters: which of them are its labels, or how many there are."""
    letters = [("xyz"[n % 3], "uvw"[n // 3 % 3]) for n in range(80)]
    said = [[a, b] if n % 4 else [a] for n, (a, b) in enumerate(letters)]
    lines = [
        {"text": f"{' '.join(some)} {n}", "label": some if task == "several_labels" else len(some) / 2}
        for n, some in enumerate(said)
    ]
    for split, some in (("train", lines[:-11]), ("validation", lines[-11:])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in some))
    keys = {"family": "bert", "task": task, "data.path": f"{folder}/*.jsonl", "data.dir": f"{folder}/data"}
    return SIZES | keys | {"data.length": 16, "data.batch_size": 8, "train.prompt": "", "model.norm_place": "pre"}


@pytest.mark.rest
@pytest.mark.parametrize(("task", "baseline"), [("several_labels", "majority_by_label"), ("regression", "majority")])
def test_a_run_learns_and_is_evaluated(task: str, baseline: str, tmp_path: Path) -> None:
    keys = own(tmp_path, task) | {"optimizer.learning_rate": 0.02, "train.steps": 80, "train.evaluate_every": 80}
    run = tmp_path / "run"
    trained = call(train.main, words(run, keys))
    assert trained.status == 0, trained.err
    assert baseline in trained.out
    told = call(evaluate.main, [f"--workdir={run}"])
    assert told.status == 0, told.err
    last = metrics(run)[-1]
    lines = [json.loads(line) for line in (run / f"predictions-{last['step']}.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert [(line["text"], line["label"]) for line in lines] == [(one["text"], one["label"]) for one in given]
    if task == "regression":
        mse = np.mean([(line["predicted"] - line["label"]) ** 2 for line in lines])
        assert last["val/mse"] == pytest.approx(mse, rel=1e-4)
        assert mse < json.loads((run / "baselines.json").read_text())["majority"]
        assert {line["right"] for line in lines} == {None}
    else:
        right = [set(line["predicted"]) == set(line["label"]) for line in lines]
        assert [line["right"] for line in lines] == right
        assert last["val/exact_match"] == pytest.approx(np.mean(right))
        assert last["val/micro_f1"] > 0.7


@pytest.mark.parametrize(
    ("task", "keys", "sentence"),
    [
        ("regression", {"train.label_smoothing": 0.1}, "--config.train.label_smoothing=0.1 mixes classes, and the "),
        (
            "several_labels",
            {"train.label_smoothing": 1.0},
            "--config.train.label_smoothing=1.0 must be at least 0 and ",
        ),
        ("classification", {"train.z_loss": 1e-4}, "--config.train.z_loss=0.0001 is for tasks that foretell tokens"),
        ("regression", {"family": "gpt"}, "--config.family='gpt' cannot learn --config.task='regression'; take bert."),
    ],
)
def test_keys_that_do_not_fit_are_refused(task: str, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        check(load("base", **{"family": "bert", "task": task} | keys))
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("task", TASKS)
def test_other_labels_are_refused(task: str) -> None:
    made = TASKS[task][0]
    config = load("base", family="bert", task=task, **{"data.name": "packages"})
    with pytest.raises(
        UserError, match=r"--config.data.name='packages' has no texts with .*: give a TFDS set of such, "
    ):
        made.open(config)
    bad = np.array([[0, 2, 1]]) if task == "several_labels" else np.array([1.0, np.nan], np.float32)
    with pytest.raises(UserError, match=r"labels.* (must be 0 or 1 for each of the 3 labels|row 1 holds no finite)"):
        made.check_labels(bad, 3)
    assert Classification.FORM == "one"
