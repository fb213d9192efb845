"""What a run tells while it goes: metrics.jsonl, TensorBoard, and a progress bar or plain lines."""

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX import SummaryWriter

from train.devices.machine import peak_memory
from train.run.files.disk import full_disk
from train.run.files.json_files import dumps, finite
from train.run.files.mending import mend_lines

Values = Mapping[str, Any]  # names to numbers, or to arrays (N,) with N seeds


class Report:
    """Takes the metrics of every step, and shows and writes those of the first, of every `log_every` and of the last.

    folder: of the run; None writes nothing. start: updates done before; what a folder tells of later steps is dropped,
    because they are done again. flops_per_token: of one target token in training. rate: FLOP/s of the whole machine.
    `history` holds all that was logged, as written to metrics.jsonl: None for what is not finite. On several processes
    the first one reports.
    """

    def __init__(
        self,
        folder: Path | None,
        total_steps: int,
        *,
        start: int = 0,
        log_every: int = 10,
        tokens_per_step: int,
        flops_per_token: float,
        rate: float,
    ):
        self.history: list[dict[str, Any]] = []
        self._total, self._start, self._log_every = total_steps, start, log_every
        self._tokens, self._flops, self._rate = tokens_per_step, flops_per_token, rate
        self._last, self._times, self._waits, self._seconds = 0.0, list[float](), list[float](), list[float]()
        self._folder: Path | None = None
        self._lines: TextIO | None = None
        self._board: SummaryWriter | None = None
        speaks = jax.process_index() == 0
        self._screen = Screen(total_steps, start, sys.stderr) if speaks else None
        if folder is not None and speaks:
            self._open(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def step(self, step: int, values: Values, waited: float) -> None:
        """Takes the metrics after update `step`, for whose batch the step waited `waited` seconds."""
        now = time.perf_counter()
        # The first interval would count the compilation; the last one is empty where a device runs as it is asked to.
        if self._last and step != self._total:
            self._times.append(now - self._last)
            self._waits.append(waited)
        self._last = now
        if step % self._log_every and step not in (1, self._total):  # the first tells the loss of the first values
            return
        speed = self._speed()
        self._log(step, {**values, **speed})
        if self._screen is not None:
            self._screen.step(step, values, speed, self._seconds_left(step))

    def evaluation(self, step: int, values: Values, windows: int) -> None:
        """Takes the values of an evaluation after update `step`, and on how many windows it was measured."""
        self._log(step, {**values, "val/windows": windows})
        if self._screen is not None:
            # A line has room for what stands by itself; parts of it, such as val/loss/quarter_1, are in metrics.jsonl.
            own = {name: value for name, value in values.items() if name.count("/") == 1}
            shown = "  ".join(f"{name} {_mean(value):.4f}" for name, value in own.items())
            self._screen.say(f"step {step}/{self._total}  {shown}")

    def say(self, text: str) -> None:
        """Shows a line above the progress bar."""
        if self._screen is not None:
            self._screen.say(text)

    def flush(self) -> None:
        """Writes what it holds back to the files."""
        if self._folder is not None and self._board is not None:
            with full_disk(self._folder):
                self._board.flush()

    def close(self) -> None:
        """Ends the bar and closes the files."""
        if self._screen is not None:
            self._screen.close()
        if self._folder is not None and self._lines is not None and self._board is not None:
            with full_disk(self._folder):
                self._lines.close()
                self._board.close()
            self._folder = None

    def _open(self, folder: Path) -> None:
        with full_disk(folder):
            mend_lines(folder / "metrics.jsonl", self._start)
            # Line by line, so that a killed run loses no line.
            self._lines = (folder / "metrics.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=self._start + 1)
        self._folder = folder

    def _log(self, step: int, values: Values) -> None:
        numbers = {name: np.asarray(value, np.float64).tolist() for name, value in values.items()}
        line: dict[str, Any] = {"step": int(step)} | finite(numbers)
        self.history.append(line)
        if self._folder is None or self._lines is None or self._board is None:
            return
        with full_disk(self._folder):
            self._lines.write(dumps(line) + "\n")
            for name, value in values.items():
                for seed, one in enumerate(np.ravel(value)):
                    self._board.add_scalar(name if np.ndim(value) == 0 else f"{name}/seed_{seed}", float(one), step)

    def _speed(self) -> dict[str, float]:
        """Of the steps since the last line, by their median time, which an evaluation in between does not change.

        wait_share is the 99th percentile, over all steps so far, of the wait for a batch, over the median step;
        peak_bytes is there where the device tells it.
        """
        if not self._times:
            return {}
        seconds = statistics.median(self._times)
        self._seconds += self._times
        self._times = []
        return {
            "train/tokens_per_second": self._tokens / seconds,
            "train/matrix_share": self._flops * self._tokens / seconds / self._rate,
            "train/wait_share": float(np.percentile(self._waits, 99)) / statistics.median(self._seconds),
            **({} if (peak := peak_memory()) is None else {"train/peak_bytes": peak}),
        }

    def _seconds_left(self, step: int) -> float | None:
        """At the mean pace so far, evaluations and checkpoints included."""
        return statistics.mean(self._seconds) * (self._total - step) if self._seconds else None


class Screen:
    """A progress bar on a terminal, plain lines on anything else."""

    def __init__(self, total_steps: int, start: int, stream: TextIO):
        self._total, self._stream = total_steps, stream
        self._bar: Progress | None = None
        if stream.isatty():
            columns = TextColumn("{task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}")
            self._bar = Progress(*columns, console=Console(file=stream), transient=True)
            self._task = self._bar.add_task("starting", total=total_steps, completed=start)
            self._bar.start()

    def step(self, step: int, values: Values, speed: Mapping[str, float], seconds_left: float | None) -> None:
        """Shows loss, tokens per second, share of the matrix rate, and the time left."""
        parts = [f"loss {_mean(values['train/loss']):.3f}"]
        if speed:
            parts.append(f"{_short(speed['train/tokens_per_second'])} tokens/s")
            parts.append(f"{100 * speed['train/matrix_share']:.0f} % of matrix rate")
        if seconds_left is not None:
            parts.append(f"{_clock(seconds_left)} left")
        if self._bar is None:
            self.say("  ".join([f"step {step}/{self._total}", *parts]))
        else:
            self._bar.update(self._task, completed=step, description="  ".join(parts))

    def say(self, text: str) -> None:
        """Shows a line above the bar."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _mean(value: Any) -> float:
    return float(np.mean(value))


def _short(number: float) -> str:
    """12345.6 as 12.3k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.1f}"


def _clock(seconds: float) -> str:
    """130 seconds as 2:10, 7510 as 2:05:10."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
