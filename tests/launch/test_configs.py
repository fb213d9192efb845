"""Configs: every committed one parses, every key is read, and mistakes are answered in one sentence."""

import ast
import functools
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from configs import base
from launch import cli, train
from launch.configs import CHOSEN, help_text, load, own_comments, own_defaults, shared_comments
from model.errors import UserError
from model.families.table import FAMILIES
from tests.conftest import ROOT
from train.devices.mesh import AXES
from train.experiment import make_model_config
from train.run.command import interpreter
from train.run.files.learned import flatten
from train.tasks.table import TASKS, make_task

FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem not in ("__init__", "base", "published"))
STORIES = {
    f"{file.relative_to(ROOT)}:{name}": inspect.getdoc(variant) or ""
    for file in FILES
    for name, variant in importlib.import_module(f"configs.{file.stem}").VARIANTS.items()
}
# Of the checkpoints, or of `transformers` on a meta device with the config that is published beside them.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gptj_6b": 6_050_882_784,
    "gptneox_20b": 20_554_567_680,
    "llama_1b": 1_235_814_400,
    "llama_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "qwen2_7b": 7_615_616_512,
    "qwen3_8b": 8_190_735_360,
    "gemma2_9b": 9_241_705_984,
    "gemma3_1b": 999_885_952,
}
# By the formulas of their papers, layer by layer; those of T5 v1.0 are the numbers of their checkpoints.
PARAMETERS_OF_PAIRS = {
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "t5_v1_1_large": 783_150_080,
    "transformer_base": 63_045_632,
    "transformer_big": 214_171_648,
}
# By the formulas of the paper, which give the numbers of its checkpoints (with the pooler 109,482,240 and 335,141,888).
PARAMETERS_OF_BERT = {"base": 109_514_298, "large": 335_174_458}
COUNTED = [("gpt", *one) for one in PARAMETERS.items()]
COUNTED += [("bert", *one) for one in PARAMETERS_OF_BERT.items()]
COUNTED += [("encoder_decoder", *one) for one in PARAMETERS_OF_PAIRS.items()]


@pytest.mark.parametrize("name", STORIES)
def test_every_committed_config_parses_and_tells_its_story(name: str) -> None:
    config = load(name)
    assert config.is_locked
    own = (own_defaults(chooser, config[chooser]) for chooser in CHOSEN)
    assert flatten(config).keys() == {*flatten(base.get_config())}.union(*own)
    assert "python -m launch." in STORIES[name] or "make " in STORIES[name]
    assert not (written := re.search(r"--config=(\S+)", STORIES[name])) or written[1] == name


def test_every_config_of_make_scores_tells_its_score() -> None:
    """By hand all of them are trained: what they reached, beside what rules reach, stands in their stories."""
    (named,) = re.findall(r"^SCORED \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name in named.split():
        file, _, variant = name.partition(":")
        story = " ".join(STORIES[f"configs/{file}.py:{variant}"].split())
        assert re.search(r"jax [0-9.]+, 20[0-9]{2}-[0-9]{2}-[0-9]{2}: .*\.[0-9]+.* on the same rows", story), name


def test_every_published_shape_is_counted() -> None:
    """Those of configs/published.py, and no others."""
    variants = importlib.import_module("configs.gpt").VARIANTS
    assert {name for name, one in variants.items() if one.__module__ == "configs.published"} == PARAMETERS.keys()


def counted(config: ConfigDict) -> int:
    model_config = make_model_config(config, make_task(config).vocab_size(config))
    model = nnx.eval_shape(lambda: model_config.build(nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_bert_with_next_sentences_has_the_published_number_of_parameters() -> None:
    keys = {"task": "next_sentence", "data.vocab_size": 30519}
    assert counted(load("bert:base", **keys)) == 110_106_428
    assert "--config.task=next_sentence --config.data.vocab_size=30519 adds: 110,106,428" in " ".join(
        STORIES["configs/bert.py:base"].split()
    )
    assert counted(load("bert:large", **keys)) == 336_226_108


@pytest.mark.parametrize(("file", "name", "count"), COUNTED)
def test_a_published_shape_has_the_published_number_of_parameters(file: str, name: str, count: int) -> None:
    assert counted(load(f"{file}:{name}")) == count
    assert f"{count:,} parameters" in STORIES[f"configs/{file}.py:{name}"].replace("\n", " ")


def test_the_first_variant_is_the_default() -> None:
    assert load("gpt") == load("gpt:quickstart") == load(str(ROOT / "configs/gpt.py"))


def test_the_keys_that_all_runs_share_fit_a_page() -> None:
    assert shared_comments().keys() == flatten(base.get_config()).keys()
    assert len(shared_comments()) <= 60


CHOICES = [(chooser, name) for chooser, (_, table) in CHOSEN.items() for name in table]


@pytest.mark.parametrize(("chooser", "name"), CHOICES)
def test_help_shows_every_key_once_with_its_default_and_meaning(chooser: str, name: str) -> None:
    shared, own = flatten(base.get_config()), own_defaults(chooser, name)
    assert own_comments(chooser, name).keys() == own.keys()
    of_it = help_text().partition(f"--config.{chooser}={name} (")[2].partition("\n\n")[0]
    for defaults, texts, part in ((shared, shared_comments(), help_text()), (own, own_comments(chooser, name), of_it)):
        assert all(type(value) in (int, float, str, bool) for value in defaults.values())
        for key, value in defaults.items():
            (line,) = [line for line in part.splitlines() if line.startswith(f"  --config.{key}=")]
            assert line.startswith(f"  --config.{key}={value} ")
            assert line.endswith(f" {texts[key]}")
            assert len(texts[key]) > 5


@functools.cache
def reads(*rooms: str) -> set[str]:
    """'holder.key' of each attribute that is read, and '"key"' of each name that is an index or that a loop visits."""
    found = set()
    for path in (path for room in rooms for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(f"{getattr(node.value, 'attr', getattr(node.value, 'id', ''))}.{node.attr}")
            elif isinstance(node, (ast.For, ast.comprehension)) and isinstance(node.iter, ast.Tuple):
                found |= {f'"{name.value}"' for name in node.iter.elts if isinstance(name, ast.Constant)}
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                found.add(f'"{node.slice.value}"')
                if getattr(node.value, "attr", "") == "cycles":  # a key that layers may take in turn
                    found.add(f"config.{node.slice.value}")
    return found


def unread(keys: list[str]) -> list[str]:
    """The keys that nothing reads: model keys inside of the model, as those of its config, the others elsewhere."""
    inside, outside = reads("model"), reads("train", "eval", "launch")
    missing, keys = [], [key for key in keys if key.removeprefix("mesh.") not in AXES]
    for section, _, name in (key.rpartition(".") for key in keys):
        # A key that a site has for itself is read as the one that it is like.
        site, _, like = name.partition("_")
        name = like if section == "model" and site in ("encoder", "cross") and f"model.{like}" in keys else name
        wanted = {f"{holder}.{name}" for holder in ("config", "self", "_task", section, f"{section}_config")} | {
            f'"{name}"'
        }
        if not ({f"config.{name}"} & inside if section == "model" else wanted & outside):
            missing.append(f"{section}.{name}".removeprefix("."))
    return missing


@pytest.mark.parametrize(("chooser", "name"), CHOICES)
def test_every_key_is_read(chooser: str, name: str) -> None:
    family = next(one for one, kind in FAMILIES.items() if chooser == "family" or TASKS[name].HEAD in kind.HEADS)
    assert unread(list(flatten(load("base", **{"family": family, chooser: name})))) == []
    never = ["mesh.never", "model.never", "train.never", "never"]
    assert unread(never) == never


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("train.steps", "9", 9),
        ("train.steps", 9, 9),
        ("train.steps", np.int64(9), 9),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("optimizer.learning_rate", 1, 1.0),
        ("model.tied", "False", False),
        ("model.tied", "1", True),
        ("model.tied", False, False),
        ("model.use_bias", True, True),
        ("model.use_bias", "false", False),
        ("model.use_bias", "qkv & mlp", "qkv & mlp"),
        ("model.norm", "rms(1e-5)", "rms(1e-5)"),
        ("data.path", "a=b:c", "a=b:c"),
        ("data.name", "7", "7"),
        ("model.soft_cap", "2 * 50 + 0", "2 * 50 + 0"),
        ("model.soft_cap", "2 * 50", 50.0),
        ("model.soft_cap", "1e+1", 10.0),
        ("model.sinks", "2 * true + False", "2 * true + False"),
        ("model.sinks", "true + true", True),
        ("model.mask", "2 * (causal & window(3)) + causal", "2 * (causal & window(3)) + causal"),
    ],
)
def test_overrides_are_read_by_the_type_of_their_key(key: str, value: object, wanted: object) -> None:
    got = flatten(load("gpt", **{key: value}))[key]
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        ("gpt:quikstart", {}, "--config=gpt:quikstart: gpt has no variant 'quikstart'; the nearest is quickstart."),
        ("gtp", {}, "--config=gtp: there is no such config file; the nearest is gpt."),
        ("gpt", {"train.stepz": 9}, "--config.train.stepz: there is no such key; the nearest is train.step."),
        ("gpt", {"num_head": 9}, "--config.num_head: there is no such key; the nearest is model.num_heads."),
        (
            "gpt",
            {"model.num_layer": 9},
            "--config.model.num_layer: there is no such key; the nearest is model.num_layers",
        ),
        (
            "gpt",
            {"model.vocab_size": 9},
            "--config.model.vocab_size: there is no such key; the nearest is data.vocab_size",
        ),
        ("gpt", {"famly": "gpt"}, "--config.famly: there is no such key; the nearest is family."),
        ("gpt", {"family": "gtp"}, f"--config.family='gtp' is not one of: {', '.join(FAMILIES)}."),
        (
            "gpt:quickstart",
            {"family": "recurrent"},
            "--config.family=recurrent: --config=gpt:quickstart sets model.edits",
        ),
        (
            "bert:packages",
            {"task": "masked_lm"},
            "--config.task=masked_lm: --config=bert:packages sets objective.hide, ",
        ),
        ("gpt", {"family": 3}, "--config.family=3: text is needed, such as 'gpt'."),
        ("gpt", {"mesh": 9}, "there are: mesh.context, mesh.fsdp, mesh.place, mesh.replica, mesh.rules, mesh.tensor."),
        ("gpt", {"train.steps": 9.0}, "--config.train.steps=9.0: a whole number is needed, such as 1000."),
        ("gpt", {"train.steps": "9.5"}, "--config.train.steps='9.5': a whole number is needed"),
        ("gpt", {"train.steps": True}, "--config.train.steps=True: a whole number is needed"),
        ("gpt", {"optimizer.clip_norm": "nan"}, "--config.optimizer.clip_norm='nan': a number within float32"),
        ("gpt", {"model.tied": "maybe"}, "--config.model.tied='maybe': true or false is needed"),
        ("gpt", {"model.mlp": 3}, "--config.model.mlp=3: text is needed, such as 'gelu'."),
    ],
)
def test_mistakes_are_answered_in_one_sentence(name: str, overrides: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load(name, **overrides)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_ones_own_is_checked_like_an_override(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = (
        "from configs import base\n\n\ndef get_config():\n    config = base.get_config()\n    {}\n    return config\n"
    )
    file.write_text(text.format("config.train.steps = 7"))
    assert load(str(file)).train.steps == 7
    file.write_text(text.format("config.train.steqs = 7"))
    with pytest.raises(UserError, match=r"train.steqs: there is no such key; the nearest is train.steps"):
        load(str(file))
    file.write_text(text.format("config.train.steps = 'many'"))
    with pytest.raises(UserError, match=r"train.steps='many': a whole number"):
        load(str(file))
    file.write_text(text.format("config.model.width, config.model.sinks = 384, True"))
    model = load(str(file), **{"model.num_heads": 6}).model
    assert (model.width, model.num_heads, model.sinks, model.mlp) == (384, 6, True, "gelu")
    file.write_text(text.format("config.model.widht = 384"))
    with pytest.raises(UserError, match=r"--config.model.widht: there is no such key; the nearest is model.width\."):
        load(str(file))
    file.write_text(text.format("config.model.width = 384.5"))
    with pytest.raises(UserError, match=r"--config.model.width=384.5: a whole number is needed, such as 256\."):
        load(str(file))
    file.write_text(text.format("config.train = 9"))
    with pytest.raises(UserError, match=r"--config.train: there is no such key"):
        load(str(file))
    file.write_text("x = 1\n")
    with pytest.raises(UserError, match="get_config"):
        load(str(file))


def test_configs_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("configs/gpt.py:cpu") == load("gpt:cpu")


def test_flags_and_overrides_are_told_apart() -> None:
    parser = cli.make_parser("train", "Trains a model.")
    parser.add_argument("--extend", action="store_true")
    words = [
        "--config",
        "gpt:cpu",
        "--workdir=runs/x",
        "--config.mesh.fsdp",
        "-1",
        "--extend",
        "--config.data.path=a=b",
    ]
    flags, overrides = cli.parse(parser, words)
    assert (flags.config, flags.workdir, flags.extend) == ("gpt:cpu", "runs/x", True)
    assert overrides == {"mesh.fsdp": "-1", "data.path": "a=b"}


def test_a_command_is_said_again_each_flag_once() -> None:
    """As it was meant, by the interpreter that runs, of the first of several processes."""
    typed = ["--config", "gpt", "--workdir=a b", "--extend", "--profile-steps=4:5", "--config.train.steps=30"]
    typed += ["--config.model.mask=causal & window(3)", "--extend", "--config.train.steps", "40", "--process-id=0"]
    again, more = cli.again(train.parser(), *cli.parse(train.parser(), typed))
    start = f"{interpreter()} -m launch.train --config=gpt --workdir='a b'"
    mask = "--config.model.mask='causal & window(3)'"
    assert again == f"{start} --extend --profile_steps=4:5 --process-id=RANK --config.train.steps=40 {mask}"
    assert more == f"{start} --process-id=RANK {mask} --extend --config.train.steps=N"
    for line in (again, more.replace("=N", "=50")):  # as a shell takes it
        flags, overrides = cli.parse(train.parser(), shlex.split(line.replace("RANK", "0"))[3:])
        assert (flags.config, flags.workdir, flags.extend) == ("gpt", "a b", True)
        assert overrides["model.mask"] == "causal & window(3)"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--confg=gpt"], "--confg: there is no such flag; the nearest is --config;"),
        (["--config_train.steps=4"], "the nearest is --config.train.steps;"),
        (["--config_model.num_heads=4"], "the nearest is --config.model.num_heads;"),
        (["--config=gpt"], "required: --workdir"),
        (["--config=gpt", "--workdir=x", "--config.train.steps"], "--config.train.steps has no value"),
        (["--config.train.steps", "--config=gpt", "--workdir=x"], "--config.train.steps has no value"),
        (["--config=gpt", "--workdir=x", "stray"], "stray is no flag: flags begin with --;"),
    ],
)
def test_wrong_flags_are_refused_with_the_nearest(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        cli.parse(cli.make_parser("train", "Trains a model."), words)
    assert sentence in str(error.value)


COMMAND = """
from launch import cli
from launch.configs import load

def main(words):
    flags, overrides = cli.parse(cli.make_parser("train", "Trains a model."), words)
    print(load(flags.config, **overrides).train.steps)
    if flags.workdir == "defect":
        raise ValueError("a defect of ours")

cli.run(main)
"""


@pytest.mark.parametrize(
    ("words", "status", "out", "last", "trace"),
    [
        ("--config=gpt --workdir=x --config.train.steps=9", 0, "9\n", "", False),
        ("--config=gpt --workdir=x --config.train.stps=9", 2, "", "the nearest is train.steps.", False),
        ("--config=gpt --workdir=defect --config.train.steps=9", 1, "9\n", "ValueError: a defect of ours", True),
        ("--help", 0, "divides num_heads", "", False),
    ],
)
def test_a_command_ends_with_one_sentence(words: str, status: int, out: str, last: str, trace: bool) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND, *words.split()], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status
    assert out in done.stdout
    assert (done.stderr.splitlines() or [""])[-1].endswith(last)
    assert ("Traceback" in done.stderr) == trace
