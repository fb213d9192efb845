"""One owner at a time: an object that says who writes a run, renewed while it lives, and taken over by generation.

The service's generations decide between two who write at once. That race is untested against the real service: the
tests' own store keeps to the rule, and emulators accept some stale writes.
"""

import contextlib
import dataclasses
import datetime
import logging
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any

from model.errors import UserError
from train.run.bucket.objects import Objects, Refused, Stored
from train.run.files.json_files import dumps, loads

log = logging.getLogger("heed")
NAME = "owner.json"
EVERY, STALE = 60.0, 600.0  # seconds from one renewal to the next, and without any until others may take the run
# Who started this process says which run it is of, and how often it was started again, each time when the earlier
# processes had ended.
_ATTEMPTS = (("HEED_RUN", "HEED_ATTEMPT"), ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))


@dataclasses.dataclass(frozen=True)
class Owner:
    """A process that writes a run. `run` is what its launcher calls it, "" for none; `machine` tells hosts apart."""

    id: str
    run: str
    attempt: int
    host: str
    machine: str
    process: int
    time: str

    def __str__(self) -> str:
        of = f", attempt {self.attempt} of {self.run}" if self.run else ""
        return f"process {self.process} of {self.host}{of}"


class Lease:
    """The right to write a run's folder, from `take` to `release`; a thread renews it every `EVERY` seconds."""

    def __init__(self, objects: Objects, owner: Owner):
        self._objects, self._owner, self._generation = objects, owner, 0
        self._lost, self._ended, self._turn = "", threading.Event(), threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self) -> None:
        """Becomes the owner, also in place of one that is gone, which is said.

        Raises:
            UserError: the folder has another owner, or cannot be written.
        """
        try:
            self._write(0)
        except Refused:
            try:
                self._take_over()
            except Refused as error:
                raise UserError(
                    f"--workdir={self._objects.address} was taken by another process this moment: wait for its end, or"
                    " give another --workdir."
                ) from error
        self._thread = threading.Thread(target=self._renew_often, daemon=True, name="heed owner")
        self._thread.start()

    def renew(self) -> None:
        """Says that the owner still lives.

        Raises:
            UserError: another one has taken its place, at any time since `take`; or the bucket does not answer.
        """
        with self._turn:
            if not self._lost:
                try:
                    self._write(self._generation)
                except Refused:
                    other = None
                    with contextlib.suppress(Refused):  # it is written at this very moment
                        other = self._there()[0]
                    self._lost = (
                        f"--workdir={self._objects.address} has been taken over by {other or 'another process'}: this"
                        " one saves no more; what it saved before is intact."
                    )
        if self._lost:
            raise UserError(self._lost)

    def release(self) -> None:
        """Gives the folder up; an object that is another's by now stays."""
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(Refused):
                self._objects.delete(NAME, self._generation)

    @property
    def lost(self) -> bool:
        """Whether another owner was met."""
        return bool(self._lost)

    def _write(self, generation: int) -> None:
        """In place of a generation. An answer that got lost is one to a second try, which is refused by our own."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        said = dumps(dataclasses.asdict(dataclasses.replace(self._owner, time=now)), indent=2)
        try:
            self._generation = self._objects.write(NAME, said.encode(), generation).generation
        except Refused:
            found, stored = self._there()
            if found is None or stored is None or found.id != self._owner.id:
                raise
            self._generation = stored.generation

    def _there(self) -> tuple[Owner | None, Stored | None]:
        found = self._objects.read(NAME)
        return (None, None) if found is None else (_parsed(found[0]), found[1])

    def _take_over(self) -> None:
        other, stored = self._there()
        if stored is None:  # it has ended this moment
            self._write(0)
            return
        age = (self._now() - stored.updated).total_seconds()
        why = _gone(other, self._owner, age)
        if not why:
            raise UserError(
                f"--workdir={self._objects.address} is in use by {other or 'an unknown owner'}, which said so"
                f" {age:.0f} s ago: wait for its end, or until it has said nothing for {STALE / 60:.0f} minutes, or"
                " give another --workdir."
            )
        self._write(stored.generation)
        log.warning("%s is taken over from %s: %s.", self._objects.address, other or "an unknown owner", why)

    def _now(self) -> datetime.datetime:
        """The service's own time, which is that of a new object: clocks of hosts differ."""
        probe = f".now-{self._owner.id}"
        now = self._objects.write(probe, b"").updated
        self._objects.delete(probe)
        return now

    def _renew_often(self) -> None:
        while not self._ended.wait(EVERY):
            try:
                self.renew()
            except (UserError, Refused) as error:
                log.warning("%s", error)
                if self._lost:
                    return


def this_owner() -> Owner:
    """This process, as its launcher calls it."""
    run, attempt = next(
        ((os.environ[run], os.environ.get(attempt, "0")) for run, attempt in _ATTEMPTS if os.environ.get(run)),
        ("", "0"),
    )
    number = int(attempt) if attempt.isdecimal() else 0
    return Owner(uuid.uuid4().hex, run, number, socket.gethostname(), _machine(), os.getpid(), "")


def _gone(other: Owner | None, own: Owner, age: float) -> str:
    """Why an owner has ended, as far as can be told; "" where it may live."""
    if age > STALE:
        return f"it has said nothing for {age / 60:.0f} minutes"
    if other is None:
        return ""
    if own.run and other.run == own.run and other.attempt < own.attempt:
        return f"it is of an earlier attempt, and this is attempt {own.attempt}, which begins when all of that is gone"
    if other.machine == own.machine and not Path(f"/proc/{other.process}").exists():
        return "that process of this machine has ended"
    return ""


def _machine() -> str:
    """The boot of this machine and the names of its processes, where a container has its own."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return uuid.uuid4().hex


def _parsed(data: bytes) -> Owner | None:
    try:
        value: Any = loads(data)
        return Owner(**value)
    except (ValueError, TypeError):
        return None
