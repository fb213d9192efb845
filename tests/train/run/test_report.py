"""What a run writes and shows, and the machine's figures behind it."""

import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from train.devices import machine
from train.run import report
from train.run.report import Report, Screen


def make(folder: Path | None, **changes: Any) -> Report:
    given = {"total_steps": 7, "log_every": 3, "tokens_per_step": 100, "flops_per_token": 50.0, "rate": 1e4}
    return Report(folder, **(given | changes))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(report.time, "perf_counter", lambda: now[0])
    return now


def run_steps(running: Report, clock: list[float], seconds: list[float], start: int = 0) -> None:
    for step, duration in enumerate(seconds, start + 1):
        clock[0] += duration
        running.step(step, {"train/loss": np.float32(10 - step / 10)}, waited=duration / 4)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_how_full_a_device_was_is_told_where_it_says_so(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fullest of them; a CPU's say nothing."""

    class Device(NamedTuple):
        stats: dict[str, int] | None

        def memory_stats(self) -> dict[str, int] | None:
            return self.stats

    assert machine.peak_memory() is None
    told: list[dict[str, int] | None] = [None, {"bytes_in_use": 9}, {"peak_bytes_in_use": 7}, {"peak_bytes_in_use": 5}]
    devices = [*map(Device, told)]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    with make(tmp_path) as running:
        run_steps(running, clock, [60, 1, 3, 2, 2, 50, 5])
    assert [line.get("train/peak_bytes") for line in lines(tmp_path)] == [None, 7, 7, None]


def board(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars of the event files: records are length (8 bytes), checksum (4), data, checksum (4)."""
    found = {}
    for file in (folder / "tensorboard").iterdir():
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            data = data[16 + size :]
    return found


def test_lines_hold_whole_steps_full_precision_and_speed(tmp_path: Path, clock: list[float]) -> None:
    with make(tmp_path) as running:
        run_steps(running, clock, [60, 1, 3, 2, 2, 50, 5])
        running.evaluation(7, {"val/loss": 1 / 3}, 5)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 6, 7, 7]
    assert all(isinstance(line["step"], int) for line in lines(tmp_path))
    start, first, second, last, evaluation = lines(tmp_path)
    assert start == {"step": 1, "train/loss": float(np.float32(9.9))}
    # The compilation (60 s) and the last interval count nowhere, the evaluation (50 s) not in the speed.
    assert first["train/tokens_per_second"] == 100 / 2
    assert second["train/tokens_per_second"] == 100 / 2
    assert second["train/matrix_share"] == 50 * 100 / 2 / 1e4
    assert "train/tokens_per_second" not in last
    # Of the waits 0.25, 0.5, 0.5, 0.75 and 12.5 s the 99th percentile, over the median step of 2 s.
    assert second["train/wait_share"] == pytest.approx((0.75 + 0.96 * (12.5 - 0.75)) / 2)
    assert first["train/loss"] == float(np.float32(9.7))
    assert evaluation == {"step": 7, "val/loss": 1 / 3, "val/windows": 5.0}
    assert running.history == lines(tmp_path)
    assert board(tmp_path)["val/loss", 7] == np.float32(1 / 3)


def test_seeds_are_lists(tmp_path: Path) -> None:
    with make(tmp_path, log_every=1) as running:
        running.step(1, {"train/loss": np.float32([1.5, 2.5])}, 0.0)
    assert lines(tmp_path) == [{"step": 1, "train/loss": [1.5, 2.5]}]
    assert board(tmp_path) == {("train/loss/seed_0", 1): 1.5, ("train/loss/seed_1", 1): 2.5}


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    """A perplexity may overflow beside a finite loss."""
    with make(tmp_path, log_every=1) as running:
        running.evaluation(1, {"val/loss": 800.0, "val/perplexity": np.inf, "val/two": np.array([np.nan, 2.0])}, 5)
    wanted = {"step": 1, "val/loss": 800.0, "val/perplexity": None, "val/two": [None, 2.0], "val/windows": 5.0}
    assert lines(tmp_path) == [wanted]
    assert running.history == lines(tmp_path)


def test_a_resumed_run_tells_each_step_once(tmp_path: Path, clock: list[float]) -> None:
    with make(tmp_path, log_every=1) as running:
        run_steps(running, clock, [1, 1, 1, 1, 1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')  # killed while it wrote
    with make(tmp_path, log_every=1, start=3) as running:
        run_steps(running, clock, [1, 1], start=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_run_without_a_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with make(None, log_every=1) as running:
        running.step(1, {"train/loss": 1.0}, 0.0)
    assert running.history == [{"step": 1, "train/loss": 1.0}]
    assert list(tmp_path.iterdir()) == []


def test_lines_off_a_terminal(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with make(None, total_steps=600, log_every=40, tokens_per_step=12345) as running:
        run_steps(running, clock, [30.0] + [0.25] * 79)
    wanted = "step 80/600  loss 2.000  49.4k tokens/s  24690 % of matrix rate  2:10 left"
    assert capsys.readouterr().err.splitlines()[-1] == wanted


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    screen = Screen(600, 0, stream)
    screen.step(40, {"train/loss": 3.21}, {"train/tokens_per_second": 12345, "train/matrix_share": 0.41}, 7510)
    screen.say("step 40/600  val/loss 3.3")
    screen.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "40/600" in text
    assert "loss 3.210  12.3k tokens/s  41 % of matrix rate  2:05:10 left" in text
    assert "val/loss 3.3" in text


def test_the_highest_matrix_rate_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_SECONDS", 0.05)
    rate = machine.matrix_rate("float32")
    assert 1e8 < rate < 1e14
    file = tmp_path / "heed" / "matrix_rate.json"
    kept = json.loads(file.read_text())
    assert list(kept.values()) == [rate]
    assert "float32" in next(iter(kept))
    file.write_text(json.dumps(dict.fromkeys(kept, 1e15)))
    assert machine.matrix_rate("float32") == 1e15
    assert machine.machine_rate("float32") == 1e15  # eight devices of one CPU share it
    file.write_text(json.dumps(dict.fromkeys(kept, 123.0)))  # as of a machine that others used
    assert machine.matrix_rate("float32") == rate
    assert json.loads(file.read_text()) == kept
    file.write_text(file.read_text()[:9])
    assert machine.matrix_rate("float32") > 1e8
    assert len((file.parent / "broken-matrix_rate.json").read_text()) == 9


def test_a_matrix_rate_that_cannot_be_kept_is_still_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "heed").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_SECONDS", 0.01)
    assert machine.matrix_rate("float32") > 1e8
    assert "cannot be kept" in caplog.text


def test_the_compilation_cache_is_on_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = jax.config.jax_compilation_cache_dir
    assert machine.use_compilation_cache() == Path(before)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert machine.use_compilation_cache() == tmp_path / "heed" / "xla"
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "heed" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
