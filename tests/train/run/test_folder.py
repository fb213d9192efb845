"""A run's folder: one owner, one config, and errors in one sentence."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from launch.configs import load
from model.errors import UserError
from train.run.files.disk import full_disk
from train.run.files.format import FORMAT
from train.run.files.learned import ADDED, altered, flatten, learned_changes, with_added
from train.run.folder import RunFolder, passport


def config(**overrides: object) -> ConfigDict:
    return load("gpt:quickstart", **overrides)


def test_a_folder_holds_the_config_and_the_passport(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a/b", config()) as folder:
        folder.write_passport(
            passport(
                config(**{"train.seed": 5, "train.seeds": 3, "data.seed": 7}),
                {"fingerprint": "f1n6er"},
                {"core": "dense"},
            )
        )
    assert json.loads((tmp_path / "a/b/config.json").read_text()) == config().to_dict()
    found = json.loads((tmp_path / "a/b/passport.json").read_text())
    assert found["format"] == FORMAT
    assert found["seeds"] == [5, 6, 7]
    assert found["data"] == {"fingerprint": "f1n6er", "seed": 7}
    assert found["attention"] == {"core": "dense"}
    assert found["devices"]["count"] == 8
    assert found["packages"]["jax"]
    assert "host_platform_device_count" in found["flags"]["XLA_FLAGS"]


def test_what_is_learned_may_not_change_and_the_rest_may(tmp_path: Path) -> None:
    """Every key is tried, against a list that is written here a second time."""
    free = {
        "log_every",
        "evaluate_every",
        "evaluate_windows",
        "checkpoint_every",
        "keep_last",
        "keep_best",
        "prompt",
        "step",
        "prefetch",
        "dir",
        "path",
    }
    before = config().to_dict()
    for key, value in flatten(before).items():
        other = {bool: not value, int: 3, float: 0.123, str: "other"}[type(value)]
        section, _, name = key.rpartition(".")
        after = before | ({section: before[section] | {name: other}} if section else {name: other})
        changes = learned_changes(before, after)
        assert changes == ({} if section == "mesh" or name in free or key == "data.name" else {key: (value, other)}), (
            key
        )


def test_a_key_that_came_without_a_new_format_alters_no_run() -> None:
    """Of a run that has it not, a start says what that run did; to say something else is to alter nothing learned."""
    now = config().to_dict()
    old = {name: {**part} if isinstance(part, dict) else part for name, part in now.items()}
    for section, keys in ADDED.items():
        for key in keys:
            del old[section][key]
    assert old != now == with_added(old)
    assert altered(old, now) == altered(now, old) == learned_changes(old, now) == {}


def begin(path: Path, **overrides: object) -> None:
    """Makes the folder of a run that has saved a checkpoint."""
    with RunFolder(path, config(**overrides)) as folder:
        folder.write_passport(passport(config(**overrides), {"fingerprint": "f1n6er"}, {}))
    (path / "checkpoints/20").mkdir(parents=True)


def go_on(path: Path, extend: bool = False, **overrides: object) -> None:
    """Starts such a run again."""
    with RunFolder(path, config(**overrides), extend=extend) as folder:
        folder.write_passport(passport(config(**overrides), {"fingerprint": "f1n6er"}, {}))


def test_a_changed_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    begin(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError, match=r"model.width: \d+ -> 96, optimizer.beta1: 0.9 -> 0.5\)"):
        RunFolder(tmp_path, config(**{"model.width": 96, "optimizer.beta1": 0.5, "train.log_every": 3}))
    assert (tmp_path / "config.json").read_text() == before
    go_on(tmp_path, **{"train.log_every": 3, "mesh.tensor": 2})
    assert json.loads((tmp_path / "config.json").read_text())["mesh"]["tensor"] == 2


def test_only_extend_allows_more_steps(tmp_path: Path) -> None:
    begin(tmp_path, **{"train.steps": 50})
    with pytest.raises(UserError, match=r"train.steps: 50 -> 60.*--extend"):
        RunFolder(tmp_path, config(**{"train.steps": 60}))
    for extend in (False, True):  # which helps with neither of these, so that it is not advised
        with pytest.raises(
            UserError, match=r"train.steps: 50 -> 40\): give its --config again or another --workdir\.$"
        ):
            RunFolder(tmp_path, config(**{"train.steps": 40}), extend=extend)
        with pytest.raises(UserError, match=r"model.width: .*\): give its --config again or another --workdir\.$"):
            RunFolder(tmp_path, config(**{"train.steps": 60, "model.width": 96}), extend=extend)
    go_on(tmp_path, extend=True, **{"train.steps": 60})
    go_on(tmp_path, **{"train.steps": 60})


OWNER = """
import os, sys
from launch.configs import load
from train.run.files.format import FORMAT
from train.run.folder import RunFolder
folder = RunFolder(sys.argv[1], load("gpt:quickstart"))
child = os.fork()  # a loader, which outlives its killed parent
if child == 0:
    sys.stdin.read()
    os._exit(0)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_folder_has_one_owner_until_it_dies(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", OWNER, str(tmp_path)]
    # Warnings are ignored: jax has threads in the parent of this fork, but the child only reads.
    owner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"in use by another process .number {owner.pid}."):
            RunFolder(tmp_path, config())
        owner.kill()
        owner.wait()
        RunFolder(tmp_path, config()).close()
    finally:
        owner.kill()
        owner.communicate()


def test_a_run_that_has_saved_nothing_may_change(tmp_path: Path) -> None:
    RunFolder(tmp_path, config()).close()
    (tmp_path / "checkpoints/4.orbax-checkpoint-tmp").mkdir(parents=True)  # killed in its first save
    with RunFolder(tmp_path, config(**{"model.width": 96})) as folder:
        folder.write_passport(passport(config(**{"model.width": 96}), {"fingerprint": "f1n6er"}, {}))
    assert json.loads((tmp_path / "config.json").read_text())["model"]["width"] == 96


def test_a_run_that_is_refused_leaves_what_was_there_before(tmp_path: Path) -> None:
    """Nothing of its own, be it made by a run that was refused, or found."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("kept")
    for folder in ("mine", "mine/a/b", "new"):
        with pytest.raises(UserError, match="refused"), RunFolder(tmp_path / folder, config()):
            raise UserError("refused")
        assert sorted(tmp_path.rglob("*")) == [tmp_path / "mine", tmp_path / "mine/notes.txt"]
    with RunFolder(tmp_path / "new", config()):
        (tmp_path / "new/notes.txt").write_text("somebody else's")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes.txt"]
    begin(tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="learns something else"):
        RunFolder(tmp_path / "run", config(**{"model.width": 96}))
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_a_lock_that_its_owner_removes_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening it and locking it: whoever comes next would hold another file of its name."""
    lockf, removed = fcntl.lockf, list[Path]()

    def late(file: int, kind: int) -> None:
        if not removed:
            removed.append(tmp_path / "run/.lock")
            removed[0].unlink()
            removed[0].parent.rmdir()
        lockf(file, kind)

    monkeypatch.setattr(fcntl, "lockf", late)
    with RunFolder(tmp_path / "run", config()):
        assert (tmp_path / "run/.lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_run_does_not_go_on_with_other_text(tmp_path: Path) -> None:
    begin(tmp_path)
    with RunFolder(tmp_path, config()) as folder:
        folder.write_passport(passport(config(), {"fingerprint": "f1n6er"}, "dense"))
        folder.write_passport(passport(config(), {"fingerprint": "f1n6er"}, "dense"))
    before = (tmp_path / "config.json").read_text()
    with RunFolder(tmp_path, config(**{"data.path": "elsewhere"})) as folder:
        with pytest.raises(UserError, match="text or its tokens changed .*f1n6er -> 0ther.*--config.data.path"):
            folder.write_passport(passport(config(), {"fingerprint": "0ther"}, "dense"))
    assert json.loads((tmp_path / "passport.json").read_text())["data"]["fingerprint"] == "f1n6er"
    assert (tmp_path / "config.json").read_text() == before
    go_on(tmp_path, **{"data.path": "elsewhere"})
    assert json.loads((tmp_path / "config.json").read_text())["data"]["path"] == "elsewhere"


def test_a_refused_config_gives_the_lock_back(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UserError):
        RunFolder(tmp_path, config(**{"model.width": 96}))
    again = "import sys; from launch.configs import load; from train.run.folder import RunFolder\n"
    again += "RunFolder(sys.argv[1], load('gpt'))"
    subprocess.run([sys.executable, "-c", again, str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    whole = f"--workdir={tmp_path}/file{{}}: {tmp_path}/file is a file: give a folder."
    sentences = {
        tmp_path / "file": whole.format(""),
        tmp_path / "file/run": whole.format("/run"),
        Path("/proc/run"): "--workdir=/proc/run cannot be written",
    }
    for path, sentence in sentences.items():
        with pytest.raises(UserError, match=sentence):
            RunFolder(path, config())


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"the disk under {tmp_path} is full"), full_disk(tmp_path):
        with open("/dev/full", "w") as file:
            file.write("x")
    # The words of TensorStore, through which Orbax writes.
    with pytest.raises(UserError, match="is full"), full_disk(tmp_path):
        raise ValueError(f"RESOURCE_EXHAUSTED: Failed to write 9 bytes to file 8: {os.strerror(errno.ENOSPC)}")
    with pytest.raises(ValueError, match="another"), full_disk(tmp_path):
        raise ValueError("another")
    with pytest.raises(FileNotFoundError), full_disk(tmp_path):
        (tmp_path / "absent").read_text()


def test_a_config_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("theirs")
    with pytest.raises(UserError, match="config.json that heed did not write"):
        RunFolder(tmp_path, config())
    assert (tmp_path / "config.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
