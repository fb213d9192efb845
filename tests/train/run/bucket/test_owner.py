"""Who may write a run in a bucket: against a store in this process that keeps to generations.

The race of two processes is not tested against the real service, nor on the emulator, which accepts some stale writes.
"""

import dataclasses
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from model.errors import UserError
from tests.stores import Store
from train.run.bucket import owner
from train.run.bucket.owner import NAME, STALE, Lease, Owner, this_owner
from train.run.files.json_files import dumps, loads

OTHER = Owner("other", "", 0, "far", "another boot", 11, "")


def said(who: Owner) -> bytes:
    return dumps(dataclasses.asdict(who)).encode()


def one(**changes: object) -> Owner:
    return dataclasses.replace(this_owner(), **changes)


def test_an_owner_says_who_it_is_lives_and_leaves_nothing() -> None:
    store = Store()
    lease = Lease(store, one(run="mine", attempt=2))
    lease.take()
    first = loads(store.data[NAME][0])
    assert (first["run"], first["attempt"], first["process"]) == ("mine", 2, os.getpid())
    assert first["host"]
    assert first["time"].startswith("20")
    before = store.data[NAME][1].generation
    store.passes(59)
    lease.renew()
    assert store.data[NAME][1].generation > before
    lease.release()
    assert not store.data


def until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_thread_renews(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "EVERY", 0.01)
    store = Store()
    lease = Lease(store, one())
    lease.take()
    until(lambda: len(store.written) >= 4)
    store.put(NAME, said(OTHER))
    until(lambda: lease.lost)
    with pytest.raises(UserError, match="has been taken over by process 11 of far: this one saves no more"):
        lease.renew()
    lease.release()
    assert loads(store.data[NAME][0])["id"] == "other"


def test_a_fresh_one_of_another_owner_is_refused() -> None:
    store = Store()
    store.put(NAME, said(OTHER))
    store.passes(STALE - 1)
    with pytest.raises(UserError, match=r"gs://mine/try is in use by process 11 of far, which said so 599 s ago: wait"):
        Lease(store, one()).take()
    assert store.data.keys() == {NAME}
    assert loads(store.data[NAME][0])["id"] == "other"


def dead() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize(
    ("other", "own", "seconds", "why"),
    [
        (OTHER, {}, STALE + 1, "it has said nothing for 10 minutes"),
        (dataclasses.replace(OTHER, run="r", attempt=1), {"run": "r", "attempt": 2}, 1, "it is of an earlier attempt"),
        (one(id="other", process=dead()), {}, 1, "that process of this machine has ended"),
        (None, {}, STALE + 1, "it has said nothing for 10 minutes"),
    ],
    ids=["old", "attempt", "dead", "garbled"],
)
def test_one_that_is_gone_is_taken_over_which_is_said(
    other: Owner | None, own: dict[str, object], seconds: float, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store()
    store.put(NAME, b"{" if other is None else said(other))
    store.passes(seconds)
    lease = Lease(store, one(**own))
    with caplog.at_level(logging.WARNING):
        lease.take()
    assert f"gs://mine/try is taken over from {other or 'an unknown owner'}: {why}" in caplog.text
    lease.renew()
    lease.release()
    assert not store.data


@pytest.mark.parametrize(
    ("other", "own"),
    [
        (dataclasses.replace(OTHER, run="r", attempt=2), {"run": "r", "attempt": 2}),
        (dataclasses.replace(OTHER, run="r", attempt=3), {"run": "r", "attempt": 2}),
        (dataclasses.replace(OTHER, run="q", attempt=1), {"run": "r", "attempt": 2}),
        (OTHER, {"attempt": 1}),
        (one(id="other"), {}),
        (None, {}),
    ],
    ids=["same attempt", "later", "another run", "no run", "lives", "garbled"],
)
def test_one_that_may_live_is_not(other: Owner | None, own: dict[str, object]) -> None:
    store = Store()
    store.put(NAME, b"{" if other is None else said(other))
    store.passes(1)
    with pytest.raises(UserError, match="is in use by"):
        Lease(store, one(**own)).take()


def test_of_two_that_take_over_one_does() -> None:
    store = Store()
    store.put(NAME, said(OTHER))
    store.passes(STALE + 1)
    store.faster = [said(one(id="faster"))]
    with pytest.raises(UserError, match="was taken by another process this moment"):
        Lease(store, one()).take()
    assert loads(store.data[NAME][0])["id"] == "faster"


def test_an_answer_that_gets_lost_loses_nothing() -> None:
    """The client tries again what has been done, and is refused by its own generation."""
    store = Store()
    lease = Lease(store, one())
    lease.take()
    store.loses_answers = True
    lease.renew()
    store.loses_answers = False
    lease.renew()
    lease.release()
    assert not store.data


def test_one_that_is_taken_unseen_is_left_to_the_other() -> None:
    store = Store()
    lease = Lease(store, one())
    lease.take()
    store.put(NAME, said(OTHER))
    lease.release()
    assert loads(store.data[NAME][0])["id"] == "other"


def test_one_that_was_deleted_is_lost() -> None:
    store = Store()
    lease = Lease(store, one())
    lease.take()
    store.data.clear()
    with pytest.raises(UserError, match="taken over by another process"):
        lease.renew()
    lease.release()
    assert not store.data


def test_a_launcher_tells_run_and_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEED_RUN", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert (this_owner().run, this_owner().attempt) == ("", 0)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert (this_owner().run, this_owner().attempt) == ("17", 0)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert (this_owner().run, this_owner().attempt) == ("17", 2)
    monkeypatch.setenv("HEED_RUN", "mine")
    monkeypatch.setenv("HEED_ATTEMPT", "3")
    assert (this_owner().run, this_owner().attempt) == ("mine", 3)
