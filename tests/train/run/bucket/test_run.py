"""A run in a bucket for its owner, its other processes and its readers, against a store in this process."""

from pathlib import Path

import pytest

from launch.configs import load
from model.errors import UserError
from tests.stores import Store
from train.run import folder
from train.run.bucket import run
from train.run.bucket.address import called, mirror_of
from train.run.bucket.owner import NAME
from train.run.bucket.run import RunInBucket, folder_of, published
from train.run.folder import RunFolder

ADDRESS = "gs://mine/try"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = Store()
    monkeypatch.setattr(run, "objects_of", lambda address, flag="--workdir": made)
    return made


def test_an_owner_writes_and_gives_the_run_up(store: Store) -> None:
    own = RunInBucket(ADDRESS, owner=True)
    own.open()
    (own.folder / "config.json").write_text("{}")
    own.publish()
    assert store.data.keys() == {NAME, "config.json"}
    (own.folder / "passport.json").write_text("{}")
    own.close()
    assert store.data.keys() == {"config.json", "passport.json"}


def test_an_owner_that_has_lost_the_run_writes_nothing(store: Store) -> None:
    own = RunInBucket(ADDRESS, owner=True)
    own.open()
    store.put(NAME, b"{}")
    (own.folder / "config.json").write_text("{}")
    for step in (own.publish, own.publish):
        with pytest.raises(UserError, match=r"gs://mine/try has been taken over by another process: this one saves no"):
            step()
    own.close()
    assert store.data.keys() == {NAME}


def test_what_an_earlier_start_left_here_never_goes_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (left := mirror_of(ADDRESS, owned=True)).mkdir(parents=True)
    (left / "config.json").write_text("old")
    own = RunInBucket(ADDRESS, owner=True)

    def fails(below: str = "") -> None:
        raise UserError("no answer.")

    monkeypatch.setattr(store, "listed", fails)
    with pytest.raises(UserError, match="no answer"):
        own.open()
    own.close()
    assert not store.data


def test_others_read_a_copy_and_write_nothing(store: Store) -> None:
    store.put("passport.json", b"{}")
    store.put("metrics.jsonl.00001", b"a\n")
    other = RunInBucket(ADDRESS, owner=False)
    other.open()
    read = folder_of(ADDRESS)
    assert read == other.folder != mirror_of(ADDRESS, owned=True)
    assert (read / "metrics.jsonl").read_text() == "a\n"
    (read / "config.json").write_text("{}")
    other.publish()
    other.close()
    assert store.written == []
    assert published(read / "config.json") == f"{ADDRESS}/config.json"
    assert store.written == ["config.json"]


def test_what_lies_here_is_left_here(tmp_path: Path) -> None:
    assert folder_of(tmp_path) == tmp_path
    assert published(tmp_path / "a.png") == str(tmp_path / "a.png")


def test_a_refused_run_leaves_nothing_in_its_bucket(store: Store) -> None:
    store.put("config.json", b"{}")
    with pytest.raises(UserError, match=r"--workdir=gs://mine/try holds a config.json that heed did not write"):
        RunFolder(ADDRESS, load("gpt:quickstart"))
    assert store.data.keys() == {"config.json"}
    store.data.clear()
    store.put("checkpoints/3/commit_success.txt", b"")
    with pytest.raises(UserError, match=r"--workdir=gs://mine/try holds a run whose passport.json is lost"):
        RunFolder(ADDRESS, load("gpt:quickstart"))
    assert store.data.keys() == {"checkpoints/3/commit_success.txt"}


def test_a_folder_in_a_bucket_is_called_by_its_address(store: Store) -> None:
    assert folder.called is called
    with RunFolder(ADDRESS, load("gpt:quickstart")) as opened:
        opened.write("baselines.json", {"a": 1})
        opened.publish()
        assert opened.name == ADDRESS
        assert "baselines.json" in store.data
        with pytest.raises(UserError, match="is in use by"):
            RunInBucket(ADDRESS, owner=True).open()
    assert NAME not in store.data
