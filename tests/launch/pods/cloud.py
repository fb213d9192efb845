"""A folder that stands in for Google Cloud, and this machine, on whose PATH its gcloud is the only one."""

import atexit
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep  # which tests may replace in `time`
from typing import Any

import pytest

from launch import pod
from launch.machines import tree
from launch.pods import resources
from tests.tiny import Outcome, call

ZONE = "--zone=us-west4-a"
TRAIN = ("--", "launch.train", "--config=configs/gpt.py:gpt2", "--workdir=runs/try")
PLAN = {"topology": "v5e:4x4", "fits": True, "peak_bytes": 7_000_000_000, "hbm_bytes": 16_900_000_000}
# A host's Python writes down how it was started, and what of its environment the tests ask for.
_PYTHON = r"""#!/bin/bash
printf '%s\0' "$@" > "$HOME/argv"
printf '%s' "$TOKEN" > "$HOME/token"
printf '%s %s\n' "$HEED_RUN" "$HEED_ATTEMPT" >> "$HOME/attempts"
mkdir -p runs/try && echo '{}' > runs/try/config.json
echo "step 1"
while [ -e "$HOME/wait" ]; do sleep 0.05; done
exit "$(cat "$HOME/exit" 2>/dev/null || echo 0)"
"""
_UV = r"""#!/bin/bash
echo "$@" >> "$HOME/uv"
if [ "$1" = venv ]; then mkdir -p .venv/bin && cp "$(dirname "$0")/stub-python" .venv/bin/python; fi
"""
_GCLOUD = """#!/bin/bash
[ "$*" = "secrets versions access latest --secret=TOKEN" ] && printf 's3cret "$HOME"'
"""


def executable(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)


@functools.cache
def _code() -> Path:
    """A checkout that stands in for heed's, made once."""
    folder = Path(tempfile.mkdtemp(prefix="heed-code-"))
    atexit.register(shutil.rmtree, folder)
    for name in ("requirements-build.txt", "requirements.txt", "code.py"):
        (folder / name).write_text("x = 1\n")
    commit = ["-c", "user.name=me", "-c", "user.email=me@example.com", "commit", "--quiet", "-m", "Begin"]
    for words in (["init", "--quiet", "--template="], ["add", "."], commit):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder


class Cloud:
    """Its state, faults and hosts, and the commands of ours that talk to it."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.folder = folder
        for name in ("bin", "host-bin", "config", "hosts"):
            (folder / name).mkdir()
        executable(
            folder / "bin/gcloud", f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).parent}/stand_in.py "$@"\n'
        )
        (folder / "bin/git").symlink_to(str(shutil.which("git")))
        for name, text in (("stub-python", _PYTHON), ("uv", _UV), ("gcloud", _GCLOUD)):
            executable(folder / "host-bin" / name, text)
        self.state({"queued": {}, "nodes": {}})
        self.faults()
        (folder / "calls.jsonl").touch()
        (folder / "plan.json").write_text(json.dumps(PLAN))
        shutil.copytree(_code(), folder / "code")
        patch.setenv("PATH", str(folder / "bin"))
        patch.setenv("STAND_IN", str(folder))
        patch.setenv("CLOUDSDK_CONFIG", str(folder / "config"))
        patch.setattr(resources, "PAUSE_SECONDS", 0.0)
        patch.setattr(tree, "ROOT", folder / "code")
        # No test may find a real one, by whatever way.
        assert shutil.which("gcloud") == str(folder / "bin/gcloud")

    def git(self, *words: str) -> None:
        subprocess.run(["git", *words], cwd=self.folder / "code", check=True)

    def state(self, new: dict[str, Any] | None = None) -> Any:
        if new is not None:
            (self.folder / "state.json").write_text(json.dumps(new))
        return json.loads((self.folder / "state.json").read_text())

    def faults(self, **given: Any) -> None:
        (self.folder / "faults.json").write_text(
            json.dumps({name.replace("_", "-"): one for name, one in given.items()})
        )

    def calls(self, *parts: str) -> list[list[str]]:
        """The calls of gcloud that hold all these words."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [words for words in map(json.loads, lines) if {*parts} <= {*words}]

    def pod(self, action: str, *words: str, name: str = "try") -> Outcome:
        named = [] if action == "list" else [f"--name={name}", ZONE]
        return call(pod.main, [action, *named, *words])

    def create(self, *words: str, name: str = "try") -> Outcome:
        given = (f"--plan={self.folder}/plan.json", "--max-hours=8", "--yes")
        return self.pod("create", *given, *words, name=name)

    def home(self, node: str = "try", worker: int = 0) -> Path:
        return self.folder / "hosts" / f"{node}-{worker}"

    def ended(self, node: str = "try", worker: int = 0) -> str:
        """The exit status of a host's run, once it has ended."""
        file, end = self.home(node, worker) / "heed" / "try" / "run.status", monotonic() + 20
        while not file.exists():
            assert monotonic() < end
            sleep(0.02)
        return file.read_text().strip()

    def shown(self, outcome: Outcome) -> list[list[str]]:
        """The commands of gcloud that a dry run shows."""
        commands = re.findall(r"^gcloud .*? --quiet$", outcome.out, re.MULTILINE | re.DOTALL)
        return [shlex.split(command)[1:] for command in commands]


def environment(cloud: Cloud) -> dict[str, str]:
    """That of a process of ours beside this cloud."""
    return {**os.environ, "PATH": str(cloud.folder / "bin")}
