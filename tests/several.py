"""Commands in several real processes on this machine, each with one device, under the variables of a launcher."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.tiny import Outcome

Launcher = Callable[[int, int], dict[str, str]]
DEADLINE, LINGER = 280, 60  # seconds, on a machine that does much else; the latter after one process has ended
# The command, which sends itself a signal as soon as a step is written down, on one rank: the next one runs already.
SIGNALLED = """
import os, signal, sys
import jax
from launch import cli, train
from train.run.report import Report
name, rank, at = sys.argv.pop(), int(sys.argv.pop()), int(sys.argv.pop())
step = Report.step
def signalled(self, number, *rest):
    step(self, number, *rest)
    if number == at and jax.process_index() == rank:
        os.kill(os.getpid(), getattr(signal, name))
Report.step = signalled
cli.run(train.main)
"""


def slurm(rank: int, count: int) -> dict[str, str]:
    """What `srun` sets on one node, with a free port."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
    }


def open_mpi(rank: int, count: int) -> dict[str, str]:
    """What `mpirun` sets on one node, with a free port."""
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
    }


def run_together(
    launcher: Launcher, command: Sequence[str], argv: Sequence[Sequence[str]], folder: Path
) -> list[Outcome]:
    """How each of len(argv) processes of a command ended, -9 where one was still there long after the others.

    command: the words for Python, such as ('-m', 'launch.train'). argv: those of each rank.
    """
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    children = []
    for rank, words in enumerate(argv):
        env = os.environ | launcher(rank, len(argv)) | {"JAX_COORDINATOR_PORT": port}
        env["XLA_FLAGS"] = env["XLA_FLAGS"].replace("device_count=8", "device_count=1")
        env.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which jax has set for this process
        with open(folder / f"{rank}.out", "w") as out, open(folder / f"{rank}.err", "w") as err:
            child = subprocess.Popen([sys.executable, *command, *words], cwd=ROOT, stdout=out, stderr=err, env=env)
        children.append(child)
    try:
        deadline, ended = time.monotonic() + DEADLINE, 0
        while time.monotonic() < deadline and any(child.poll() is None for child in children):
            if ended < (ended := sum(child.poll() is not None for child in children)):
                deadline = time.monotonic() + LINGER
            time.sleep(0.1)
    finally:
        for child in children:
            child.kill()
            child.wait()
    texts = [[(folder / f"{rank}.{name}").read_text() for name in ("out", "err")] for rank in range(len(argv))]
    return [Outcome(child.returncode, *both) for child, both in zip(children, texts, strict=True)]
