"""Several processes, on one host or many, as one program: `with joined(flags):` around what a command does."""

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator

import jax
from jax._src.distributed import global_state

from launch.hosts.detect import Place, find_place
from launch.hosts.relay import Relay
from launch.hosts.watch import AGAIN as AGAIN
from launch.hosts.watch import Watch
from model.errors import Unanswered, UserError

_FLAGS = (
    ("coordinator", str, None, "HOST:PORT of rank 0; TPU pods, GKE, SLURM and Open MPI tell it, as the next two"),
    ("process-id", int, None, "the rank of this process, from 0"),
    ("num-processes", int, None, "how many processes there are; 1: alone, whatever the environment says"),
    ("join-seconds", int, 300, "how long to wait for the other processes at the start"),
    ("heartbeat-seconds", int, 100, "a process not heard of for so long is lost, and ends all others"),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `joined`."""
    for name, kind, default, text in _FLAGS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)


@contextlib.contextmanager
def joined(flags: argparse.Namespace) -> Iterator[None]:
    """Inside, this process is one of those that its flags or its environment tell of; alone, nothing changes.

    Must be entered before anything is computed. An error that leaves it ends all processes, each with the sentence, and
    so does the loss of one; this never returns then. At the end each waits for all others.

    Raises:
        UserError: too little is known of the other processes, or the coordinator does not answer.
    """
    for name in ("join_seconds", "heartbeat_seconds"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}={getattr(flags, name)} must be at least 1.")
    place = find_place(flags.coordinator, flags.process_id, flags.num_processes, flags.join_seconds)
    if place is None:
        yield
        return
    watch = _join(place, flags.join_seconds, flags.heartbeat_seconds)
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - told by `fail`, which ends the process
        watch.fail(error)
    watch.finish()


def _join(place: Place, seconds: int, heartbeat: int) -> Watch:
    # A missing process aborts the others in C++, with nothing that Python could catch: so this is said before.
    print(
        f"joining as rank {place.rank} of {place.count} at {place.coordinator} ({place.found_by}): if one of them does"
        f" not come within {seconds} s, the others end with exit status 134",
        file=sys.stderr,
        flush=True,
    )
    relay = None
    if place.rank > 0:
        try:
            relay = Relay(place.coordinator, seconds)
        except TimeoutError as error:
            raise Unanswered(
                f"rank {place.rank} of {place.count}: rank 0 does not answer at {place.coordinator} within"
                f" --join-seconds={seconds}: start it, or give its address with --coordinator."
            ) from error
        logging.getLogger("heed").setLevel(logging.ERROR)  # the first one warns for all
    jax.config.update("jax_enable_recoverability", True)  # else the death of one aborts all others, in C++
    jax.distributed.initialize(
        relay.address if relay else place.coordinator,
        place.count,
        place.rank,
        place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=10 * heartbeat,  # ours comes first, with a sentence
        shutdown_timeout_seconds=heartbeat,
    )
    return Watch(global_state.client, place.rank, place.count, heartbeat, relay)
