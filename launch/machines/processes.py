"""Processes of this machine: started at once, their lines merged, one stop for all, and none left behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, TextIO

from launch.output import unheard

GRACE = 15.0  # seconds for the others' own words, once a process has failed
# By which jax or libtpu would think itself elsewhere.
_ELSEWHERE = (
    "SLURM_", "OMPI_", "PMIX_", "TPU_", "CLOUD_TPU_", "MEGASCALE_", "JAX_COORDINATOR_", "JAX_LOCAL_DEVICE_IDS",
    "JAX_PARTITION_INDEX", "JAX_SLICE_INDEX", "JAX_NUM_CPU_DEVICES",
)  # fmt: skip


def environment(given: Mapping[str, str], devices: int, address: str) -> dict[str, str]:
    """The variables of a process that has `devices` fake devices of the CPU and listens on loopback alone."""
    kept = {name: value for name, value in given.items() if not name.startswith(_ELSEWHERE)}
    # The last of two equal flags counts.
    flags = f"{given.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}".strip()
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "JAX_COORDINATOR_BIND_ADDRESS": address}


def ranks(words: Sequence[str], count: int, address: str) -> list[list[str]]:
    """The words for Python of each of `count` processes: `words` is a module and its own."""
    place = [f"--coordinator={address}", f"--num-processes={count}"]
    return [["-m", *words, *place, f"--process-id={rank}"] for rank in range(count)]


def free_address() -> str:
    """An address on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run_together(commands: Sequence[Sequence[str]], env: Mapping[str, str]) -> int:
    """Runs Python once with each of these words; the exit status is that of the first that failed, or 0.

    Each line of rank r begins with `[r]`, on the stream where the process has written it. Ctrl-C and SIGTERM go on to
    all; a second Ctrl-C kills all (status 130), and so does, after `GRACE` seconds, the failure of one. All are gone
    when this returns, and when this process is killed (on Linux).
    """
    events: SimpleQueue[tuple[str, int, int]] = SimpleQueue()
    with _signals(events):
        group = _Group(commands, env, events)
        try:
            return group.watch()
        finally:
            group.kill()
            for thread in group.threads:
                thread.join(timeout=5)  # for ever only if a process has given its output to one that is not ours


@contextlib.contextmanager
def _signals(events: "SimpleQueue[tuple[str, int, int]]") -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: events.put(("signal", number, 0))) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Group:
    def __init__(
        self, commands: Sequence[Sequence[str]], env: Mapping[str, str], events: "SimpleQueue[tuple[str, int, int]]"
    ):
        self._events, self._lock = events, threading.Lock()
        self._processes, self.threads = list[subprocess.Popen[str]](), list[threading.Thread]()
        tied = [sys.executable, "-I", "-S", str(Path(__file__).with_name("tied.py")), str(os.getpid())]
        try:
            for rank, words in enumerate(commands):
                # In sessions of their own: a terminal's Ctrl-C comes to this process, which hands it on.
                process = subprocess.Popen(
                    [*tied, *words], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    encoding="utf-8", errors="backslashreplace", start_new_session=True,
                )  # fmt: skip
                self._processes.append(process)
                for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                    self._thread(self._merge, rank, source, sink)
                self._thread(self._wait, rank, process)
        except BaseException:
            self.kill()
            raise

    def watch(self) -> int:
        """Until all have ended."""
        left, first, asked, deadline = set(range(len(self._processes))), 0, False, float("inf")
        while left:
            try:
                kind, number, status = self._events.get(timeout=min(3600, max(0, deadline - time.monotonic())))
            except Empty:
                if time.monotonic() >= deadline:
                    self._say(f"{_named(left)} did not end within {GRACE:g} s of it, and were killed")
                    self.kill()
                    deadline = float("inf")
                continue
            if kind == "ended":
                left.discard(number)
                if status and not first:
                    first, deadline = status, time.monotonic() + GRACE
                    if status > 128 and not asked:
                        self._say(_told(number, len(self._processes), status))
            elif asked and number == signal.SIGINT:
                self._say(f"Ctrl-C again: {_named(left)} killed; what was saved is whole")
                self.kill()
                return 130
            else:
                name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
                self._say(f"{name}: passed on to {_named(left)}; Ctrl-C{' again' if name == 'Ctrl-C' else ''} kills")
                asked = True
                for rank in left:
                    self._processes[rank].send_signal(number)
        return first

    def kill(self) -> None:
        """Ends each process, and those that it has started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: the latter for a dead one
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _thread(self, *call: object) -> None:
        target, *words = call
        self.threads.append(threading.Thread(target=target, args=words, daemon=True))  # type: ignore[arg-type]
        self.threads[-1].start()

    def _wait(self, rank: int, process: subprocess.Popen[str]) -> None:
        status = process.wait()
        self._events.put(("ended", rank, status if status >= 0 else 128 - status))

    def _merge(self, rank: int, source: IO[str], sink: TextIO) -> None:
        with source:
            for line in source:
                self._write(f"[{rank}] {line.rstrip(chr(10))}\n", sink)

    def _say(self, text: str) -> None:
        self._write(f"{text}\n", sys.stderr)

    def _write(self, text: str, sink: TextIO) -> None:
        with self._lock, unheard():  # as a run does, they outlive who reads them
            sink.write(text)
            sink.flush()


def _named(left: set[int]) -> str:
    return f"rank{'s' * (len(left) > 1)} {', '.join(map(str, sorted(left)))}"


def _told(rank: int, count: int, status: int) -> str:
    """An exit status that says nothing by itself, in words."""
    what = f"rank {rank} of {count} ended first, with exit status {status}"
    if status == 128 + signal.SIGABRT:
        return f"{what}: jax aborted it, as it does when another does not come in time (--join-seconds) or is lost"
    name = signal.Signals(status - 128).name if status - 128 in {*signal.Signals} else "a signal"
    return f"{what}: {name}, which it was sent{' (the machine may be out of memory)' if name == 'SIGKILL' else ''}"
