"""What a run says when it is told to stop, and when."""

import contextlib
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


def test_whoever_stops_a_run_is_told_wherever_its_own_words_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of a program of a grid go to its log; in a worker nobody is told, since the grid says it."""
    for nobody in (False, True):
        screen, log = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "stderr", screen)
        with stop_signals() as stop:
            stop.listener = None if nobody else stop.listener
            with contextlib.redirect_stderr(log):
                os.kill(os.getpid(), signal.SIGINT)
                while not stop._heard:
                    time.sleep(0.001)
        assert screen.getvalue().count("Ctrl-C: finishing the start") == 1 - nobody
        assert log.getvalue() == ""


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
