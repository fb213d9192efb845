"""Watches over the processes of a run: one that is killed, frozen or failed ends all others with a sentence."""

import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax

from launch.hosts.relay import Relay
from launch.output import ClosedOutput, unheard
from model.errors import Unanswered, UserError
from train.run.files.json_files import dumps

_ROOM = "heed/"
AGAIN = Unanswered.status  # nothing is wrong with the command, and the same one may be started again


@dataclasses.dataclass
class _Peer:
    """What was last heard of a rank: its host, the number of its newest beat, when that came, whether it is done."""

    host: str = "unknown"
    beat: int = -1
    heard: float = 0.0
    done: bool = False


class Watch:
    """Threads that write this rank's heartbeat to the coordinator's store, and read those of all others.

    A rank that has not been heard of for `heartbeat` seconds is lost: the process ends with status `AGAIN`. A rank that
    fails says so there, and the others end with its words. `relay`: the way to the coordinator, None on rank 0.
    """

    def __init__(self, client: Any, rank: int, count: int, heartbeat: float, relay: Relay | None):
        self._client, self._rank, self._count, self._relay = client, rank, count, relay
        self._heartbeat, self._every = heartbeat, min(1.0, heartbeat / 10)
        self._done = self._failing = self._spoken = self._ending = False
        self._answered = time.monotonic()
        self._peers = {r: _Peer(heard=self._answered) for r in range(count)}
        for target in (self._beat, self._judge):
            threading.Thread(target=target, daemon=True, name=f"heed {target.__name__}").start()

    def fail(self, error: BaseException) -> NoReturn:
        """Ends this process for an error, and tells the others; if another process has caused it, tells that.

        A process that was killed breaks the collectives of all others, sometimes at once. So before an error is told
        as this rank's own, every other rank must have been heard of since.
        """
        self._failing = True
        if isinstance(error, UserError):
            status, text = error.status, str(error)
            _last_words(text)
        elif isinstance(error, KeyboardInterrupt):
            status, text = 130, "was interrupted"
        elif isinstance(error, ClosedOutput):
            status, text = 141, "was left by the reader of its output"
        else:
            self._wait_for_all()
            traceback.print_exception(error)
            status, text = 1, f"failed ({''.join(traceback.format_exception_only(error)).strip().splitlines()[0]})"
        self._spoken = True  # and no other words follow
        self._say(status, f"{self._name(self._rank)}: {text}", caused=False)
        time.sleep(3 * self._every)  # while the connections stay open, the others hear of it before they feel it
        _end(status)

    def finish(self) -> None:
        """Waits until all others are done as well, and leaves."""
        self._done = True
        while not all(peer.done for r, peer in self._peers.items()):
            time.sleep(self._every / 10)
        if self._rank == 0:  # the store goes with this process: the others leave first
            deadline = time.monotonic() + 10
            while len(self._client.get_live_nodes(list(range(self._count)))) > 1 and time.monotonic() < deadline:
                time.sleep(self._every / 10)
        self._ending = True
        jax.distributed.shutdown()
        if self._relay is not None:
            self._relay.close()

    def _wait_for_all(self) -> None:
        """Returns when two beats of every other rank have come since; the judge may end the process before."""
        before = {r: peer.beat for r, peer in self._peers.items() if r != self._rank and not peer.done}
        while any(self._peers[r].beat < beat + 2 for r, beat in before.items()):
            time.sleep(self._every / 10)

    def _beat(self) -> None:
        number = 0
        while not self._ending:
            number += 1
            mine = {"host": socket.gethostname(), "beat": number, "done": self._done}
            try:
                self._client.key_value_set(f"{_ROOM}beat/{self._rank}", dumps(mine), allow_overwrite=True)
                entries = dict(self._client.key_value_dir_get(_ROOM))
            except jax.errors.JaxRuntimeError:  # the judge sees how long it lasts
                time.sleep(self._every)
                continue
            self._answered = now = time.monotonic()
            for r, peer in self._peers.items():
                found = json.loads(entries.get(f"{_ROOM}beat/{r}", "{}"))
                if found and found["beat"] != peer.beat:
                    self._peers[r] = _Peer(found["host"], found["beat"], now, found["done"])
            if said := entries.get(f"{_ROOM}said"):
                self._hear(**json.loads(said))
            time.sleep(self._every)

    def _judge(self) -> None:
        while not self._ending:
            time.sleep(self._every)
            now, silent = time.monotonic(), f"has not been heard of for {self._heartbeat:g} s"
            if self._relay is not None:
                if self._relay.lost.is_set():
                    if self._peers[0].done and self._done:
                        continue
                    self._lose(0, "was lost")
                if now - self._answered > self._heartbeat:
                    self._lose(0, silent)
            for r, peer in self._peers.items():
                if r != self._rank and not peer.done and now - peer.heard > self._heartbeat:
                    self._lose(r, silent)

    def _lose(self, rank: int, how: str) -> None:
        if self._spoken or self._ending:
            return
        text = f"{self._name(rank)}{', the coordinator,' if rank == 0 else ''} {how}: start all processes again."
        if rank > 0:
            self._say(AGAIN, text, caused=True)
        _last_words(text)
        if self._rank == 0:
            time.sleep(3 * self._every)  # the store goes with this process: the others read it first
        _end(AGAIN)

    def _say(self, status: int, text: str, caused: bool) -> None:
        said = dumps({"rank": self._rank, "status": status, "text": text, "caused": caused})
        try:
            self._client.key_value_set(f"{_ROOM}said", said)
        except jax.errors.JaxRuntimeError:  # another one has said it, or nobody is there to read it
            pass

    def _hear(self, rank: int, status: int, text: str, caused: bool) -> None:
        """Ends with the words of another rank; an error of one's own keeps its own, unless a lost rank caused it."""
        if rank == self._rank or self._spoken or (self._failing and not caused):
            return
        _last_words(text)
        if self._rank == 0:
            time.sleep(3 * self._every)
        _end(status)

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {self._count} (host {self._peers[rank].host})"


def _last_words(text: str) -> None:
    with unheard():
        sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def _end(status: int) -> NoReturn:
    """Without the runtime's own end, which would wait for the lost, or abort."""
    with unheard():
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
