"""Ctrl-C, SIGTERM and SIGHUP: a run says what it finishes first, ends at a sound point, and outlives its terminal.

Python runs its handlers in the main thread between two of its instructions: not before a compilation or the training of
a tokenizer is over. But the number of a signal is written to a pipe when it arrives, and a thread reads it there.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

import jax
from jax.experimental import multihost_utils

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_active: "Stop | None" = None


class Stopped(KeyboardInterrupt):
    """A run that was told to stop before its first step, or a grid before its last."""

    def __init__(self) -> None:
        super().__init__("stopped as told: nothing that is saved is lost, and the same call goes on from there")


class Stop:
    """Whether a run was told to stop, and what it is doing: a call with the number of steps done says the former.

    On several processes all of them hear of it at the same step, through the preemption service of `jax.distributed`.
    """

    def __init__(self, command: bool):
        self._command, self._heard, self._doing = command, list[int](), "the start"
        self.told = False
        self.listener: TextIO | None = (
            sys.stderr
        )  # who is told of a signal, wherever a run's own words go; None: nobody

    def __call__(self, step: int) -> bool:
        """Whether to stop after `step` steps."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self.told

    def doing(self, what: str) -> None:
        """Notes what would have to be finished now: 'the evaluation of step 9'."""
        self._doing = what

    def begin(self, what: str) -> None:
        """As `doing`, before the first step, where a run that was told to stop ends here.

        Raises:
            Stopped: it was.
        """
        self.check()
        self.doing(what)

    def check(self) -> None:
        """Ends a run that was told to stop, before the first step.

        Raises:
            Stopped: it was.
        """
        if self.told and not jax.distributed.is_initialized():  # of several processes, none stops alone
            raise Stopped

    def hear(self, number: int) -> None:
        """Takes a signal, in a thread of its own; the second one ends the process of a command.

        That loses nothing: every file of ours appears by a rename, and so does a checkpoint.
        """
        name = _NAMES[signal.Signals(number)]
        if self._heard and self._command:
            self._say(f"{name} again: ended at once; what was saved is whole, and the same command goes on from there.")
            os._exit(128 + number)
        if not self._heard:
            again = "ends it at once, and loses nothing that is saved" if self._command else "interrupts at once"
            self._say(f"{name}: finishing {self._doing}, then the run ends; once more {again}.")
        self._heard.append(number)
        self.told = True
        if number == signal.SIGINT and jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # by which the other processes hear of it

    def _say(self, text: str) -> None:
        if self.listener is not None:
            with contextlib.suppress(OSError, ValueError):  # it has gone
                print(text, file=self.listener, flush=True)


@contextlib.contextmanager
def stop_signals(command: bool = False) -> Iterator[Stop]:
    """Inside, SIGTERM and Ctrl-C make the stop true instead of ending the process; inside itself, it yields the same.

    A second Ctrl-C ends a `command` at once, which also outlives its terminal (SIGHUP); elsewhere, as in a notebook, it
    does what it did before. Outside of the main thread signals are left alone: there, the host program owns them.
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield _active or Stop(command)
        return
    stop = _active = Stop(command)
    with contextlib.ExitStack() as stack:
        stack.callback(_forget)
        stack.enter_context(_listener(stop))
        # jax.distributed has a handler of its own for SIGTERM.
        numbers = [signal.SIGINT] if jax.distributed.is_initialized() else [signal.SIGINT, signal.SIGTERM]
        for number in numbers:
            _handle(stop, stack, number, once=not command)
        if command and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            stack.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN))
        yield stop


def _forget() -> None:
    global _active
    _active = None


def _handle(stop: Stop, stack: contextlib.ExitStack, number: signal.Signals, once: bool) -> None:
    """Until the stack is closed, the signal ends nothing; `once`: the first of it."""
    before = signal.getsignal(number)

    def handler(arrived: int, frame: FrameType | None) -> None:
        stop.told = True
        if once:
            signal.signal(number, before)

    signal.signal(number, handler)
    stack.callback(signal.signal, number, before)


@contextlib.contextmanager
def _listener(stop: Stop) -> Iterator[None]:
    """Inside, a thread tells `stop` of each signal, whatever the main thread does."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while number := os.read(reading, 1):
            if number[0] in _NAMES:
                stop.hear(number[0])

    thread = threading.Thread(target=listen, name="signals", daemon=True)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        thread.join()
        os.close(reading)
