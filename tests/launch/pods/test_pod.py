"""TPU machines through a stand-in of gcloud: what is made, paid for, sent, started, watched and deleted."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.pods import resources
from launch.pods.gcloud import Tpus
from launch.pods.remote import Machines
from model.errors import UserError
from tests.conftest import ROOT
from tests.launch.pods.cloud import PLAN, TRAIN, ZONE, Cloud, environment

# Whatever a shell would understand.
HOSTILE = "--config.model.mask=a 'b' \"c\" $(touch hurt) `touch hurt`\n; touch hurt & \\ * ~ | > x  two  spaces"


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return Cloud(tmp_path, monkeypatch)


def test_a_run_from_its_making_to_its_end(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cloud.create("--price=1.5", "--capacity=spot")
    assert made.status == 0, made.err
    assert "16 chips, for at most 8 h" in made.out
    assert "128.0 chip-hours, 192.00 USD" in made.out
    (words,) = cloud.calls("create")
    assert {"--spot", "--valid-until-duration=43200s", "--labels=heed-run=try", "--node-id=try"} <= {*words}
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"} <= {*words}

    ran = cloud.pod("run", "--secret=TOKEN", *TRAIN, HOSTILE)
    assert ran.status == 0, ran.err
    for worker in range(4):
        assert cloud.ended(worker=worker) == "0"
        home = cloud.home(worker=worker)
        assert (home / "argv").read_text().split("\0")[:-1] == ["-m", *TRAIN[1:], HOSTILE]
        assert (home / "token").read_text() == 's3cret "$HOME"'
        (attempt,) = (home / "attempts").read_text().splitlines()
        assert re.fullmatch(r"p/us-west4-a/try \d{10}", attempt)
        assert not list(home.rglob("hurt"))
        assert (home / "heed/try/code.py").read_text() == "x = 1\n"
    assert "--require-hashes --requirement requirements.txt" in (cloud.home() / "uv").read_text()
    commit = subprocess.run(["git", "-C", cloud.folder / "code", "rev-parse", "HEAD"], capture_output=True, check=True)
    there = ["git", "-C", cloud.home() / "heed/try"]
    assert subprocess.run([*there, "rev-parse", "HEAD"], capture_output=True, check=True).stdout == commit.stdout
    seen = [*there, "status", "--porcelain", "--untracked-files=no"]
    assert subprocess.run(seen, capture_output=True, check=True).stdout == b""
    assert "s3cret" not in (cloud.folder / "calls.jsonl").read_text() + ran.out
    assert not [
        file
        for file in cloud.home().rglob("*")
        if file.is_file() and b"s3cret" in file.read_bytes() and file.name != "token"
    ]

    cloud.faults(created=time.time() - 7200)
    assert "hosts: 4 ended with status 0 (of 4)" in cloud.pod("status").out
    assert all("--batch-size=4" in words for words in cloud.calls("--worker=all"))
    listed = cloud.pod("list").out
    assert "try" in listed
    assert "ACTIVE+READY" in listed
    assert cloud.pod("logs").status == 0

    monkeypatch.chdir(tmp_path)
    assert cloud.pod("fetch", "--workdir=runs/try").out.splitlines() == ["try: runs/try is here"]
    assert (tmp_path / "runs/try/config.json").read_text() == "{}\n"
    assert "exists here" in cloud.pod("fetch", "--workdir=runs/try").err

    assert cloud.pod("delete").status == 0
    assert cloud.state() == {"queued": {}, "nodes": {}}
    assert cloud.pod("list").out == "nothing of heed's is in any zone of p\n"


@pytest.mark.rest
def test_a_run_outlives_what_started_it_and_keeps_its_place(cloud: Cloud, capfd: pytest.CaptureFixture[str]) -> None:
    cloud.create()
    cloud.home().mkdir()
    (cloud.home() / "wait").touch()
    assert cloud.pod("run", *TRAIN).status == 0
    pid = int((cloud.home() / "heed/try/run.pid").read_text())
    assert os.getsid(pid) == pid  # no terminal and no connection takes it along
    assert "1 running" in cloud.pod("status").out
    assert "a run is still there" in cloud.pod("run", *TRAIN).err
    (cloud.home() / "exit").write_text("3")
    (cloud.home() / "wait").unlink()
    assert cloud.ended() == "3"
    assert cloud.pod("logs").status == 0
    assert "step 1" in capfd.readouterr().out


@pytest.mark.rest
def test_what_is_not_committed_is_sent_only_when_asked(cloud: Cloud) -> None:
    cloud.create()
    (cloud.folder / "code/code.py").write_text("x = 2\n")
    (cloud.folder / "code/new.py").write_text("x = 3\n")
    (cloud.folder / "code/secret.txt").write_text("never\n")
    cloud.git("add", "new.py")
    cloud.git("rm", "--quiet", "--cached", "requirements-build.txt")
    cloud.git("add", "requirements-build.txt")
    refused = cloud.pod("run", *TRAIN)
    assert (refused.status, cloud.calls("scp")) == (2, [])
    assert "2 files differ from the commit, such as code.py: commit them, or give --dirty." in refused.err
    sent = cloud.pod("run", "--dirty", *TRAIN)
    assert "sent:  M code.py" in sent.out
    assert "sent: A  new.py" in sent.out
    there = cloud.home() / "heed/try"
    assert [(there / name).read_text() for name in ("code.py", "new.py")] == ["x = 2\n", "x = 3\n"]
    assert not (there / "secret.txt").exists()
    changed = subprocess.run(["git", "-C", there, "status", "--porcelain"], capture_output=True, text=True, check=True)
    assert " M code.py" in changed.stdout  # which the passport asks
    assert (
        subprocess.run(
            ["git", "-C", cloud.folder / "code", "diff", "--cached", "--name-only"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        == "new.py\n"
    )


@pytest.mark.parametrize(
    ("plan", "words", "sentence"),
    [
        (None, [], "creating needs a plan's answer: "),
        ({**PLAN, "fits": False}, [], "does not fit v5e:4x4 x 1 (7.00 of 16.90 GB"),
        ({**PLAN, "fits": False, "peak_bytes": None}, [], "(more of 16.90 GB"),
        (PLAN, ["--topology=v5e:8x8"], "and v5e:8x8 x 1 is asked for"),
        (PLAN, ["--slices=2"], "and v5e:4x4 x 2 is asked for"),
        ({"fits": True}, [], "is no plan (it has no topology)"),
        ([], [], "is no plan (it is empty)"),
        ([3], [], "is no plan (it holds what is no object)"),
        ({**PLAN, "programs": [PLAN, {**PLAN, "peak_bytes": None}], "fits": False}, [], "(more of 16.90 GB"),
        ({**PLAN, "programs": [{"fits": True}]}, [], "is no plan (it has no hbm_bytes)"),
        ([PLAN, {**PLAN, "topology": "v5e:8x8"}], [], "choose by --topology"),
        ({**PLAN, "topology": "tpu7x:4x4x4"}, [], "there are no TPU VMs of tpu7x, which GKE alone serves"),
        (PLAN, ["--max-hours=0"], "--max-hours=0 must be above 0."),
        (PLAN, ["--max-hours=nan"], "--max-hours=nan must be above 0."),
        (PLAN, ["--max-wait-hours=-1"], "--max-wait-hours=-1 must be above 0."),
        (PLAN, ["--price=-1"], "--price=-1 must be USD per chip-hour."),
        (PLAN, ["--name=Try"], "--name='Try': a name of small letters, digits and hyphens"),
        (PLAN, ["--name=try-"], "no hyphen last"),
        (PLAN, [f"--name={'a' * 62}"], "has 62 characters, and may have 61 here"),
        (PLAN, ["--zone=us-west4-a,x"], "is no zone"),
        (PLAN, ["--service-account=a,b=c"], "is no account's address"),
        (PLAN, ["--direct", "--capacity=flex-start"], "--direct makes one slice"),
    ],
)
def test_what_cannot_be_is_refused_before_gcloud_is_asked(
    cloud: Cloud, plan: Any, words: list[str], sentence: str
) -> None:
    (cloud.folder / "plan.json").write_text(json.dumps(plan))
    given = ["--plan="] if plan is None else []
    refused = cloud.create(*given, *words)
    assert (refused.status, cloud.calls()) == (2, [])
    assert sentence in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.rest
def test_a_name_leaves_room_for_what_is_added(cloud: Cloud) -> None:
    (cloud.folder / "plan.json").write_text(json.dumps({**PLAN, "slices": 11}))
    assert "may have 58 here" in cloud.create("--slices=11", name="a" * 59).err
    assert cloud.create("--slices=11", name="a" * 58).status == 0
    assert len(cloud.state()["nodes"]) == 11


def test_an_ablation_needs_what_its_largest_program_does(cloud: Cloud) -> None:
    whole = {name: PLAN[name] for name in ("topology", "fits")}
    parts = [PLAN | {"peak_bytes": size} for size in (10**9, 7 * 10**9, 2 * 10**9)]
    (cloud.folder / "plan.json").write_text(json.dumps(whole | {"programs": parts}))
    assert "it needs 7.00 of 16.90 GB" in cloud.create("--dry-run").out


@pytest.mark.parametrize(
    ("fault", "words", "sentence"),
    [
        ({"logged_out": 1}, [], "gcloud is not logged in: run gcloud auth login"),
        ({"logged_out_later": 1}, [], "gcloud is not logged in: run gcloud auth login"),
        ({"quota": 1}, [], "the quota is too small (Quota limit 'TPUV6EPreemptiblePerProject"),
        ({"no_capacity": 1}, [], "nothing is left of it: FAILED (There is no more capacity in the zone)."),
        ({"no_capacity": 1}, ["--direct"], "there is no capacity left in this zone"),
        ({"preempted_creating": 1}, [], "nothing is left of it: PREEMPTED."),
        ({"no_role": 1}, [], "nothing was created: that takes a typed yes."),
        ({"binding": {"condition": {"title": "by day"}}}, [], "nothing was created: that takes a typed yes."),
    ],
)
def test_a_failure_of_gcloud_is_one_sentence_and_leaves_nothing(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any], words: list[str], sentence: str
) -> None:
    cloud.faults(**fault)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    failed = cloud.create(*words)
    assert failed.status == 2
    assert sentence in failed.err
    assert failed.err.count("\n") == 1
    assert cloud.state() == {"queued": {}, "nodes": {}}


def test_no_gcloud(cloud: Cloud) -> None:
    (cloud.folder / "bin/gcloud").unlink()
    assert "there is no gcloud on the PATH" in cloud.create().err


def test_a_name_that_is_taken_or_not_yet_gone(cloud: Cloud) -> None:
    cloud.create()
    before = cloud.state()
    assert "--name=try is taken (ACTIVE+READY)" in cloud.create().err
    assert cloud.state() == before
    before["queued"]["try"].update(state={"state": "DELETING"}, left=9)
    cloud.state(before)
    assert "--name=try is still being deleted" in cloud.create().err
    cloud.state({"queued": {}, "nodes": {"two-1": before["nodes"]["try"]}})
    (cloud.folder / "plan.json").write_text(json.dumps({**PLAN, "slices": 2}))
    assert "a machine called two-1, which exists" in cloud.create("--slices=2", name="two").err
    assert len(cloud.calls("create")) == 1


@pytest.mark.rest
def test_nothing_is_made_without_a_yes(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("create", f"--plan={cloud.folder}/plan.json", "--max-hours=2")
    for typed, status in (("", 2), ("y\n", 2), ("yes\n", 0)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        asked = cloud.pod(*given)
        assert asked.status == status, asked.err
        assert "32.0 chip-hours, price unknown" in asked.out
        assert len(cloud.calls("create")) == (not status)
    cloud.faults(no_role=1)
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    doubtful = cloud.create(name="other")
    assert "nothing may end it but you: the machines' account 7-compute@" in doubtful.out
    assert doubtful.status == 0


def same(words: list[str]) -> list[str]:
    """The words of a create but for those that no two have in common."""
    return [re.sub("heed-request=[0-9a-f]{8}", "", one) for one in words if "startup-script" not in one]


@pytest.mark.rest
def test_a_dry_run_shows_what_then_runs(cloud: Cloud) -> None:
    shown = cloud.create("--dry-run")
    assert cloud.calls("create") == []
    assert "RESOURCE, HOURS = 'locations/us-west4-a/queuedResources/try?force=true', 8.0" in shown.out
    cloud.create()
    (ran,) = cloud.calls("create")
    (dry,) = cloud.shown(shown)
    assert same(ran) == same(dry)
    shown = cloud.pod("run", "--dry-run", *TRAIN, HOSTILE)
    assert cloud.calls("ssh") == cloud.calls("scp") == []
    cloud.pod("run", *TRAIN, HOSTILE)
    assert [words for words in cloud.shown(shown) if "ssh" in words] == cloud.calls("ssh")
    cloud.ended()
    assert len(cloud.shown(cloud.pod("delete", "--dry-run"))) == 1
    assert cloud.state()["queued"]


@pytest.mark.rest
def test_half_of_the_hosts_cannot_be_reached(cloud: Cloud) -> None:
    cloud.create()
    cloud.faults(unreachable=2)
    failed = cloud.pod("run", *TRAIN)
    assert failed.status == 2
    assert not (cloud.home() / "argv").exists()
    cloud.faults()
    cloud.pod("run", *TRAIN)
    cloud.ended()
    cloud.faults(unreachable=2)
    assert "2 do not answer (of 4)" in cloud.pod("status").out
    machines = Machines(Tpus("z"), "try", {"try": 4})
    for worker in range(4):
        (cloud.home(worker=worker) / "wait").touch()
    with pytest.raises(UserError, match="the start was done by 2 of 4 hosts of try, so the run was not started"):
        machines.start(["launch.train"], [])
    cloud.faults()
    assert "running" not in machines.states()


def test_more_hosts_than_gcloud_takes_at_a_time(cloud: Cloud) -> None:
    cloud.state({"queued": {}, "nodes": {"big": {"networkEndpoints": [{}] * 80}}})
    Machines(Tpus("z"), "big", {"big": 80}).must("heed-done", "it", "echo heed-done")
    with pytest.raises(UserError, match="by 0 of 80 hosts of big, .* exit status 1. Continuing"):
        Machines(Tpus("z"), "big", {"big": 80}).must("heed-done", "it", "exit 1")


def test_only_what_is_ours_is_listed_and_deleted(cloud: Cloud) -> None:
    (cloud.folder / "plan.json").write_text(json.dumps({**PLAN, "slices": 2}))
    cloud.create("--slices=2", name="a")
    state = cloud.state()
    theirs = "projects/p/locations/us-west4-a/nodes"
    state["nodes"]["theirs"] = {**state["nodes"]["a-0"], "name": f"{theirs}/theirs", "labels": {}}
    state["nodes"]["a-7"] = {**state["nodes"]["a-0"], "name": f"{theirs}/a-7", "labels": {"heed-run": "b"}}
    far = theirs.replace("us-west4-a", "us-east5-b")  # where another may have the same name
    state["nodes"]["ab"] = {**state["nodes"]["a-0"], "name": f"{far}/a-0", "labels": {"heed-run": "a"}}
    cloud.state(state)
    listed = cloud.pod("list").out.splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [
        ["a", "us-east5-b", "1", "x"], ["a", "us-west4-a", "2", "x"], ["b", "us-west4-a", "1", "x"],
    ]  # fmt: skip
    assert "has no label heed-run=theirs, so heed did not make it" in cloud.pod("delete", name="theirs").err
    assert "has no label heed-run=a-7" in cloud.pod("delete", name="a-7").err
    state["nodes"]["a-1"]["labels"] = {}  # somebody took it over
    cloud.state(state)
    cloud.faults(leaves_nodes=1)
    assert cloud.pod("delete", name="a").status == 0
    assert [*cloud.state()["nodes"]] == ["a-1", "theirs", "a-7", "ab"]
    assert "there is nothing of that name" in cloud.pod("delete", name="a").err


@pytest.mark.rest
def test_machines_that_outlive_their_resource_are_found(cloud: Cloud) -> None:
    (cloud.folder / "plan.json").write_text(json.dumps({**PLAN, "slices": 2}))
    cloud.create("--slices=2", name="a")
    cloud.state({"queued": {}, "nodes": cloud.state()["nodes"]})
    assert "2 x v5litepod-16" in cloud.pod("list").out
    assert cloud.pod("delete", name="a").status == 0
    assert cloud.state()["nodes"] == {}


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_deletes_or_says_how(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    left = iter([KeyboardInterrupt] * times)

    def sleep(_: float) -> None:
        for error in left:
            raise error

    monkeypatch.setattr(resources.time, "sleep", sleep)
    stopped = cloud.create()
    assert stopped.status == 130
    assert f"-m launch.pod delete --name=try {ZONE}" in stopped.out
    assert ("may still be there, and cost money" in stopped.out) == (times == 2)
    assert bool(cloud.state()["queued"]) == (times == 2)


def preempting(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The first looks at a run find it preempted; the next that it has ended."""
    left = iter(range(times))

    def sleep(_: float) -> None:
        state = cloud.state()
        if state["queued"] and state["queued"]["try"]["state"]["state"] == "ACTIVE":
            assert [cloud.ended(worker=worker) for worker in range(4)] == ["0"] * 4
            if next(left, None) is not None:
                state["queued"]["try"]["state"] = {"state": "SUSPENDED"}
                cloud.state(state)
                cloud.faults()  # what is made next is younger

    monkeypatch.setattr(resources.time, "sleep", sleep)


@pytest.mark.rest
def test_a_watched_run_is_made_again_in_the_hours_that_it_had(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.faults(created=1000 * (int(time.time()) // 1000) - 3600)
    cloud.create("--capacity=spot", "--price=1.5")
    preempting(cloud, monkeypatch, 2)
    watched = cloud.pod("run", "--watch", *TRAIN)
    assert watched.status == 0, watched.err
    assert "SUSPENDED; it is made again, 2 of at most 3 times" in watched.out
    first, *more = cloud.calls("create")
    told = f",heed-started={1000 * (int(time.time()) // 1000) - 3600}"
    assert len(more) == 2
    for words in more:
        assert [one.replace(told, "") for one in same(words)] == same(first)
        assert any(told in one for one in words)


@pytest.mark.rest
def test_a_watched_run_is_given_up(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.create()
    preempting(cloud, monkeypatch, 9)
    assert "SUSPENDED, and --max-restarts=1 are used up" in cloud.pod("run", "--watch", "--max-restarts=1", *TRAIN).err
    assert len(cloud.calls("create")) == 2
    told = cloud.pod("status").out
    assert "--watch -- THE SAME COMMAND" in told
    assert f"-m launch.pod delete --name=try {ZONE}" in told
    state = cloud.state()
    state["nodes"]["try"]["createTime"] = "2020-01-01T00:00:00Z"
    state["queued"]["try"]["tpu"]["nodeSpec"][0]["node"]["metadata"].pop("heed-started")
    cloud.state(state)
    assert "its --max-hours=8 are over" in cloud.pod("run", "--watch", *TRAIN).err


@pytest.mark.rest
def test_a_machine_that_is_there_already(cloud: Cloud) -> None:
    cloud.create("--direct")
    state = cloud.state()
    assert not state["queued"]
    assert "nodes/try'" in state["nodes"]["try"]["metadata"]["startup-script"]
    state["nodes"]["try"].update(labels={}, metadata={})
    cloud.state(state)
    assert cloud.pod("run", *TRAIN).status == 0
    assert cloud.ended() == "0"
    assert "was not made by heed" in cloud.pod("run", "--watch", *TRAIN).err


@pytest.mark.rest
def test_flex_start_has_the_limit_of_google_itself(cloud: Cloud) -> None:
    cloud.create("--capacity=flex-start")
    (words,) = cloud.calls("create")
    assert words[0] == "alpha"
    assert {"--provisioning-model=flex-start", "--max-run-duration=28800s"} <= {*words}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "what is to run comes last"),
        (["--", "rm", "-rf"], "rm is no command of heed's: what is to run comes last"),
        (["--", "launch.train", "--config=gpt:quickstat", "--workdir=x"], "the nearest is quickstart"),
        (
            ["--", "launch.train", "--config=base", "--workdir=x", "--config.train.steps=9x"],
            "--config.train.steps='9x': a whole",
        ),
        (
            ["--", "launch.ablate", "--plan=configs/ablations/scal.py", "--workdir=x"],
            "--plan=configs/ablations/scal.py",
        ),
        (["--secret=a b", *TRAIN], "--secret=a b must be the name of an entry"),
        (["--max-restarts=-1", *TRAIN], "--max-restarts=-1 must be at least 0."),
        (["--config.train.steps=9", *TRAIN], "runs nothing with a config"),
    ],
)
def test_bad_words_of_run(cloud: Cloud, words: list[str], sentence: str) -> None:
    refused = cloud.pod("run", *words)
    assert (refused.status, cloud.calls()) == (2, [])
    assert sentence in refused.err


@pytest.mark.rest
def test_bad_words(cloud: Cloud) -> None:
    assert "the first word must be one of create, run" in cloud.pod("start").err
    cloud.create()
    for folder in ("/etc", "../x", "a b", "runs/../../x", "~/x"):
        assert "must be a folder below" in cloud.pod("fetch", f"--workdir={folder}").err


@pytest.mark.rest
def test_ctrl_c_of_a_process(cloud: Cloud) -> None:
    words = ["create", "--name=try", ZONE, f"--plan={cloud.folder}/plan.json", "--max-hours=1", "--yes"]
    command = [sys.executable, "-m", "launch.pod", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(cloud), stdout=pipe, text=True, start_new_session=True
    ) as run:
        assert run.stdout
        for line in run.stdout:
            if "CREATING" in line or "WAITING" in line:
                run.send_signal(signal.SIGINT)
                break
        deadline = time.monotonic() + 60
        while cloud.state()["queued"]["try"]["state"]["state"] != "DELETING" and time.monotonic() < deadline:
            time.sleep(0.2)  # on a busy machine gcloud is slow to start
        run.send_signal(signal.SIGINT)  # deleting takes longer than anybody waits here
        assert "launch.pod delete --name=try" in run.stdout.read()
    assert run.returncode == 130
    assert cloud.state()["queued"]["try"]["state"] == {"state": "DELETING"}


def test_no_real_gcloud_is_found(cloud: Cloud) -> None:
    assert shutil.which("gcloud") == str(cloud.folder / "bin/gcloud")
    assert "stand_in.py" in Path(str(shutil.which("gcloud"))).read_text()
