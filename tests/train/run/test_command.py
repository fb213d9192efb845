"""Commands that are printed run as they are typed, wherever the user stands."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from train.run.command import command, interpreter


def environment(folder: Path) -> Path:
    """An interpreter like that of a virtual environment, which says by which name it was started."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin/python"
    python.write_text('#!/bin/sh\necho "$0" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("there", "path", "name"),
    [
        ("", "", "my env/bin/python"),
        ("my env", "", "bin/python"),
        ("my env/bin", "", "./python"),
        ("elsewhere", "", "{}/my env/bin/python"),
        ("elsewhere", "other/bin", "{}/my env/bin/python"),
        ("elsewhere", "my env/bin", "python"),
        ("my env", "my env/bin", "bin/python"),
    ],
)
def test_the_interpreter_is_named_in_its_shortest_form(
    there: str, path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = environment(tmp_path / "my env")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other/bin").mkdir(parents=True)
    (tmp_path / "other/bin/python").symlink_to(own)  # another environment of the same interpreter
    monkeypatch.chdir(tmp_path / there)
    monkeypatch.setattr(sys, "executable", str(own))
    monkeypatch.setenv("PATH", f"{tmp_path}/{path}:/usr/bin:/bin" if path else "/usr/bin:/bin")
    assert interpreter() == shlex.quote(name.format(tmp_path))
    line = command("generate", "--workdir=a b", "--prompt=it's $HOME", "--x=1")
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.split("-m ", 1)[1] == "launch.generate --workdir=a b --prompt=it's $HOME --x=1\n"
