"""What a run says when it is told to stop, and when."""

import hashlib
import io
import os
import signal
import sys
import threading
import time

import pytest

from train.run.signals import Stopped, stop_signals


class Timed(io.StringIO):
    """A standard error that knows when it was written to."""

    def write(self, text: str) -> int:
        self.at = time.monotonic()
        return super().write(text)


def test_the_line_comes_while_the_main_thread_is_busy_outside_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    err, told = Timed(), 0.0
    monkeypatch.setattr(sys, "stderr", err)
    with stop_signals() as stop:
        stop.begin("the tokenizer")
        told = time.monotonic() + 0.1
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_500_000)  # as a compilation does: a second without an instruction
        done = time.monotonic()
        assert stop(0)
        with pytest.raises(Stopped):
            stop.begin("the tokens")
    assert err.getvalue() == ("Ctrl-C: finishing the tokenizer, then the run ends; once more interrupts at once.\n")
    assert told <= err.at < told + 2
    assert err.at < done - 0.2


def test_inside_of_a_command_a_run_has_the_command_s_own_stop() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with stop_signals(command=True) as outer:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        with stop_signals() as inner:
            assert inner is outer
        os.kill(os.getpid(), signal.SIGHUP)
        assert not outer(0)
    assert {number: signal.getsignal(number) for number in before} == before
    with stop_signals() as another:
        assert another is not outer
