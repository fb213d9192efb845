"""Bad input: one sentence as the last line on stderr, no traceback, status 2, and nothing is lost."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import bench, evaluate, generate, train
from tests.tiny import Outcome, call, end, metrics, saved, start, words, write_text


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("bad")) | {"train.prompt": ""}  # a sample would take seconds


@pytest.fixture(scope="module")
def finished(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints 8 and 12."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    assert call(train.main, words(workdir, keys)).status == 0
    return workdir


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled."""
    return shutil.copytree(finished, tmp_path / "run")


def contents(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_refused(outcome: Outcome, *parts: str) -> None:
    """The last line is the sentence, with each of these parts in it, and there is no traceback."""
    assert outcome.status == 2, outcome
    assert "Traceback" not in outcome.err
    assert outcome.err.endswith("\n")
    last = outcome.err.splitlines()[-1]
    assert all(part in last for part in parts), last
    assert outcome.out == ""


# What is wrong, and what the sentence says: the value, the rule, the flag.
CONFIGS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"train.stepss": 9}, ("--config.train.stepss", "no such key", "train.steps")),
    ({"steps": 9}, ("--config.steps", "no such key", "train.steps")),
    ({"train.steps": "nine"}, ("--config.train.steps='nine'", "whole number")),
    ({"train.steps": 9.5}, ("--config.train.steps='9.5'", "whole number")),
    ({"optimizer.learning_rate": "fast"}, ("--config.optimizer.learning_rate='fast'", "number")),
    ({"model.tied": "maybe"}, ("--config.model.tied='maybe'", "true or false")),
    ({"model.use_bias": "maybe"}, ("--config.model.use_bias='maybe'", "false, true, qkv")),
    ({"model.bias": "maybe"}, ("--config.model.bias='maybe'", "alibi")),
    ({"model.bias": "t5(7)"}, ("--config.model.bias", "t5(7, 128)", "even")),
    ({"model.soft_cap": -1.0}, ("--config.model.soft_cap=-1.0", "at least", "or 0 for none")),
    ({"train.steps": 0}, ("--config.train.steps=0", "at least 1")),
    ({"model.num_heads": 3}, ("--config.model.num_heads=3", "divide", "--config.model.width=16")),
    ({"model.mask": "window(4)"}, ("--config.model.mask='window(4)'", "predict", "causal &")),
    ({"model.mask": "causal & ~causal"}, ("--config.model.mask='causal & ~causal'", "hides every token", "causal")),
    ({"model.mask": "causal & random_blocks(1, 1, 100000)"}, ("100000 x 100000 blocks", "--config.model.mask", "49")),
    ({"model.mask": "causal & random_blocks(16, 2, 32)"}, ("made for 32 x 32", "cannot serve", "--config.model.mask")),
    ({"model.mask": "~" * 2000 + "causal"}, ("--config.model.mask", "has 2000 operators", "at most 50")),
    ({"model.bias": "t5(32, 100000000)"}, ("--config.model.bias", "t5(32, 100000000)", "up to 65536")),
    ({"model.core": "splash"}, ("--config.model.core='splash'", "TPU", "write blockwise")),
    ({"model.core": "ring"}, ("--config.model.core='ring'", "the mesh does not split", "write blockwise")),
    ({"model.num_kv_heads": 3}, ("--config.model.num_kv_heads=3", "divide", "num_heads=2")),
    ({"model.position": "rotary"}, ("--config.model.position='rotary'", "rope")),
    ({"model.position": "rope_linear(0.5)"}, ("--config.model.position", "factor=0.5", "at least 1")),
    ({"model.position": "rope(fraction=0.1)"}, ("--config.model.position", "0.1 x 8 columns", "even")),
    ({"model.mask": "casual"}, ("casual", "causal", "--config.model.mask")),
    ({"model.core": "flash"}, ("flash", "dense", "--config.model.core")),
    ({"model.dtype": "float8"}, ("float8", "--config.model.dtype")),
    ({"optimizer.name": "adam"}, ("--config.optimizer.name='adam'", "adamw")),
    ({"optimizer.schedule": "cosin"}, ("--config.optimizer.schedule='cosin'", "cosine")),
    ({"train.accumulate": 3}, ("--config.train.accumulate=3", "divide", "--config.data.batch_size=4")),
    ({"mesh.fsdp": 3, "mesh.tensor": 3}, ("replica=1 x fsdp=3 x tensor=3 x context=1 = 9", "8", "--config.mesh")),
    ({"mesh.fsdp": -1, "mesh.tensor": 3}, ("fsdp=-1", "= 3", "8", "--config.mesh")),
    ({"mesh.fsdp": 4}, ("2", "fsdp=4", "--config.mesh")),
    ({"mesh.tensor": 4}, ("--config.model.num_heads=2", "tensor=4")),
    ({"train.seeds": 3, "mesh.replica": 2}, ("--config.mesh.replica=2", "--config.train.seeds=3")),
    ({"data.tokenizer": "words"}, ("words", "bpe", "--config.data.tokenizer")),
    ({"data.path": "/nowhere/*.txt"}, ("--config.data.path='/nowhere/*.txt'", "no file")),
    ({"data.path": "/dev/null*"}, ("--config.data.path='/dev/null*'", "no file")),
    ({"data.path": "", "data.name": "no_such_set"}, ("no_such_set", "--config.data.name")),
    ({"data.path": "", "data.name": "no_such_set", "data.dir": "{}/new"}, ("--config.data.name='no_such_set'", "new")),
    ({"data.length": 100000}, ("--config.data.length=100000", "fewer")),
    ({"data.tokenizer": "bpe", "data.vocab_size": 9}, ("--config.data.vocab_size=9", "at least 257")),
    ({"data.validation_split": "valid"}, ("--config.data.validation_split='valid'", "train, validation")),
]


@pytest.mark.parametrize(("changes", "parts"), CONFIGS, ids=[",".join(changes) for changes, _ in CONFIGS])
def test_a_bad_config_is_refused_at_once(
    keys: dict[str, Any], changes: dict[str, Any], parts: tuple[str, ...], tmp_path: Path
) -> None:
    changes = {key: str(value).format(tmp_path) if key == "data.dir" else value for key, value in changes.items()}
    assert_refused(call(train.main, words(tmp_path / "runs/a", keys | changes)), *parts)
    assert not list(tmp_path.iterdir())


def test_misspelt_and_missing_flags_are_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    argv = words(tmp_path / "run", keys)
    assert_refused(call(train.main, [*argv, "--profile_step=3:4"]), "--profile_step", "--profile_steps")
    assert_refused(call(train.main, [*argv, "--profile_steps=4:3"]), "'4:3'", "FIRST:LAST", "--profile_steps")
    assert_refused(call(train.main, argv[1:]), "--config")
    assert_refused(call(train.main, ["--config=gtp", *argv[1:]]), "--config=gtp", "nearest is gpt")
    assert_refused(call(train.main, ["--config=gpt:quikstart", *argv[1:]]), "quikstart", "nearest is quickstart")
    assert_refused(call(train.main, words("", keys)), "--workdir is empty")
    assert not (tmp_path / "run").exists()


# The words of a command, of which each is a mistake of typing, and what the sentence says.
TYPED: list[tuple[Any, str, tuple[str, ...]]] = [
    (generate, "--workdir=x --extend", ("--extend is a flag of launch.train, and not of launch.generate;",)),
    (generate, "--workdir=x --config=gpt", ("--config is a flag of ", "launch.train", "and not of launch.generate;")),
    (evaluate, "--workdir=x --max-new-tokens=3", ("is a flag of launch.generate, and not of launch.evaluate;",)),
    (evaluate, "--workdir=x --step=7", ("--step: there is no such flag; see ",)),
    (train, "--config=gpt --workdir=x --race", ("--race is a flag of launch.attention, and not of launch.train;",)),
    (train, "--config=gpt --workdir=x --steps=9", ("--steps is a key of the config: write --config.train.steps;",)),
    (train, "--config=gpt --seed=3", ("write --config.data.seed or --config.train.seed;",)),
    (train, "--config=gpt --workdir=x config.train.steps=20", ("lacks its dashes: write --config.train.steps=20;",)),
    (train, "--config=gpt --workdir=x train.steps=20", ("lacks its dashes: write --config.train.steps=20;",)),
    (
        train,
        "--config=gpt --workdir=x --config.family=recurrent",
        (
            "--config=gpt sets model.edits",
            "take a config of",
        ),
    ),
    (bench, "--config=recurrent:lm", ("launch.bench measures --config.family=gpt; take configs/gpt.py:bench.",)),
    (train, "config=gpt workdir=x", ("config=gpt lacks its dashes: write --config=gpt;",)),
    (train, "--config=gpt -workdir=x", ("-workdir=x lacks its dashes: write --workdir=x;",)),
    (train, "--config=gpt --workdir=x stray", ("stray is no flag: flags begin with --;",)),
    (
        train,
        "--config=gpt --workdir=x --config.model",
        ("is a section", "model.width", "model.num_layers", "model.bias"),
    ),
    (train, "--config=gpt --workdir=x --config.model=3", ("no such key", "model.width", "model.num_layers")),
    (train, "--config=gpt --workdir=x --extend=3", ("--extend takes no value; write --extend.",)),
    (train, "--config=gpt --workdir=README.md", ("--workdir=README.md is a file: give",)),
    (evaluate, "--workdir=README.md", ("--workdir=README.md is a file: give",)),
    (generate, "--workdir=x --prompt", ("--prompt has no value: write --prompt=VALUE.",)),
    (generate, "--workdir --prompt=a", ("--workdir has no value: write --workdir=VALUE.",)),
    (generate, "--workdir=x --prompt=a --seed=two", ("--seed=two: a whole number is needed;",)),
    (generate, "--workdir=x --prompt=a --top_p=half", ("--top_p=half: a number is needed;",)),
    (generate, "--workdir=x --prompt=a --beam_form=huggingface", ("--beam_form=huggingface is of a beam, and there",)),
    (
        evaluate,
        "--workdir=x --beam_alpha=1.5 --beam_form=nonsense",
        ("--beam_alpha=1.5 is of a beam, and there is none",),
    ),
]


@pytest.mark.parametrize(("command", "typed", "parts"), TYPED, ids=[typed for _, typed, _ in TYPED])
def test_a_mistake_of_typing_is_answered_by_what_was_meant(command: Any, typed: str, parts: tuple[str, ...]) -> None:
    refused = call(command.main, typed.split())
    assert_refused(refused, *parts)
    assert len(refused.err.splitlines()) == 1


LONG = ["x" * 300, "é" * 150, "/".join(["folder"] * 700)]


@pytest.mark.parametrize("name", LONG, ids=["letters", "bytes", "parts"])
def test_a_name_that_is_too_long_is_refused(keys: dict[str, Any], name: str, finished: Path, tmp_path: Path) -> None:
    here, prompt = f"--workdir={tmp_path}/{name}", "--prompt=a"
    picture = [f"--workdir={finished}", prompt, f"--attention={tmp_path}/{name}/a.png"]
    config = [f"--config={name}.py", *words(tmp_path / "run", keys)[1:]]
    assert_refused(call(train.main, words(f"{tmp_path}/{name}", keys)), f"--workdir={tmp_path}"[:50], "at most")
    assert_refused(call(evaluate.main, [here]), f"--workdir={tmp_path}"[:50], "at most")
    assert_refused(call(generate.main, [here, prompt]), f"--workdir={tmp_path}"[:50], "at most")
    assert_refused(call(generate.main, picture), f"--attention={tmp_path}"[:50], "at most")
    assert_refused(call(train.main, config), f"--config={name[:40]}", "at most")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "told"), [("[x]", "holds ["), ("a*/b?", "holds * and ?"), ("\udcff", "UTF-8")])
def test_a_folder_in_which_checkpoints_are_lost_is_refused(
    keys: dict[str, Any], name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the name is that of the folder above."""
    assert_refused(call(train.main, words(tmp_path / name / "run", keys)), "--workdir=", told, "folder")
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    assert_refused(call(train.main, words("run", keys)), "--workdir=", told, "folder")
    assert not list((tmp_path / name).iterdir())


def test_an_empty_data_set_is_refused_and_the_folder_stays_free(keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    empty = keys | {"data.path": f"{tmp_path}/empty.txt", "optimizer.warmup_steps": 50}
    refused = call(train.main, words(tmp_path / "run", empty))
    assert_refused(refused, "'train'", "holds 0 tokens", "--config.data.")
    assert len(refused.err.splitlines()) == 1  # what may not have been meant is told of a run that begins
    trained = call(train.main, words(tmp_path / "run", keys | {"optimizer.warmup_steps": 50}))
    assert trained.status == 0
    short = "--config.optimizer.warmup_steps=50 is not below --config.train.steps=12: the run ends in its warm-up."
    told = [line for line in trained.err.splitlines() if "warm-up" in line or "idle" in line]
    assert told == ["the mesh of 1 leaves 7 of 8 devices idle: --config.mesh.* divides them.", short]
    assert saved(tmp_path / "run")[-1] == 12


def test_a_folder_that_cannot_be_written_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for folder, rule in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file/run", "is a file"),
        (Path("/proc/run"), "cannot be written"),
    ):
        assert_refused(call(train.main, words(folder, keys)), f"--workdir={folder}", rule)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.rest
def test_a_full_disk_is_refused_and_loses_nothing(keys: dict[str, Any], run: Path) -> None:
    """Of a disk that is full only where metrics are written; a whole one needs the right to mount."""
    shutil.rmtree(run / "checkpoints/12")
    (run / "metrics.jsonl").rename(run / "kept")
    (run / "metrics.jsonl").symlink_to("/dev/full")
    argv = words(run, keys)
    assert_refused(end(start("-m", "launch.train", *argv)), "disk under", str(run), "is full", "--workdir")
    assert saved(run) == [8]
    (run / "kept").rename(run / "metrics.jsonl")
    assert "resumed from step 8\n" in call(train.main, argv).err
    assert saved(run)[-1] == 12


LOCK = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX)
os.ftruncate(file, 0)
os.write(file, str(os.getpid()).encode())
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner(run: Path) -> Iterator[Any]:
    """Another process that holds the folder."""
    process = start("-c", "import time\n" + LOCK.replace("sys.stdin.read()", "time.sleep(600)"), str(run / ".lock"))
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_until_its_owner_dies(keys: dict[str, Any], run: Path, owner: Any) -> None:
    before = contents(run)
    assert_refused(call(train.main, words(run, keys)), f"--workdir={run}", "in use", str(owner.pid))
    assert contents(run) == before
    owner.kill()
    owner.wait()
    assert call(train.main, words(run, keys)).status == 0


def test_a_changed_config_is_refused_field_by_field(keys: dict[str, Any], run: Path) -> None:
    before = contents(run)
    changes = {"model.dropout": 0.2, "optimizer.learning_rate": 0.01, "train.steps": 20, "train.log_every": 5}
    diff = "(model.dropout: 0.1 -> 0.2, optimizer.learning_rate: 0.001 -> 0.01, train.steps: 12 -> 20)"
    refused = call(train.main, words(run, keys | changes))
    assert_refused(refused, f"--workdir={run}", diff)
    assert "--extend" not in refused.err  # which does not help here
    assert_refused(call(train.main, words(run, keys | {"train.steps": 20})), "12 -> 20", "--extend")
    # What is out of its range by itself is told before.
    assert_refused(call(train.main, words(run, keys | {"data.tokenizer": "bpe", "data.vocab_size": 1})), "at least 257")
    assert contents(run) == before


@pytest.mark.rest
def test_more_steps_and_free_keys_are_allowed(keys: dict[str, Any], run: Path) -> None:
    changes = {"train.steps": 15, "train.log_every": 3, "mesh.fsdp": 2, "train.keep_last": 1}
    outcome = call(train.main, words(run, keys | changes, "--extend"))
    assert outcome.status == 0
    told = outcome.err.index(
        "--extend: the learning rate jumps from 0.0001 to 0.0002132 at step 12, for cosine depends"
    )
    assert told < outcome.err.index("step 15/15")
    assert "resumed from step 12\n" in outcome.err
    assert [line["step"] for line in metrics(run) if "train/loss" in line] == [*range(1, 13), 15]
    assert saved(run)[-1] == 15


@pytest.mark.rest
def test_text_on_both_sides_is_refused_or_told(keys: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(Path(keys["data.path"]).parent, tmp_path / "text")
    for number in range(97):
        shutil.copy(tmp_path / f"text/{number:02}.txt", tmp_path / f"text/copy of {number:02}.txt")
    both = keys | {"data.path": f"{tmp_path}/text", "train.steps": 2}
    parts = ("documents of the validation split", "also in the train split", "--config.data.path", "--allow_overlap")
    assert_refused(call(train.main, words(tmp_path / "run", both)), *parts)
    outcome = call(train.main, words(tmp_path / "run", both, "--allow_overlap"))
    assert outcome.status == 0, outcome.err
    (told,) = [line for line in outcome.err.splitlines() if parts[1] in line]
    overlap = json.loads((tmp_path / "run/passport.json").read_text())["data"]["overlap"]
    assert told.startswith(f"{overlap['documents']} of the {overlap['of']} ")
    assert 0 < overlap["documents"] <= overlap["of"]
    measured = call(evaluate.main, [f"--workdir={tmp_path}/run"])
    assert (measured.status, told in measured.err) == (0, True)


def test_a_checkpoint_of_another_model_is_refused(keys: dict[str, Any], run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    config["model"]["width"] = 32
    (run / "config.json").write_text(json.dumps(config))
    for note in run.glob("checkpoints/*/run/metadata"):  # their copies would mend it
        note.write_text(json.dumps(json.loads(note.read_text()) | {"config.json": config}))
    before = contents(run / "checkpoints")
    for command, argv in (
        (evaluate.main, [f"--workdir={run}"]),
        (train.main, words(run, keys | {"model.width": 32})),
    ):
        assert_refused(call(command, argv), "checkpoint 12", "another model", "embed", "256, 16", "256, 32", "--config")
    assert contents(run / "checkpoints") == before


def test_a_truncated_checkpoint_gives_way_to_the_one_before(keys: dict[str, Any], run: Path) -> None:
    files = [path for path in (run / "checkpoints/12").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    found = call(evaluate.main, [f"--workdir={run}"])
    assert f"{run}, step 8, " in found.out
    again = call(train.main, words(run, keys))
    for outcome in (found, again):
        assert outcome.status == 0
        told = [line for line in outcome.err.splitlines() if line.startswith("checkpoint 12 of")]
        assert len(told) == 1, outcome.err
        assert "the one before is taken" in told[0]
    assert "resumed from step 8\n" in again.err
    assert saved(run)[-1] == 12


@pytest.mark.rest
@pytest.mark.parametrize("name", ["extra/metadata", "state/_sharding", "state/_METADATA"])
def test_an_altered_checkpoint_gives_way_to_the_one_before(keys: dict[str, Any], run: Path, name: str) -> None:
    """By one byte, with which the file is still JSON."""
    file = run / "checkpoints/12" / name
    text = file.read_bytes()
    file.write_bytes(text.replace(b"ba", b"be", 1) if name.startswith("extra") else text.replace(b"mesh", b"mash", 1))
    if file.read_bytes() == text:
        file.write_bytes(text.replace(b"params", b"parems", 1))
    assert file.read_bytes() != text
    assert f"{run}, step 8, " in call(evaluate.main, [f"--workdir={run}"]).out
    again = call(train.main, words(run, keys))
    assert (again.status, "resumed from step 8\n" in again.err) == (0, True), again.err
    assert f"(ValueError: {name} is altered): the one before is taken" in again.err
    assert saved(run)[-1] == 12


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half": half,
    "missing": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "nothing but zeros": lambda file: file.write_bytes(bytes(4096)),
    "no JSON": lambda file: file.write_text('{"data": NaN}'),
    "other JSON": lambda file: file.write_text("[]"),
}


@pytest.mark.parametrize(
    "damage", [name if name == "half" else pytest.param(name, marks=pytest.mark.rest) for name in DAMAGES]
)
def test_damaged_files_are_named_and_mended(keys: dict[str, Any], run: Path, damage: str) -> None:
    """All at once: the run is evaluated, which changes nothing, and then resumed."""
    before = contents(run)
    files = ["config.json", "passport.json", "tokenizer.json", "baselines.json"]
    for name in files:
        DAMAGES[damage](run / name)
    with (run / "metrics.jsonl").open("ab") as lines:
        lines.write(b'{"step": 12, "val/lo')
    damaged = contents(run)
    found = call(evaluate.main, [f"--workdir={run}"])
    assert found.status == 0, found.err
    assert contents(run) == damaged
    state = "missing" if damage == "missing" else "damaged"
    for name in files[:3]:
        assert f"{name} of {run} is {state}" in found.err

    again = call(train.main, words(run, keys))
    assert again.status == 0, again.err
    assert "resumed from step 12\n" in again.err
    assert "this model" in again.out
    for name in files:
        assert f"{run / name} is {state}" in again.err
        assert json.loads((run / name).read_text()).keys() == json.loads(before[name]).keys()
        assert damage == "missing" or (run / f"broken-{name}").read_bytes() == damaged[name]
    assert contents(run)["config.json"] == before["config.json"]
    assert contents(run)["metrics.jsonl"] == before["metrics.jsonl"]
    assert (run / "broken-metrics.jsonl").read_bytes() == b'{"step": 12, "val/lo\n'
    # And what was mended still refuses what it refused.
    assert_refused(call(train.main, words(run, keys | {"model.dropout": 0.2})), "model.dropout: 0.1 -> 0.2")


def test_an_altered_config_is_mended(keys: dict[str, Any], run: Path) -> None:
    """It is JSON, of which a key is gone and another a text."""
    before = (run / "config.json").read_text()
    config = json.loads(before)
    del config["model"]["mlp"]
    config["model"]["width"] = "16"
    (run / "config.json").write_text(json.dumps(config))
    for main, argv in ((evaluate.main, [f"--workdir={run}"]), (train.main, words(run, keys))):
        outcome = call(main, argv)
        assert outcome.status == 0, outcome.err
        assert "not what checkpoint 12 has kept: model.mlp: 'gelu' -> None, model.width: 16 -> '16'" in outcome.err
    assert (run / "config.json").read_text() == before


@pytest.mark.rest
def test_a_damaged_note_of_a_checkpoint_is_no_reason_to_lose_it(keys: dict[str, Any], run: Path) -> None:
    """Those of ours and of Orbax that hold no array."""
    shutil.rmtree(run / "checkpoints/8")
    for note in ("files.json", "run/metadata", "_CHECKPOINT_METADATA"):
        spoiled = shutil.copytree(run, run.with_name(note.replace("/", " ")))
        (spoiled / "checkpoints/12" / note).write_text("{")
        found = call(evaluate.main, [f"--workdir={spoiled}"])
        assert (found.status, f"{spoiled}, step 12" in found.out) == (0, True), (note, found.err)
        again = call(train.main, words(spoiled, keys))
        assert (again.status, "resumed from step 12\n" in again.err) == (0, True), (note, again.err)


def test_what_is_not_finite_is_never_saved(keys: dict[str, Any], tmp_path: Path) -> None:
    """Update 1 has learning rate 0; update 2 makes the decayed kernels infinite, and so the loss of update 3."""
    broken = {"optimizer.warmup_steps": 4, "optimizer.learning_rate": 1e30, "optimizer.weight_decay": 1e10}
    run = tmp_path / "parameters"
    refused = call(train.main, words(run, keys | broken | {"train.checkpoint_every": 1}))
    assert_refused(refused, "step 2", "not finite", "stack/attention, stack/mlp:", "--config.optimizer.learning_rate")
    assert saved(run) == [1]
    measured = call(evaluate.main, [f"--workdir={run}"])
    assert measured.status == 0
    assert "step 1, " in measured.out
    assert "nan" not in measured.out

    run = tmp_path / "loss"
    refused = call(train.main, words(run, keys | broken))
    assert_refused(refused, "step 3", "not finite", "loss", "embed", "stack/attention", "--config.optimizer.clip_norm")
    assert saved(run) == []
    assert_refused(call(generate.main, [f"--workdir={run}", "--prompt=a"]), f"--workdir={run}", "no checkpoint")


PROMPTS: list[tuple[list[str], tuple[str, ...]]] = [
    (["--prompt=de\udcff"], ("'\\udcff'", "position 2", "--prompt")),
    (["--prompt="], ("empty", "--prompt=TEXT")),
    ([], ("--prompt=TEXT",)),
    (["--prompt=" + "x" * 64], ("64 tokens", "fewer than 64", "--prompt")),
    (["--prompt=de", "--max_new_tokens=63"], ("2 + 63 = 65", "64", "--max_new_tokens")),
    (["--prompt=de", "--top_p=2"], ("--top_p=2", "1")),
    (["--prompt=de", "--attention=/nowhere/a.png"], ("--attention=/nowhere/a.png", "folder")),
    (["--prompt=de", "--config.train.steps=3"], ("--config.train.steps", "config it was trained with")),
]


@pytest.mark.parametrize(("argv", "parts"), PROMPTS, ids=[parts[0] for _, parts in PROMPTS])
def test_a_bad_prompt_is_refused(finished: Path, argv: list[str], parts: tuple[str, ...]) -> None:
    assert_refused(call(generate.main, [f"--workdir={finished}", *argv]), *parts)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for command, argv in ((evaluate.main, []), (generate.main, ["--prompt=a"])):
        assert_refused(call(command, [f"--workdir={tmp_path}", *argv]), f"--workdir={tmp_path}", "passport.json")


@pytest.mark.rest
def test_the_commands_themselves_end_with_the_sentence(keys: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    misspelt = start("-m", "launch.train", *words(tmp_path / "run", keys | {"train.stepss": 9}))
    prompt = start("-m", "launch.generate", f"--workdir={finished}", b"--prompt=\xff")
    assert_refused(end(misspelt), "--config.train.stepss", "train.steps")
    assert_refused(end(prompt), "'\\udcff'", "--prompt")
