"""What fails half-way, at a stand-in of gcloud: nothing that is paid for may be left without a word."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import sleep  # which `between` replaces in `time`

import pytest

from launch import pod
from launch.pods import resources, running
from launch.pods.gcloud import Answer, Tpus
from launch.pods.remote import Machines
from tests.launch.pods.cloud import TRAIN, ZONE, Cloud

RESET = "TransportError: Connection reset"


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return Cloud(tmp_path, monkeypatch)


def between(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Between two looks there is one step after another; who looks on after that for ever fails."""
    left = iter([*steps, *[lambda: None] * 99])
    monkeypatch.setattr(resources.time, "sleep", lambda _: next(left)())


@pytest.mark.parametrize("passes", [True, False])
def test_what_is_no_longer_seen_is_looked_at_again_or_told_how_to_delete(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, passes: bool
) -> None:
    monkeypatch.setattr(resources, "_LOOKS", 5)
    back = [cloud.faults] if passes else []
    between(monkeypatch, lambda: cloud.faults(logged_out_later=1), lambda: None, lambda: None, *back)
    made = cloud.create()
    assert made.out.count("try: not seen, which may pass: gcloud is not logged in") == 1
    if passes:
        assert made.status == 0, made.err
        assert "try: ACTIVE+READY" in made.out
    else:
        assert made.status == 2
        assert "gcloud is not logged in" in made.err
        assert "try may still be there, and cost money (gcloud is not logged in" in made.out
        assert f"-m launch.pod delete --name=try {ZONE}" in made.out


@pytest.mark.parametrize("words", [[], ["--direct"]])
def test_what_was_made_by_a_create_that_failed_is_deleted(cloud: Cloud, words: list[str]) -> None:
    cloud.faults(create_says=RESET, late=0 if words else 2)
    failed = cloud.create(*words)
    assert failed.status == 2
    assert f"was not made, and nothing is left of it: gcloud failed: ERROR: (gcloud) {RESET}." in failed.err
    assert cloud.state() == {"queued": {}, "nodes": {}}


def test_what_is_interrupted_deletes_nothing_of_another_request(
    cloud: Cloud, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the same name and with our label, as where a colleague was a moment earlier."""
    assert cloud.create().status == 0
    pod.on_interrupt(Tpus("us-west4-a", "", False), "try")("another")
    assert "--name=try is of another request, made meanwhile under that name, and stays." in capsys.readouterr().out
    assert cloud.calls("delete") == []


@pytest.mark.parametrize("says", [RESET, "ALREADY_EXISTS: it is there"])
def test_what_a_colleague_made_meanwhile_is_not_touched(cloud: Cloud, says: str) -> None:
    cloud.faults(create_says=says, taken_meanwhile=1)
    failed = cloud.create()
    assert failed.status == 2
    assert ("the name is taken" if says != RESET else RESET) in failed.err
    assert cloud.state()["queued"]["try"]["tpu"]["nodeSpec"][0]["node"]["labels"] == {"heed-run": "try"}
    assert cloud.calls("delete") == []


@pytest.mark.rest
def test_what_appears_late_is_waited_for_or_given_up(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.faults(late=4)
    assert cloud.create().status == 0
    monkeypatch.setattr(resources, "_LOOKS", 2)
    cloud.faults(late=9)
    never = cloud.create(name="other")
    assert never.status == 2
    assert "nothing is left of it: it never came to be" in never.err


def test_ctrl_c_deletes_what_appears_late(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.faults(late=2)

    def stop() -> None:
        raise KeyboardInterrupt

    between(monkeypatch, stop)
    assert cloud.create().status == 130
    assert cloud.state() == {"queued": {}, "nodes": {}}


def hours_ago(hours: float) -> int:
    return int(time.time() - hours * 3600)


def suspended(cloud: Cloud, state: str = "SUSPENDED") -> None:
    """Its machine vanishes."""
    found = cloud.state()
    found["queued"]["try"]["state"] = {"state": state}
    cloud.state({**found, "nodes": {}})


@pytest.mark.rest
def test_hours_count_on_where_the_machine_has_vanished(cloud: Cloud) -> None:
    asked = hours_ago(7)
    cloud.faults(created=asked)
    cloud.create("--capacity=spot")
    suspended(cloud, "WAITING_FOR_RESOURCES")
    assert " 0.0 h " in cloud.pod("list").out
    suspended(cloud)
    assert " 7.0 h " in cloud.pod("list").out
    cloud.faults(unreachable=9)  # it goes no further than to be made again
    cloud.pod("run", "--watch", *TRAIN)
    _, again = cloud.calls("create")
    assert any(f",heed-started={asked}," in word for word in again)
    state = cloud.state()
    state["queued"]["try"]["createTime"] = "2020-01-01T00:00:00Z"
    del state["queued"]["try"]["tpu"]["nodeSpec"][0]["node"]["metadata"]["heed-started"]
    cloud.state(state)
    suspended(cloud)
    assert "its --max-hours=8 are over" in cloud.pod("run", "--watch", *TRAIN).err


@pytest.mark.parametrize("state", [pytest.param("SUSPENDED", marks=pytest.mark.rest), "ACTIVE"])
def test_a_machine_that_vanishes_is_made_again(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    booted = hours_ago(2)
    cloud.faults(created=booted)
    cloud.create()
    found = cloud.state()
    found["queued"]["try"]["createTime"] = "2020-01-01T00:00:00Z"  # it was long in the queue
    cloud.state(found)

    def vanishes() -> None:
        assert [cloud.ended(worker=worker) for worker in range(4)] == ["0"] * 4
        suspended(cloud, state)
        cloud.faults()

    between(monkeypatch, vanishes)
    watched = cloud.pod("run", "--watch", *TRAIN)
    assert watched.status == 0, watched.err
    assert "it is made again, 1 of at most 3 times" in watched.out
    _, again = cloud.calls("create")
    assert any(f",heed-started={booted}," in word for word in again)


def waiting(cloud: Cloud) -> list[Path]:
    """On each host, the file while which is there its runs go on."""
    files = [cloud.home(worker=worker) / "wait" for worker in range(4)]
    for file in files:
        file.parent.mkdir()
        file.touch()
    return files


def test_a_run_that_hosts_lost_is_started_again(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.create()
    waits = waiting(cloud)

    def reboot() -> None:
        """All processes end, without a word; the number of one is another's then."""
        for worker, file in enumerate(waits):
            end, pid = time.monotonic() + 20, file.parent / "heed/try/run.pid"
            while not (file.parent / "heed/try/runs/try/config.json").exists() and time.monotonic() < end:
                sleep(0.02)
            os.killpg(int(pid.read_text()), signal.SIGKILL)
            file.unlink()
            if worker == 2:
                pid.write_text(str(os.getpid()))

    between(monkeypatch, lambda: cloud.faults(logged_out_later=1), cloud.faults, reboot)  # a look that fails passes
    watched = cloud.pod("run", "--watch", *TRAIN)
    assert watched.status == 0, watched.err
    assert "try: without its run, as after a reboot (lost); it is started again, 1 of at most 3 times" in watched.out
    assert len(cloud.calls("create")) == 1
    assert [len((file.parent / "attempts").read_text().splitlines()) for file in waits] == [2] * 4
    (waits[0].parent / "heed/try/run.status").unlink()
    between(monkeypatch)
    monkeypatch.setattr(running.Run, "begin", lambda self, found: Machines.of(self.tpus, found))
    given_up = cloud.pod("run", "--watch", "--max-restarts=0", *TRAIN)
    assert given_up.status == 2
    assert "(ended with status 0, lost), and --max-restarts=0 are used up: the same run again, or" in given_up.err


@pytest.mark.rest
def test_ctrl_c_while_a_run_starts_leaves_it_on_no_host(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.create()
    waits, change = waiting(cloud), Tpus.change

    def start(tpus: Tpus, words: Sequence[str], **how: bool) -> Answer:
        answer = change(tpus, words, **how)
        if "heed-started" in answer.out:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(Tpus, "change", start)
    stopped = cloud.pod("run", *TRAIN)
    states = cloud.pod("status").out
    for file in waits:
        file.unlink()
    assert stopped.status == 130
    assert "stopped: the run of try is ended on the hosts that have begun it" in stopped.out
    assert "hosts: 4 lost (of 4)" in states
