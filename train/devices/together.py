"""What the processes of one run do together: meet, agree, and see the same folder. Alone, all of it is nothing."""

import hashlib
import itertools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from model.errors import UserError
from train.devices.machine import compiler_options

_LONG = 7 * 24 * 3600 * 1000  # ms; that a process is lost is told by others, sooner
_numbers = itertools.count()


def meet(name: str) -> None:
    """Waits for all processes, through the coordinator and not the devices, whose collectives wait for 30 s only."""
    if jax.process_count() > 1:
        client: Any = global_state.client
        client.wait_at_barrier(f"heed {name} {next(_numbers)}", _LONG)


def agree(what: str, value: str) -> None:
    """Refuses a value that is not the same on all processes.

    Raises:
        UserError: `what` differs, and on which ranks.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    found = _from_all(digest)
    others = [rank for rank in range(len(found)) if not np.array_equal(found[rank], found[0])]
    if others:
        raise UserError(f"{what} must be the same on all processes, and differs from rank 0 on {_ranks(others)}.")


def check_shared(folder: Path) -> None:
    """Refuses a run's folder that only some of the processes see; the first one must be able to write it.

    Raises:
        UserError: names the ranks, and their hosts, that do not see it.
    """
    if jax.process_count() == 1:
        return
    drawn = np.frombuffer(np.random.default_rng().bytes(4), np.uint32)  # the first one's: a name that was never there
    number = int(_from_all(drawn)[0, 0])
    token = folder / f".seen-{number}"
    if jax.process_index() == 0:
        token.touch()
    meet("the token is there")
    seen = _from_all(np.array([token.exists()], np.uint8))
    hosts = _from_all(np.frombuffer(socket.gethostname().encode()[:64].ljust(64), np.uint8))
    if jax.process_index() == 0:
        token.unlink()
    blind = [rank for rank, sees in enumerate(seen) if not sees[0]]
    if blind:
        names = ", ".join(sorted({hosts[rank].tobytes().decode().strip() for rank in blind}))
        raise UserError(
            f"--workdir={folder} is not seen by {_ranks(blind)} (on {names}): give a folder that all hosts share."
        )


def compiled_together(function: Callable[..., Any]) -> Callable[..., Any]:
    """A jitted function of arguments whose shapes never change, compiled at its first call with `compiler_options`.

    Of several processes, all compile it before any of them runs it: else those that find it in their cache wait in its
    collectives for those that compile, which a CPU's do for 30 s.
    """
    compiled: list[jax.stages.Compiled] = []

    def call(*values: Any) -> Any:
        if not compiled:
            lowered = function.lower(*values)  # type: ignore[attr-defined]
            compiled.append(lowered.compile(compiler_options(jax.local_devices()[0].platform)))
            meet("compiled")
        return compiled[0](*values)

    return call


def _from_all(value: np.ndarray) -> np.ndarray:
    """The value of each process, in the order of their ranks."""
    return np.asarray(multihost_utils.process_allgather(value))


def _ranks(ranks: list[int]) -> str:
    few = ", ".join(map(str, ranks[:5])) + (", ..." if len(ranks) > 5 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {few} of {jax.process_count()}"
