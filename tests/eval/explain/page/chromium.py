"""A tab of headless Chromium, driven over a pipe by its own protocol (messages of JSON, each ended by a zero byte)."""

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
SECONDS = 60  # that an answer may take on a busy machine


class Tab:
    """One page; `requests` are the addresses that it has asked for, `errors` what its console has told of."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 2400) -> None:
        assert PROGRAM is not None
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        line = [PROGRAM, *FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}", "about:blank"]
        joined = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", *line]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(joined, pass_fds=(commands, answers), stdout=quiet, stderr=quiet)
        os.close(commands)
        os.close(answers)
        os.set_blocking(self._answers, False)
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.requests, self.errors, self.loaded = list[str](), list[str](), 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        os.close(self._commands)
        os.close(self._answers)

    def open(self, file: Path) -> None:
        """Opens a file as a double click does, and waits until it is loaded."""
        before = self.loaded
        self.call("Page.navigate", url=file.as_uri())
        self._until(lambda message: self.loaded > before)

    def value(self, script: str) -> Any:
        """What an expression is."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """Presses the button of the mouse at a place of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key, by its name."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def call(self, method: str, **params: Any) -> Any:
        """The result of a method of the protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda message: message.get("id") == number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _until(self, wanted: Any) -> Any:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            whole, zero, rest = self._rest.partition(b"\0")
            if not zero:
                try:
                    self._rest += os.read(self._answers, 2**20)
                except BlockingIOError:
                    time.sleep(0.005)
                continue
            self._rest, message = rest, json.loads(whole)
            self._note(message.get("method", ""), message.get("params", {}))
            if wanted(message):
                return message
        raise TimeoutError("Chromium did not answer")

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        self.loaded += method == "Page.loadEventFired"
