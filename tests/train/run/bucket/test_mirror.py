"""The small files of a run, here and in its bucket: whole ones, parts of those that grow, and what is left alone."""

from pathlib import Path

import pytest

from model.errors import UserError
from tests.stores import Store
from train.run.bucket import address
from train.run.bucket.mirror import Mirror
from train.run.bucket.objects import Refused


def add(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as opened:
        opened.write(text)


def test_files_go_there_once_and_those_that_grow_in_parts(tmp_path: Path) -> None:
    store, here = Store(), tmp_path / "here"
    mirror = Mirror(store, here)
    mirror.fetch()
    add(here / "config.json", "{}")
    add(here / ".lock", "1")
    add(here / "metrics.jsonl", "a\nb\n")
    add(here / "tensorboard/events", "one")
    mirror.push()
    assert store.written == ["config.json", "metrics.jsonl.00001", "tensorboard/events.00001"]
    add(here / "metrics.jsonl", "c\n")
    mirror.push()
    mirror.push()
    assert store.written[3:] == ["metrics.jsonl.00002"]
    (here / "config.json").write_text("[]")
    mirror.push()
    assert store.written[4:] == ["config.json"]

    there = Mirror(store, tmp_path / "there")
    there.fetch()
    assert (tmp_path / "there/metrics.jsonl").read_text() == "a\nb\nc\n"
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["config.json", "metrics.jsonl"]
    there.push()
    assert store.written[5:] == []


def test_lines_that_are_dropped_take_their_parts_with_them(tmp_path: Path) -> None:
    """A run that goes on from an older step drops later lines, in the middle of a part, too."""
    store = Store()
    for number, text in enumerate((b"a\nb\n", b"c\nd\n", b"e\n"), 1):
        store.put(f"metrics.jsonl.{number:05}", text)
    mirror = Mirror(store, tmp_path)
    mirror.fetch()
    (tmp_path / "metrics.jsonl").write_text("a\nb\nc\nD\n")
    mirror.push()
    assert store.written == ["-metrics.jsonl.00003", "metrics.jsonl.00002"]
    again = Mirror(store, tmp_path / "again")
    again.fetch()
    assert (tmp_path / "again/metrics.jsonl").read_text() == "a\nb\nc\nD\n"


def test_the_bucket_says_what_there_is(tmp_path: Path) -> None:
    """Of checkpoints the notes alone, of those that are whole; another run below it, and the owner, are left alone."""
    store = Store()
    whole = {"checkpoints/3/run/metadata": b"3", "checkpoints/3/commit_success.txt": b""}
    begun = {"checkpoints/6/run/metadata": b"6", "checkpoints/broken-9/commit_success.txt": b""}
    other = {"owner.json": b"", "sub/config.json": b"", "tensorboard/events.00001": b"", ".now-1": b""}
    for name, data in (whole | begun | other | {"passport.json": b"p", "checkpoints/3/state/d": b"much"}).items():
        store.put(name, data)
    old = ["checkpoints/2/run/metadata", "metrics.jsonl", "tensorboard/events", "sub/passport.json", ".lock"]
    for name in old:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    Mirror(store, tmp_path).fetch()
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert found == [".lock", "checkpoints/3/run/metadata", "passport.json", "sub/passport.json"]
    assert (tmp_path / "checkpoints/3/run/metadata").read_text() == "3"


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, left = Store(), [1, 1]
    store.put("passport.json", b"p")
    read = store.read

    def changing(name: str) -> object:
        if left:
            left.pop()
            raise Refused("changed")
        return read(name)

    monkeypatch.setattr(store, "read", changing)
    Mirror(store, tmp_path).fetch()
    assert (tmp_path / "passport.json").read_text() == "p"
    left[:] = [1] * 9
    with pytest.raises(UserError, match=r"gs://mine/try/passport.json changes while it is read: try again."):
        Mirror(store, tmp_path).fetch()


@pytest.mark.parametrize(
    "wrong", ["gs://mine", "gs://mine/", "gs://Mine/a", "gs://mine/a b", "gs://mine/../a", "s3://b/a"]
)
def test_what_is_no_folder_of_a_run_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="is no folder: give one of this machine, or gs://BUCKET/FOLDER."):
        address.in_bucket(wrong)


def test_a_mirror_knows_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not address.in_bucket("runs/try")
    for owned in (True, False):
        folder = address.mirror_of("gs://mine/a/b", owned)
        assert (address.address_of(folder), address.called(folder)) == ("gs://mine/a/b", "gs://mine/a/b")
        assert str(address.checkpoints_of(folder)) == "gs://mine/a/b/checkpoints"
    assert address.mirror_of("gs://mine/a/b", True) == tmp_path / "heed/gs/mine/a/b"
    assert address.called(tmp_path / "run") == str(tmp_path / "run")
    assert address.checkpoints_of(tmp_path / "run") == tmp_path / "run/checkpoints"
