"""One, two and four real processes, which share eight devices between them, train the same runs."""

import contextlib
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.small import SIZES, VOCAB
from tests.train.one_process import DEVICES, DRAWN, MORE_STEPS, STEPS
from tests.train.test_sharding import losses_alone
from train.data import Windows, batches

ROWS, LENGTH = SIZES["data.batch_size"], SIZES["data.length"]
pytestmark = pytest.mark.rest
DEADLINE = 300  # seconds, on a machine that does much else


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What each process of each run wrote. One run after the other: seven processes at once would starve two cores."""
    return {processes: results(processes, tmp_path_factory.mktemp(f"of{processes}")) for processes in (1, 2, 4)}


@pytest.mark.parametrize("processes", [2, 4])
def test_the_losses_do_not_depend_on_the_number_of_processes(runs: dict[int, Any], processes: int) -> None:
    (alone,) = runs[1]
    assert len(runs[processes]) == processes
    for result in runs[processes]:
        np.testing.assert_allclose(result["losses"], alone["losses"], rtol=1e-6)
    assert len(set(alone["losses"])) == STEPS


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("number", range(len(DRAWN)), ids=[str(shape) for shape in DRAWN])
def test_the_losses_are_those_of_one_device_on_every_mesh(runs: dict[int, Any], number: int, processes: int) -> None:
    """Which this process has; meshes of replica x fsdp x tensor x context, whose axes lie across the processes."""
    assert len(losses_alone()) == MORE_STEPS
    for result in runs[processes]:
        np.testing.assert_allclose(result["drawn"][number], losses_alone(), rtol=1e-5)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batches_do_not_depend_on_the_number_of_processes(runs: dict[int, Any], processes: int) -> None:
    """What the devices hold, put together, is what `batches` gives to one process that loads every row."""
    stream = np.random.default_rng(0).integers(0, VOCAB, 31 * LENGTH - 5)
    expected = batches(Windows(stream, end=0, length=LENGTH, num_bytes=len(stream)), ROWS, seed=0, start=1)
    for step in range(STEPS):
        for name, whole_BT in next(expected).items():
            shards = [shard for result in runs[processes] for shard in result["seen"][step][name]]
            assert len(shards) == DEVICES
            found_BT = np.full_like(whole_BT, -1)
            for index, part in shards:
                assert part.shape == (ROWS // 2, LENGTH // 4)
                found_BT[index] = part
            np.testing.assert_array_equal(found_BT, whole_BT, err_msg=f"{name} of batch {step}")


def test_a_process_loads_only_the_rows_of_its_devices(runs: dict[int, Any]) -> None:
    first, second = np.arange(ROWS // 2), np.arange(ROWS // 2, ROWS)
    loaded = {processes: [result["rows"].tolist() for result in results] for processes, results in runs.items()}
    assert loaded == {
        1: [np.arange(ROWS).tolist()],
        2: [first.tolist(), second.tolist()],
        4: [first.tolist()] * 2 + [second.tolist()] * 2,
    }


def results(processes: int, folder: Path) -> list[dict[str, Any]]:
    """Starts the processes of one run and waits for them; if one fails or all take too long, none is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.train.one_process", str(port), str(processes)]
    with contextlib.ExitStack() as stack:
        children = []
        for number in range(processes):
            log = stack.enter_context(open(folder / f"{number}.log", "wb"))
            child = subprocess.Popen(
                [*command, str(number), str(folder / f"{number}.pickle")], cwd=ROOT, stdout=log, stderr=log
            )
            children.append(stack.enter_context(ended(child)))
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline and any(child.poll() is None for child in children):
            if any(child.poll() for child in children):
                break
            time.sleep(0.1)
        codes = [child.poll() for child in children]
    logs = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))
    assert codes == [0] * processes, f"exit codes {codes} (None: still running after {DEADLINE} s)\n{logs}"
    return [pickle.loads((folder / f"{number}.pickle").read_bytes()) for number in range(processes)]


@contextlib.contextmanager
def ended(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Inside, the child runs; at the end it does not."""
    try:
        yield child
    finally:
        child.kill()
        child.wait()
