"""The script that ends a machine, run beside a server that answers for Google's."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.pods.timer import script

TOKEN = "a-token"


class Google(http.server.ThreadingHTTPServer):
    started = ""
    deleted: list[tuple[str, str]]


class Answers(http.server.BaseHTTPRequestHandler):
    server: Google

    def do_GET(self) -> None:
        known = {
            "/instance/attributes/heed-started": self.server.started,
            "/instance/service-accounts/default/token": json.dumps({"access_token": TOKEN}),
            "/project/project-id": "p-7",
        }
        text = known.get(self.path, "") if self.headers["Metadata-Flavor"] == "Google" else ""
        self.send_response(200 if text else 404)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_DELETE(self) -> None:
        self.server.deleted.append((self.path, self.headers["Authorization"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def google() -> Iterator[Google]:
    with Google(("127.0.0.1", 0), Answers) as server:
        server.deleted = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("kept", "told", "ends"),
    [
        (None, None, False),
        (-7200, None, True),  # before a reboot
        (None, -7200, True),  # before a preemption
        pytest.param(-7200, -60, True, marks=pytest.mark.rest),
        pytest.param(-60, None, False, marks=pytest.mark.rest),
    ],
)
def test_it_deletes_by_name_when_its_hours_are_over(
    google: Google, tmp_path: Path, kept: int | None, told: int | None, ends: bool
) -> None:
    file, now = tmp_path / "startup.py", time.time()
    file.write_text(script("us-west4-a", "try", True, 1.0))
    if kept is not None:
        (tmp_path / "kept").write_text(str(now + kept))
    google.started = "" if told is None else str(now + told)
    server = f"http://127.0.0.1:{google.server_port}"
    told_by = {"HEED_METADATA": server, "HEED_SERVICE": f"{server}/v2", "HEED_KEPT": str(tmp_path / "kept")}
    # Its own process ends at once, so that the boot goes on.
    subprocess.run([sys.executable, "-I", "-S", file], check=True, timeout=20, env={**os.environ, **told_by})
    waiting = [path for path in Path("/proc").glob("[0-9]*") if str(file).encode() in _line(path)]
    try:
        end = time.monotonic() + (10 if ends else 0.5)
        while not google.deleted and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        for path in waiting:
            os.kill(int(path.name), signal.SIGKILL)
    path = "/v2/projects/p-7/locations/us-west4-a/queuedResources/try?force=true"
    assert google.deleted == ([(path, f"Bearer {TOKEN}")] if ends else [])
    assert len(waiting) == 1


def _line(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_machine_without_a_queue_deletes_itself() -> None:
    assert "'locations/z/nodes/try'" in script("z", "try", False, 1.0)
