"""Processes of this machine: their lines, their end, what stops them, and a run on four that is the run on one."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import local
from launch.configs import load
from launch.machines import processes
from launch.train import fit
from tests.conftest import ROOT
from tests.tiny import call, end, metrics, saved, start, words, write_text

HOSTILE = "\"a\" 'b' $(touch pwned) `touch pwned`\n; & | > %s {x} \\n ~ é"
# What would make jax think itself elsewhere.
ELSEWHERE = {
    "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "elsewhere", "SLURM_NTASKS": "7", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "5", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "7",
    "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "5", "TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1",
    "MEGASCALE_NUM_SLICES": "2", "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1", "JAX_LOCAL_DEVICE_IDS": "5",
    "JAX_PARTITION_INDEX": "3",
}  # fmt: skip


# `meet` returns when all processes have come there, with what they have set up before.
TOGETHER = """
import os, signal, sys, time
rank, count, folder, words = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
def meet():
    open(f"{folder}/{rank}", "w").close()
    while len(os.listdir(folder)) < count:
        time.sleep(0.01)
"""


def run(count: int, folder: Path, code: str, *more: str) -> int:
    """Python code in `count` processes that know their `rank` and `words`, and can `meet` in a folder."""
    argv = ["-I", "-S", "-c", TOGETHER + code]
    return processes.run_together(
        [[*argv, str(rank), str(count), str(folder), *more] for rank in range(count)], os.environ
    )


def all_gone(pids: Iterable[str]) -> bool:
    """Whether processes end within five seconds, in which the kernel does what it was asked for."""
    deadline = time.monotonic() + 5
    while any(lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(lives(pid) for pid in pids)


def lives(pid: str) -> bool:
    """Not one that has ended, of which nobody has asked how."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), 0)
        status = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
        return bool(status) and status[0] != "Z"
    return False


def test_lines_are_whole_in_order_and_on_their_stream(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = """
meet()
for number in range(99):
    for piece in (f"{number} ", "x" * 5000, "\\n"):
        sys.stdout.write(piece)
        sys.stdout.flush()
os.write(2, b"\\xff no newline")
"""
    assert run(3, tmp_path, code) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    for rank in range(3):
        own = [line for line in lines if line.startswith(f"[{rank}] ")]
        assert own == [f"[{rank}] {number} {'x' * 5000}" for number in range(99)]
    assert len(lines) == 3 * 99
    assert sorted(err.splitlines()) == [rf"[{rank}] \xff no newline" for rank in range(3)]


def test_words_reach_the_processes_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(2, tmp_path, "print(ascii(words))", HOSTILE, "", "-x") == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [f"[{rank}] {ascii([HOSTILE, '', '-x'])}" for rank in (0, 1)]
    (argv,) = processes.ranks(["launch.train", HOSTILE], 1, "127.0.0.1:1")
    assert argv[:3] == ["-m", "launch.train", HOSTILE]


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "rank 1 of 3 ended first, with exit status 137: SIGKILL"),
        ("os.abort()", 134, "rank 1 of 3 ended first, with exit status 134: jax aborted it"),
    ],
)
def test_the_first_failure_ends_all_with_its_status(
    how: str,
    status: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another one that has its own words to say may do so; one that hangs is killed, and what it has started."""
    monkeypatch.setattr(processes, "GRACE", 0.4)
    code = f"""
if rank == 2:
    os.fork()
    print(os.getpid(), flush=True)
meet()
if rank == 1:
    {how}
if rank == 0:
    time.sleep(0.1)
    print("last words")
    sys.exit(4)
time.sleep(60)
"""
    began = time.monotonic()
    assert run(3, tmp_path, code) == status
    assert time.monotonic() - began < 10
    out, err = capsys.readouterr()
    assert "[0] last words" in out
    assert said in err
    assert "rank 2 did not end within 0.4 s of it" in err
    pids = re.findall(r"^\[2\] (\d+)$", out, re.MULTILINE)
    assert len(pids) == 2
    assert all_gone(pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_passed_on_to_all(number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who may end as they like."""
    code = f"""
signal.signal({int(number)}, lambda *_: (print("stopped", flush=True), sys.exit(0)))
meet()
if rank == 0:
    os.kill(os.getppid(), {int(number)})
time.sleep(60)
"""
    before = signal.getsignal(number)
    assert run(2, tmp_path, code) == 0
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["[0] stopped", "[1] stopped"]
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert err.startswith(f"{name}: passed on to ranks 0, 1; Ctrl-C")
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_kills_all(first: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = f"""
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
print(os.getpid(), flush=True)
meet()
if rank == 0:
    os.kill(os.getppid(), {int(first)})
    time.sleep(0.3)
    os.kill(os.getppid(), signal.SIGINT)
time.sleep(60)
"""
    began = time.monotonic()
    assert run(2, tmp_path, code) == 130
    assert time.monotonic() - began < 10
    out, err = capsys.readouterr()
    assert "Ctrl-C again: ranks 0, 1 killed" in err
    pids = [line.split()[1] for line in out.splitlines()]
    assert len(pids) == 2
    assert all_gone(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_killing_the_launcher_leaves_nobody() -> None:
    code = "import os\nfrom launch.machines.processes import run_together\n"
    code += "run_together(2 * [['-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)']], os.environ)"
    process = start("-c", code)
    assert process.stdout is not None
    pids = [process.stdout.readline().split()[1] for _ in range(2)]
    process.kill()
    end(process)
    assert all_gone(pids)


def test_a_process_knows_of_no_other_launcher() -> None:
    env = processes.environment(ELSEWHERE | {"HOME": "/h", "XLA_FLAGS": "--a"}, 3, "127.0.0.1:9")
    assert env == {
        "HOME": "/h",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--a --xla_force_host_platform_device_count=3",
        "JAX_COORDINATOR_BIND_ADDRESS": "127.0.0.1:9",
    }


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--processes=2"], ("nothing follows --", "launch.train")),
        (["--processes=2", "launch.train"], ("launch.train is no flag",)),
        (["--processes=0", "--", *"launch.train --config=base --workdir=y".split()], ("--processes=0", "at least 1")),
        (["--processes=1", "--devices=0", "--", *"launch.train --config=base --workdir=y".split()], ("--devices=0",)),
        (["--processes=2", "--", "launch.train", "--config=x"], ("--workdir", "launch.train --help")),
        (["--processes=2", "--", "launch.train", "--steps=9"], ("--config.train.steps",)),
        (["--processes=2", "--", "launch.train", "--process_id=1"], ("--process_id=1 after --", "leave it out")),
        (["--processes=2", "--", "launch.train", "--coordinator", "a:1"], ("--coordinator after --",)),
        (["--processes=2", "--", "launch.evaluate", "--num-processes=3"], ("--num-processes=3 after --",)),
        (["--processes=2", "--", "launch.bench", "--config=x"], ("launch.bench", "launch.train")),
        (["--processes=2", "--", *"launch.train --config=gpt:quickstat --workdir=y".split()], ("quickstart",)),
        (["--processes=2", "--", "os"], ("-- os", "launch.train")),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_in_a_sentence(
    argv: list[str], parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "run_together", lambda *_: pytest.fail("started"))
    done = call(local.main, argv)
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert all(part in done.err for part in parts), done.err


def launched(*argv: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "launch.local", *argv]
    env = os.environ | (env or {})
    env.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which jax has set for this process
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, env=env)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    few = {"train.steps": 6, "train.checkpoint_every": 6, "train.accumulate": 1, "train.prompt": "", "mesh.fsdp": -1}
    folder = tmp_path_factory.mktemp("local")
    return write_text(folder / HOSTILE) | few | {"data.dir": f"{folder}/data"}


@pytest.mark.rest
def test_four_processes_train_as_one(keys: dict[str, Any], tmp_path: Path) -> None:
    """Under the variables of other launchers, on text in a folder whose name a shell would read as much."""
    workdir = tmp_path / "run"
    done = end(launched("--processes=4", "--", "launch.train", *words(workdir, keys), env=ELSEWHERE))
    assert done.status == 0, done.err[-3000:]
    assert not (ROOT / "pwned").exists()
    for found, wanted in zip(metrics(workdir), fit(load("base", **keys | {"mesh.fsdp": 1}))[1], strict=True):
        for name in {"train/loss", "val/loss"} & wanted.keys():
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)
    assert all(re.match(r"\[[0-3]\] ", line) for line in (done.out + done.err).splitlines())
    joined = re.findall(r"^\[(\d)\] joining as rank (\d) of 4 at 127.0.0.1:\d+ \(flags\)", done.err, re.MULTILINE)
    assert sorted(joined) == [(rank, rank) for rank in "0123"]
    assert re.search(r"^\[0\].* this model ", done.out, re.MULTILINE)


@pytest.mark.rest
def test_ctrl_c_ends_a_run_at_a_sound_step_and_a_refusal_is_its_status(keys: dict[str, Any], tmp_path: Path) -> None:
    endless = keys | {"train.steps": 9000, "train.evaluate_every": 9000}
    argv = ["--processes=2", "--", "launch.train", *words(tmp_path / "run", endless)]
    process = launched(*argv)
    assert process.stderr is not None
    try:
        assert any("step 3/" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        done = end(process)
    finally:
        process.kill()
    assert done.status == 75, done.err
    assert "Ctrl-C: passed on to ranks 0, 1" in done.err
    assert f"stopped at step {saved(tmp_path / 'run')[-1]} of 9000" in done.out
    refused = end(launched(*argv, "--config.model.mask=nonsense"))
    assert refused.status == 2
    assert "nonsense" in refused.err.splitlines()[-1]
