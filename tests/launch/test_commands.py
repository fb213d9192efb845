"""What the commands write and say, and the same from a notebook."""

import itertools
import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.attention_picture import attention_figure
from eval.evaluators import endpoints
from eval.generation import generate
from eval.runs import open_run
from launch import configs
from launch import evaluate as evaluate_command
from launch import generate as generate_command
from launch import train as train_command
from launch.train import fit
from model import GPT, GPTConfig, UserError
from model.attention import CORES
from tests.tiny import CONFIG, Outcome, call, metrics, saved, words, write_text
from train.data import open_data
from train.experiment import bind


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("launch"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "a run"


@pytest.fixture(scope="module")
def outcome(keys: dict[str, Any], workdir: Path) -> Outcome:
    """How the command ended that made the run in `workdir`."""
    return call(train_command.main, words(workdir, keys, "--profile_steps=4:5"))


def test_the_folder_holds_what_the_design_says(keys: dict[str, Any], workdir: Path, outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.err
    names = {path.name for path in workdir.iterdir()} - {".lock"}
    files = {"config.json", "passport.json", "metrics.jsonl", "baselines.json", "tokenizer.json", "attention.png"}
    assert names == files | {"checkpoints", "tensorboard", "profile"}
    assert json.loads((workdir / "config.json").read_text()) == configs.load(CONFIG, **keys).to_dict()
    passport = json.loads((workdir / "passport.json").read_text())
    assert passport.keys() >= {"git", "packages", "devices", "flags", "data", "seeds", "attention"}
    attention = passport["attention"]["self"]
    assert (attention["asked"], attention["core"]) == ("auto", "blockwise")
    assert attention["refused"].keys() == {*itertools.takewhile(lambda name: name != "blockwise", CORES)}
    costs = "cache_bytes", "flops_per_token"
    assert attention.keys() == {"asked", "core", "refused", "compared_with", "self_check", *costs}
    assert {"o", "dq", "dk", "dv"} == attention["self_check"].keys()
    assert all(0 < error < 1e-5 for error in attention["self_check"].values())
    assert passport["data"]["fingerprint"] == open_data(configs.load(CONFIG, **keys).data).fingerprint
    baselines = json.loads((workdir / "baselines.json").read_text())
    assert baselines.keys() == {*(f"ngram_{n}" for n in range(5)), "gzip", "xz", "train_bytes"}
    assert (workdir / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (workdir / "tensorboard").iterdir()][0].startswith("events.out.tfevents")
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    # The two newest, and the best.
    assert saved(workdir)[-2:] == [8, 12]


def test_metrics_are_whole_steps_and_full_precision(workdir: Path, outcome: Outcome) -> None:
    lines = metrics(workdir)
    trained = [line for line in lines if "train/loss" in line]
    evaluated = [line for line in lines if "val/loss" in line]
    assert [line["step"] for line in trained] == list(range(1, 13))
    assert [line["step"] for line in evaluated] == [6, 12]
    for line in lines:
        assert type(line.pop("step")) is int
        assert all(type(value) is float and math.isfinite(value) for value in line.values())
    assert {"train/learning_rate", "train/grad_norm/embed", "train/tokens_per_second"} <= trained[-2].keys()
    assert evaluated[-1].keys() == {*endpoints("language_model"), "val/windows"}
    # As precise as the device's numbers, which float32 keeps.
    assert all(float(np.float32(line["train/loss"])) == line["train/loss"] for line in trained)
    assert any(round(line["train/loss"], 6) != line["train/loss"] for line in trained)


def test_the_closing_words_say_where_everything_is(workdir: Path, outcome: Outcome) -> None:
    bits = metrics(workdir)[-1]["val/bits_per_byte"]
    assert re.search(rf"^  this model +{bits:.4f}$", outcome.out, re.MULTILINE)
    for part in ("  ngram_4", "  gzip", "  xz", "sample (", "\nde", "attention.png", "metrics.jsonl", "tensorboard"):
        assert part in outcome.out
    assert f"--workdir='{workdir}'" in outcome.out  # with its space
    assert "--extend --config.train.steps=N" in outcome.out
    assert f"compiled programs are kept in {jax.config.values['jax_compilation_cache_dir']}\n" in outcome.err
    learned = r"^learns from [0-9]+ tokens, [0-9]+ bytes; is measured on [0-9]+ tokens, [0-9]+ bytes$"
    assert len(re.findall(learned, outcome.err, re.MULTILINE)) == 1
    assert "step 12/12  loss " in outcome.err
    assert "tokens/s" in outcome.err
    assert "WARNING" not in outcome.err


@pytest.mark.rest
def test_the_commands_that_it_prints_run_as_typed(workdir: Path, outcome: Outcome, tmp_path: Path) -> None:
    """By a shell in which nothing is activated; the one that goes on, in a copy of the run."""
    run = shutil.copytree(workdir, tmp_path / "a run")
    lines = dict(re.findall(r"^(more text|go on) +(.*)$", outcome.out, re.MULTILINE))
    for name, line in lines.items():
        typed = line.replace(str(workdir), str(run)).replace("=N", "=13")
        done = subprocess.run(
            typed, shell=True, capture_output=True, text=True, env=os.environ | {"PATH": "/usr/bin:/bin"}
        )
        assert done.returncode == 0, (name, done.stderr)
    assert saved(run)[-1] == 13


def test_a_run_that_is_complete_says_so_again(keys: dict[str, Any], workdir: Path, outcome: Outcome) -> None:
    before = (workdir / "metrics.jsonl").read_text()
    again = call(train_command.main, words(workdir, keys, "--profile_steps=4:5"))
    assert again.status == 0
    assert again.out == outcome.out
    assert "resumed from step 12\n" in again.err
    assert "--profile_steps=4:5: none of these steps has run, so there is no trace.\n" in again.err
    assert (workdir / "metrics.jsonl").read_text() == before


def test_evaluate_finds_the_losses_of_the_run(workdir: Path, outcome: Outcome) -> None:
    values = evaluate_command.evaluate(open_run(workdir))
    for name, value in metrics(workdir)[-1].items():
        if name not in ("step", "val/windows"):
            np.testing.assert_allclose(values[name], value, rtol=1e-5)
    told = call(evaluate_command.main, [f"--workdir={workdir}"])
    assert f"{workdir}, step 12, " in told.out
    for name, value in values.items():
        assert re.search(rf"^  {name} +{value:.4f}$", told.out, re.MULTILINE)
    assert told.out.endswith("\npredictions: none, as what language_model foretells are tokens of a text\n")
    assert told.err == ""  # one device is enough, and none is called idle


def test_generate_prints_prompts_and_what_follows(workdir: Path, outcome: Outcome, tmp_path: Path) -> None:
    flags = [f"--workdir={workdir}", "--max_new_tokens=5", "--seed=3"]
    one = call(generate_command.main, [*flags, "--prompt=def ", f"--attention={tmp_path}/a.png"])
    two = call(generate_command.main, [*flags, "--prompt=def ", "--prompt=é"])
    assert (one.status, one.err, two.status, two.err) == (0, "", 0, "")
    assert one.out.startswith("def ")
    assert len(one.out.splitlines()[0]) > len("def ")
    assert "=== 'def '\ndef " in two.out
    assert "=== 'é'\né" in two.out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.rest
def test_scores_of_some_windows_say_so(keys: dict[str, Any], tmp_path: Path) -> None:
    """In the passport, in the closing words, beside a score of all windows, and where a run goes on with others."""
    run, few = tmp_path / "run", keys | {"train.evaluate_windows": 3, "train.prompt": "", "train.keep_last": 1}
    outcome = call(train_command.main, words(run, few | {"train.steps": 6}))
    data = open_data(configs.load(CONFIG, **few).data)
    number = len(data.windows("validation"))
    assert number > 3
    assert json.loads((run / "passport.json").read_text())["evaluation"] == {"windows": 3, "of": number}
    assert f"measured on 3 of {number} rows" in outcome.out
    measured = call(evaluate_command.main, [f"--workdir={run}"])
    assert f"all {number} rows: these scores do not compare with the run's own" in measured.out
    values, own = evaluate_command.evaluate(open_run(run)), metrics(run)[-1]["val/loss"]
    assert abs(values["val/loss"] - own) > 1e-4

    for windows in (0, number - 1):  # the score is still of those that it was measured on
        again = call(train_command.main, words(run, few | {"train.evaluate_windows": windows, "train.steps": 6}))
        assert f"measured on 3 of {number} rows" in again.out
        assert "the run's own, of 3 (" in call(evaluate_command.main, [f"--workdir={run}"]).out

    more = call(train_command.main, words(run, few | {"train.evaluate_windows": 0, "train.steps": 12}, "--extend"))
    assert f"scores are of {number} of {number} rows, and were of {number - 1} of {number} rows: they" in more.err
    assert "measured on" not in more.out
    assert saved(run) == [12]


def test_help_lists_every_key_with_its_comment() -> None:
    told = call(train_command.main, ["--help"])
    assert told.status == 0
    assert told.out.endswith(f"{configs.help_text()}\n")
    assert all(flag in told.out for flag in ("--workdir", "--extend", "--profile_steps"))


def test_help_beside_a_config_tells_its_keys_alone_with_its_values() -> None:
    told = call(train_command.main, ["--config=bert:mlm", "--config.model.width=96", "-h"])
    lines = [line for line in told.out.splitlines() if line.startswith("  --config.")]
    values = configs.flatten(configs.load("bert:mlm", **{"model.width": 96}))
    texts = configs.shared_comments() | configs.own_comments("family", "bert")
    texts |= configs.own_comments("task", "masked_lm")
    assert len(lines) == len(values) == len(texts)
    for key, value in values.items():
        (line,) = [line for line in lines if line.startswith(f"  --config.{key}={value} ")]
        assert line.endswith(texts[key])


@pytest.mark.rest
def test_a_population_ends_well_also_where_the_prompt_does_not_fit(keys: dict[str, Any], tmp_path: Path) -> None:
    changes = {"train.seeds": 2, "train.steps": 7, "mesh.replica": 2, "train.prompt": "x" * 64}
    outcome = call(train_command.main, words(tmp_path / "run", keys | changes))
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("idle") == 1
    mean = sum(metrics(tmp_path / "run")[-1]["val/bits_per_byte"]) / 2
    assert re.search(rf"^  this model +{mean:.4f}$", outcome.out, re.MULTILINE)
    assert "no sample of --config.train.prompt: the prompt has 64 tokens" in outcome.out
    assert re.search(r"^more text .* --prompt=TEXT$", outcome.out, re.MULTILINE)


def test_a_last_evaluation_that_is_missing_is_made_up_for(
    keys: dict[str, Any], workdir: Path, outcome: Outcome, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("checkpoints", "config.json", "tokenizer.json", "passport.json"):
        (run / name).symlink_to(workdir / name)
    lines = [line for line in metrics(workdir) if not (line["step"] == 12 and "val/loss" in line)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    told = call(train_command.main, words(run, keys))
    assert told.status == 0
    assert metrics(run) == metrics(workdir)


@pytest.mark.rest
def test_a_model_is_called_and_differentiated_in_a_notebook() -> None:
    config = GPTConfig(vocab_size=13, max_length=7, num_layers=1, width=12, num_heads=3, position="learned")
    model = GPT(config, rngs=nnx.Rngs(0))
    tokens_BT = jnp.arange(10).reshape(2, 5)
    assert model(tokens_BT).shape == (2, 5, 13)
    grads = nnx.grad(lambda model: jnp.mean(model(tokens_BT) ** 2))(model)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    with pytest.raises(UserError, match="8 tokens are more than the 7 learned positions"):
        model(jnp.zeros((1, 8), int))


def test_a_config_is_loaded_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = configs.load("gpt:quickstart", **{"train.steps": 9})
    assert config.train.steps == 9
    assert configs.load("gpt:quickstart", **{"train.steps": "9"}) == config
    assert configs.load("configs/gpt.py:quickstart", **{"train.steps": 9}) == config


@pytest.mark.parametrize("fsdp", [1, pytest.param(-1, marks=pytest.mark.rest)])
def test_fit_needs_neither_flags_nor_a_folder(
    keys: dict[str, Any], fsdp: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On one device, and on all eight; then a sample and a picture."""
    monkeypatch.chdir(tmp_path)
    size = {"data.batch_size": 8, "train.accumulate": 1} if fsdp == -1 else {}
    config = configs.load(CONFIG, **(keys | size | {"mesh.fsdp": fsdp}))
    state, history = fit(config)
    assert int(state.step) == 12
    losses = [line["train/loss"] for line in history if "train/loss" in line]
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert history[-1].keys() == {"step", *endpoints("language_model"), "val/windows"}

    tokenizer = open_data(config.data).tokenizer
    model = bind(config, state.params)
    (text,) = generate(model, tokenizer, "def ", max_new_tokens=5, temperature=0.0)
    assert isinstance(text, str)
    assert len(attention_figure(model, tokenizer, "def ").axes) >= 2
    assert list(tmp_path.iterdir()) == []
