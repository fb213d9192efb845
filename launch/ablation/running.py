"""Programs over the processes of a machine, and one bar with the time left of the whole grid."""

import concurrent.futures
import contextlib
import math
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from launch.ablation.programs import Program, Store
from model.errors import UserError
from train.run.files.json_files import dumps, loads
from train.run.signals import Stopped, stop_signals

_POLL = 0.5  # seconds between two looks at how far the programs are, and whether they are to stop
_TAIL = 2**16  # bytes of a metrics.jsonl in which the last whole line is looked for


def run_all(programs: Sequence[Program], store: Store, jobs: int) -> None:
    """Runs those that have not ended, in this process, or `jobs` at a time in processes of their own.

    Raises:
        UserError: one cannot be run; the others that had begun go on from there the next time.
        Stopped: this process was told to stop.
    """
    missing = [program for program in programs if store.record(program.key) is None]
    if jobs == 1:
        for program in missing:
            store.run(program)
        return
    for program in missing:
        store.write(program)
    left: queue.SimpleQueue[Program] = queue.SimpleQueue()
    for program in missing:
        left.put(program)
    with (
        stop_signals() as stop,
        concurrent.futures.ThreadPoolExecutor(jobs) as threads,
        contextlib.ExitStack() as stack,
    ):
        stop.doing("what is being saved")
        workers = [stack.enter_context(_worker(store)) for _ in range(min(jobs, len(missing)))]
        waiting = {threads.submit(_serve, worker, left) for worker in workers}
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, _POLL, concurrent.futures.FIRST_COMPLETED)
                stop.check()  # first: who tells all processes of a grid to stop ends its workers, too
                for one in done:
                    one.result()
        except BaseException:
            while not left.empty():
                with contextlib.suppress(queue.Empty):
                    left.get_nowait()
            raise


@contextlib.contextmanager
def _worker(store: Store) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs programs by their keys; it ends with this one, however that ends: its input is closed.

    In a group of its own: Ctrl-C, and the end of a terminal, are for the grid.
    """
    command = [sys.executable, "-m", "launch.ablation.worker", str(store.folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        yield process
    finally:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            process.stdin.close()
        process.wait()


def _serve(worker: "subprocess.Popen[str]", left: "queue.SimpleQueue[Program]") -> None:
    """Gives a worker one program after the other."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    while True:
        try:
            program = left.get_nowait()
        except queue.Empty:
            return
        with contextlib.suppress(BrokenPipeError):  # how it ended is asked below
            worker.stdin.write(f"{program.key}\n")
            worker.stdin.flush()
        answer = worker.stdout.readline()
        if not answer:
            raise UserError(
                f"the process that ran program {program.key} ended with status {worker.wait()}: see its log.txt in the"
                " store; if that says nothing, memory was short: give fewer --jobs, and the grid goes on."
            )
        told = loads(answer)
        if told["stopped"]:
            raise Stopped
        if told["refused"]:
            raise UserError(told["refused"])


def serve(store: Store, keys: Callable[[], str], answer: Callable[[str], object]) -> None:
    """What a worker does: runs the programs whose keys it is told, and answers each with its refusal, or None.

    A signal to all processes of a grid stops it, too: it answers so, and ends; the grid says it, once.
    """
    with stop_signals() as stop:
        stop.listener = None
        while key := keys():
            try:
                store.run(store.program(key).checked())
                answer(dumps({"refused": None, "stopped": False}))
            except UserError as error:
                answer(dumps({"refused": str(error), "stopped": False}))
            except Stopped:
                answer(dumps({"refused": None, "stopped": True}))
                return


class Bar:
    """Shows the steps of all programs of a grid, and the time left at the pace so far: one bar on a terminal, a line
    for each phase and each tenth of the grid elsewhere, as in a notebook or a scheduler's log.
    """

    def __init__(self, store: Store):
        # What is done now, and the programs of all phases up to it: one value, since another thread reads it.
        self._store, self._now = store, ("starting", dict[str, Program]())
        self._stream, self._told = sys.stderr, ("starting", 0)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        console = Console(file=self._stream, force_jupyter=False)
        self._bar = Progress(*columns, console=console, transient=True, disable=not self._stream.isatty())
        self._task = self._bar.add_task("starting", total=None, left="")
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._watch, daemon=True)
        self._began, self._first, self._total = time.monotonic(), 0.0, 0.0

    def __enter__(self) -> "Bar":
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._bar.stop()

    def expect(self, total: float) -> None:
        """Tells how many seed-steps the whole grid has."""
        self._total = total

    def phase(self, name: str, programs: Sequence[Program]) -> None:
        """Tells what is done now."""
        _, before = self._now
        known = {**before, **{program.key: program for program in programs}}
        if not before:
            self._first, self._began = self._done(known), time.monotonic()
        self._now = name, known
        self._bar.update(self._task, description=name)

    def _done(self, programs: Mapping[str, Program]) -> float:
        """Seed-steps so far."""
        return sum(_seed_steps(self._store, program) for program in programs.values())

    def _watch(self) -> None:
        while not self._ended.wait(_POLL):
            phase, programs = self._now
            done = self._done(programs)
            pace = (done - self._first) / (time.monotonic() - self._began)
            left = _time_left((self._total - done) / pace) if pace > 0 and done < self._total else ""
            self._bar.update(self._task, completed=done, total=max(self._total, done), left=left)
            if self._bar.disable:
                self._tell(phase, int(10 * done / max(self._total, done, 1)), left)

    def _tell(self, phase: str, tenths: int, left: str) -> None:
        """A line, unless it says what the last one said."""
        if self._told != (phase, tenths):
            self._told = (phase, tenths)
            with contextlib.suppress(OSError, ValueError):  # nobody listens
                print(f"{phase}: {10 * tenths} %{left and ', '}{left}", file=self._stream, flush=True)


def _time_left(seconds: float) -> str:
    """In whole minutes."""
    minutes = math.ceil(max(0.0, seconds) / 60)
    return f"{minutes} minutes left" if minutes > 1 else "less than a minute left"


def _seed_steps(store: Store, program: Program) -> float:
    """Steps that a program has done, times its seeds."""
    whole = program.config.train.steps * len(program.seeds)
    if (store.place(program.key) / "record.json").is_file():
        return whole
    return _last_step(store.place(program.key) / "run" / "metrics.jsonl") * len(program.seeds)


def _last_step(file: Path) -> int:
    """The step of the last whole line of a metrics.jsonl; 0 where there is none."""
    if not file.is_file():
        return 0
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _TAIL))
        lines = opened.read().split(b"\n")[:-1]
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            return int(loads(line)["step"])
    return 0
