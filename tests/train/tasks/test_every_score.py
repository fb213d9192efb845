"""What every task is scored by: predictions of each example once, the judge's endpoint, and configs that begin."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from eval.evaluators import MEASURED
from eval.explain import explaining
from eval.explain.faithfulness import kept
from eval.explain.methods.table import METHODS
from eval.explain.reporting import explain
from eval.generation import generate_by_beam
from eval.runs import Run, open_run
from launch import evaluate, generate, train
from launch.ablate import ablate
from launch.ablation.plan import make_plan
from launch.configs import load
from launch.train import fit
from model.beam import Beam
from tests.tiny import call, words
from tests.train.tasks.every import FIRST, keys_of
from train.run.files.json_files import dumps

pytestmark = pytest.mark.rest


@pytest.mark.parametrize(("task", "family"), FIRST)
def test_each_example_is_predicted_once_in_order(
    task: str, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the command says that the task has none; what is right is as often as scores say; answers are explained."""
    fit(load("base", **keys_of(task, family, tmp_path) | {"train.steps": 2}), f"{tmp_path}/run")
    told = call(evaluate.main, [f"--workdir={tmp_path}/run"])
    assert told.status == 0, told.err
    run = open_run(tmp_path / "run")
    for module in (kept, explaining):
        monkeypatch.setattr(module, "METHODS", {name: METHODS[name] for name in ("gradient_x_input", "leave_one_out")})
    _check_explained(run)
    rows, file = run.experiment.task.measured(run.data), tmp_path / f"run/predictions-{run.step}.jsonl"
    if not hasattr(rows, "examples"):
        assert told.out.splitlines()[-1] == f"predictions: none, as what {task} foretells are tokens of a text"
        assert not file.exists()
        _check_beam(run, file)
        return
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    own = [json.loads(dumps(dataclasses.asdict(one))) for one in rows.examples]
    assert [{name: line[name] for name in one} for line, one in zip(lines, own, strict=True)] == own
    values = dict(line.split() for line in told.out.splitlines() if line.startswith("  val/"))
    score = next((name for name in ("val/accuracy", "val/exact_match") if name in values), None)
    if score:
        assert np.mean([line["right"] for line in lines]) == pytest.approx(float(values[score]), abs=1e-4)
    _check_beam(run, file)


def _check_explained(run: Run) -> None:
    """Each method says something of the first example, and its page can be made."""
    rows = run.experiment.task.measured(run.data)
    one = (
        dataclasses.asdict(rows.examples[0])
        if hasattr(rows, "examples")
        else {"text": "x and", "second_text": "y", "source": "x and"}
    )
    found = explain(run, one)
    for name, result in found.results.items():
        assert all(np.abs(x).sum() > 0 for x in result.values.values()), name
        assert np.isfinite(result.target.probability)
    assert found.table.rows.keys() == found.results.keys()
    assert found._repr_mimebundle_()["text/html"].startswith("<iframe")


def _check_beam(run: Run, file: Path) -> None:
    """What is scored is what the beam writes of each source; a task of which nothing is written refuses one."""
    greedy = file.read_bytes() if file.exists() else b""
    told = call(evaluate.main, [f"--workdir={run.folder}", "--beam=3", "--beam_alpha=0.3"])
    if not run.experiment.task.WRITES:
        assert (told.status, told.err.count("\n")) == (2, 1)
        assert f"--beam=3: {run.config.task} is scored by no text that is written" in told.err
        return
    assert "written by a beam: 3 hypotheses, form wu, alpha 0.3" in told.out
    assert file.read_bytes() == greedy
    own = file.with_stem(f"{file.stem}-beam3")
    assert told.out.splitlines()[-1] == f"predictions: {own}"
    lines = [json.loads(line) for line in own.read_text().splitlines()][:5]
    sources, most = [line["source"] for line in lines], run.model.config.max_length
    texts = generate_by_beam(run.model, run.tokenizer, sources, Beam(3, 0.3), max_new_tokens=most)
    assert [line["predicted"] for line in lines] == texts


COMMITTED = [f"bert:{one}" for one in ("mlm", "packages", "roles", "spans", "rationale")]
COMMITTED += [
    "encoder_decoder:numbers",
    "encoder_decoder:dates",
    "encoder_decoder:denoising",
    "recurrent:lm",
    "recurrent:numbers",
    "recurrent:parity",
]


# A task of each way to score: sums over tokens, over examples, over entities, over what is written.
JUDGED = [
    (task, family)
    for task, family in FIRST
    if task in ("masked_lm", "several_labels", "span_qa", "tagging", "translation")
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
    if name == "recurrent:lm":  # of whose attention no picture can be made, which is said before anything is written
        refused = call(generate.main, [f"--workdir={tmp_path}/run", "--prompt=def", f"--attention={tmp_path}/a.png"])
        assert (refused.status, refused.out) == (2, "")
        assert "the model has no attention" in refused.err


@pytest.mark.parametrize(("task", "family"), JUDGED)
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
    for row in rows[1:2]:  # the score that a run of its own has
        own = keys | {"train.seed": int(row["seed"]), "data.seed": int(row["seed"])}
        score = fit(load("base", **own))[1][-1][of.score]
        assert float(row["value"]) == pytest.approx(score, rel=1e-5)
