"""What holds of every task, with a family that can learn it: the same on every mesh, and after a stop, bit for bit."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eval.evaluators import MEASURED
from eval.runs import open_run
from launch import evaluate, train
from launch.ablate import ablate
from launch.ablation.plan import make_plan
from launch.configs import load, own_defaults
from launch.train import fit
from model.families import FAMILIES
from tests.tiny import call, words, write_text
from train.run.files.json_files import dumps
from train.tasks.table import TASKS

MESHES: list[dict[str, int]] = [
    {"mesh.fsdp": 8},
    {"mesh.fsdp": 2, "mesh.tensor": 2, "mesh.context": 2},
    {"mesh.replica": 2, "mesh.fsdp": 4},
]
pytestmark = pytest.mark.rest
# Each task with each family that can learn it.
CASES = [(task, name) for task, one in TASKS.items() for name, kind in FAMILIES.items() if one.HEAD in kind.HEADS]


def keys_of(task: str, family: str, folder: Path) -> dict[str, Any]:
    """A run of this task on a few lines of one's own."""
    keys = write_text(folder) | {"family": family, "task": task, "data.batch_size": 16, "train.steps": 4}
    if task == "masked_lm":  # with the mask 264 tokens, which two devices can share
        keys |= {"data.tokenizer": "bpe", "data.vocab_size": 263}
    if task == "next_sentence":  # with its three marks 264 as well
        keys |= {"data.tokenizer": "bpe", "data.vocab_size": 261, "model.types": 2}
    if task == "tagging":
        lines = [{"words": ["x", f"w{n}", "y"], "tags": ["O", "B-X", "O"]} for n in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 16}
    if task == "span_qa":
        rows = [
            {"question": f"which {name}?", "context": f"x={n} y={90 - n}", "answers": [str(value)], "starts": [start]}
            for n in range(10, 40)
            for name, value, start in (("x", n, 2), ("y", 90 - n, 7))
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 24}
    labels: dict[str, Callable[[int], Any]] = {
        "classification": lambda n: f"kind {n % 3}",
        "several_labels": lambda n: [f"kind {n % 3}", f"sort {n % 2}"][: n % 3],
        "regression": lambda n: n % 3 / 2,
    }
    if task in labels:
        rows = [{"text": f"{'xyz'[n % 3]} and {n}", "label": labels[task](n)} for n in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 16}
    if task == "translation":
        pairs = [{"source": f"{'xyz'[n % 3]} and {n}", "target": f"{n} {'abc'[n % 3]}"} for n in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        keys |= {"data.path": f"{folder}/rows.jsonl", "data.length": 16}
        keys |= {"data.tokenizer": "bpe", "data.vocab_size": 259}  # and a mark: what two devices can share
    more = {"optimizer.schedule": "constant", "optimizer.warmup_steps": 1, "train.evaluate_every": 2}
    more |= {"train.checkpoint_every": 2}
    own = own_defaults("family", family)
    return {key: value for key, value in (keys | more).items() if not key.startswith("model.") or key in own}


@pytest.mark.parametrize(("task", "family"), CASES)
def test_losses_and_scores_do_not_depend_on_the_mesh(task: str, family: str, tmp_path: Path) -> None:
    keys = keys_of(task, family, tmp_path)

    def history(mesh: dict[str, int]) -> list[dict[str, float]]:
        found = fit(load("base", **keys | mesh))[1]
        return [{name: x for name, x in one.items() if name in ("train/loss", "val/loss")} for one in found]

    one = history({"mesh.fsdp": 1})
    assert sum("val/loss" in line for line in one) == 2
    for mesh in MESHES:
        if FAMILIES[family].IN_TURN:  # which takes no sequence apart
            mesh = {axis: size for axis, size in mesh.items() if axis != "mesh.context"}
        for line, wanted in zip(history(mesh), one, strict=True):
            assert line == pytest.approx(wanted, rel=1e-5), mesh


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_run_that_goes_on_is_as_one_that_was_not_stopped(task: str, family: str, tmp_path: Path) -> None:
    keys = keys_of(task, family, tmp_path)
    whole = fit(load("base", **keys), str(tmp_path / "whole"))[0]
    fit(load("base", **keys | {"train.steps": 2}), str(tmp_path / "parts"))
    parts = fit(load("base", **keys), str(tmp_path / "parts"), extend=True)[0]
    for one, other in zip(jax.tree.leaves(parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("task", "family"), CASES)
def test_a_population_learns_as_its_seeds(task: str, family: str, tmp_path: Path) -> None:
    keys = keys_of(task, family, tmp_path)
    both = fit(load("base", **keys | {"train.seeds": 2}))[1][-1]
    for seed in range(2):
        own = fit(load("base", **keys | {"train.seed": seed, "data.seed": seed}))[1][-1]
        assert both["val/loss"][seed] == pytest.approx(own["val/loss"], rel=1e-5)


@pytest.mark.parametrize(("task", "family"), CASES)
def test_each_example_is_predicted_once_in_order(task: str, family: str, tmp_path: Path) -> None:
    """Or the command says that the task has none; what is right is as often as the scores say."""
    fit(load("base", **keys_of(task, family, tmp_path) | {"train.steps": 2}), f"{tmp_path}/run")
    told = call(evaluate.main, [f"--workdir={tmp_path}/run"])
    assert told.status == 0, told.err
    run = open_run(tmp_path / "run")
    rows, file = run.experiment.task.measured(run.data), tmp_path / f"run/predictions-{run.step}.jsonl"
    if not hasattr(rows, "examples"):
        assert told.out.splitlines()[-1] == f"predictions: none, as what {task} foretells are tokens of a text"
        assert not file.exists()
        return
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    own = [json.loads(dumps(dataclasses.asdict(one))) for one in rows.examples]
    assert [{name: line[name] for name in one} for line, one in zip(lines, own, strict=True)] == own
    values = dict(line.split() for line in told.out.splitlines() if line.startswith("  val/"))
    score = next((name for name in ("val/accuracy", "val/exact_match") if name in values), None)
    if score:
        assert np.mean([line["right"] for line in lines]) == pytest.approx(float(values[score]), abs=1e-4)


COMMITTED = [f"bert:{one}" for one in ("mlm", "packages", "roles", "spans")]
COMMITTED += [
    "encoder_decoder:numbers",
    "encoder_decoder:dates",
    "recurrent:lm",
    "recurrent:numbers",
    "recurrent:parity",
]


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_config_begins(name: str, tmp_path: Path) -> None:
    keys = {"train.steps": 2, "train.evaluate_windows": 16, "optimizer.warmup_steps": 1}
    argv = [f"--config={name}", *words(tmp_path / "run", keys)[1:]]
    outcome = call(train.main, argv)
    assert outcome.status == 0, outcome.err
    assert "this model" in outcome.out
    if name == "recurrent:numbers":  # of texts, whose scores have signatures, and of which some are only reported
        told = call(evaluate.main, [f"--workdir={tmp_path}/run"]).out
        assert "  bleu: nrefs:1|case:mixed|eff:no|tok:13a|" in told
        assert "longer, which counts for nothing, 500 examples:\n  longer/loss" in told
        assert told.count("longer/exact_match") == 1


@pytest.mark.parametrize(("task", "family"), CASES)
def test_the_judge_takes_its_score(task: str, family: str, tmp_path: Path) -> None:
    keys = keys_of(task, family, tmp_path) | {"train.steps": 2, "train.accumulate": 1, "model.dropout": 0.0}
    of = MEASURED[task]
    declared = {
        "question": "Does decay matter?",
        "factor": "optimizer.weight_decay",
        "arms": {"decayed": {}, "free": {"optimizer.weight_decay": 0.0}},
        "endpoint": of.score,
        "direction": "lower" if of.lower else "higher",
        "smallest": 0.01,
        "seeds": [0, 1],
        "waived": {"seeds": "two are quick"},
        "shared": keys,
    }
    ablate(make_plan(task, declared), tmp_path / "grid")
    (file,) = (tmp_path / "grid").glob("plans/*/seeds.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, seed) for arm in ("decayed", "free") for seed in "01"]
    for row in rows[:2]:  # the score that a run of its own has
        own = keys | {"train.seed": int(row["seed"]), "data.seed": int(row["seed"])}
        score = fit(load("base", **own))[1][-1][of.score]
        assert float(row["value"]) == pytest.approx(score, rel=1e-5)
