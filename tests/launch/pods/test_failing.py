"""What fails half-way, at a stand-in of gcloud: nothing that is paid for may be left without a word."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.pods import resources
from tests.launch.pods.cloud import ZONE, Cloud

RESET = "TransportError: Connection reset"


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return Cloud(tmp_path, monkeypatch)


def between(monkeypatch: pytest.MonkeyPatch, *steps: Callable[[], object]) -> None:
    """Between two looks there is one step after another."""
    left = iter(steps)
    monkeypatch.setattr(resources.time, "sleep", lambda _: next(left, lambda: None)())


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


@pytest.mark.parametrize("says", [RESET, "ALREADY_EXISTS: it is there"])
def test_what_a_colleague_made_meanwhile_is_not_touched(cloud: Cloud, says: str) -> None:
    cloud.faults(create_says=says, taken_meanwhile=1)
    failed = cloud.create()
    assert failed.status == 2
    assert ("the name is taken" if says != RESET else RESET) in failed.err
    assert cloud.state()["queued"]["try"]["tpu"]["nodeSpec"][0]["node"]["labels"] == {"heed-run": "try"}
    assert cloud.calls("delete") == []


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
