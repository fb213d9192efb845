"""Manifests for GKE and scripts for SLURM: what JobSet's own schema allows, and words that nobody reads on the way."""

import contextlib
import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from launch import manifest
from launch.machines import jobset, tree, unpack
from launch.machines.jobset import Pods
from launch.planning.chips import parse_topology
from model.errors import UserError
from tests.stores import Store
from tests.tiny import Outcome, call
from train.run.bucket.owner import Lease, this_owner

HOSTILE = [
    "--config.train.prompt=\"a\" 'b' $(touch pwned) `touch pwned`\n; & | $HOME $$ $(HOME) $$(HOME) \\n ~ é \U0001f600",
    "--config.data.name=#SBATCH --nodes=9\n#SBATCH --nodes=9\n\n  - : {x}\t\x07\x85 ",
]
COMMAND = ["--", "launch.train", "--config=configs/gpt.py:llama_8b", "--workdir=gs://mine/run"]
GKE = ["--kind=gke", "--name=llama", "--topology=v5e:16x16", "--image=here/heed:1"]
SLURM = ["--kind=slurm", "--name=llama"]


def written(folder: Path, *argv: str) -> tuple[str, Outcome]:
    """What `launch.manifest` writes, and prints."""
    out = folder / "out"
    done = call(manifest.main, [f"--out={out}", *argv])
    assert (done.status, done.err) == (0, "")
    return out.read_text(errors="surrogateescape"), done


def container(made: dict[str, Any]) -> dict[str, Any]:
    (one,) = pod(made)["containers"]
    return one


def pod(made: dict[str, Any]) -> dict[str, Any]:
    return job(made)["template"]["spec"]


def job(made: dict[str, Any]) -> dict[str, Any]:
    (one,) = made["spec"]["replicatedJobs"]
    return one["template"]["spec"]


def closed(schema: Any) -> Any:
    """The schema, which allows no names that it does not know: Kubernetes would drop them without a word."""
    if isinstance(schema, list):
        return list(map(closed, schema))
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    return inner | ({"additionalProperties": False} if isinstance(inner.get("properties"), dict) else {})


def checker(schema: Any) -> jsonschema.Draft7Validator:
    """Of a published schema, with what every object has and the schema leaves open."""
    words = {"type": "object", "additionalProperties": {"type": "string"}}
    named = {name: {"type": "string"} for name in ("name", "namespace")}
    head = {"type": "object", "properties": {**named, "labels": words, "annotations": words}}
    return jsonschema.Draft7Validator(closed({**schema, "properties": {**schema["properties"], "metadata": head}}))


@pytest.fixture(scope="module")
def schemas() -> dict[str, jsonschema.Draft7Validator]:
    """Of each kind that is written."""
    jobsets, queues = (
        json.loads((Path(__file__).parent / f"data/{name}.json").read_text())
        for name in ("jobset_v1alpha2", "kueue_v1beta2")
    )
    return {kind: checker(one) for kind, one in {"JobSet": jobsets["schema"], **queues["schemas"]}.items()}


FULL = Pods("run", "", ("b", "o"), "queue", ("wandb", "other"), "reader", True, 2, 1.5, 5)


@pytest.mark.parametrize("pods", [Pods("run", "image"), FULL])
@pytest.mark.parametrize("slices", [1, 3])
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:16x16", "v5e:1x1", "v5p:4x4x4", "v6e:4x4", "tpu7x:4x4x4"])
def test_a_jobset_is_what_its_schema_asks_for(
    topology: str, slices: int, pods: Pods, schemas: dict[str, jsonschema.Draft7Validator]
) -> None:
    of = parse_topology(topology, slices)
    every = jobset.objects(pods, of, ["launch.train", *HOSTILE])
    for one in every:
        schemas[one["kind"]].validate(one)
    assert [*yaml.safe_load_all(jobset.text(every))] == every
    made = every[-1]
    assert [one["kind"] for one in every[:-1]] == (
        ["ResourceFlavor", "ClusterQueue", "LocalQueue"] if pods.queue else []
    )
    hosts = job(made)["parallelism"]
    assert hosts == job(made)["completions"]
    assert hosts * container(made)["resources"]["limits"]["google.com/tpu"] * slices == of.chips
    (replicated,) = made["spec"]["replicatedJobs"]
    assert replicated["replicas"] == slices


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "failurePolicy", "maxRestart"], 3),
        (["spec", "replicatedJobs", 0, "template", "spec", "template", "spec", "restartpolicy"], "Never"),
        (["spec", "replicatedJobs", 0, "replicas"], "3"),
        (["spec", "failurePolicy", "rules", 0, "action"], "Fail"),
        (["metadata", "labels", "heed-run"], 3),
    ],
)
def test_what_the_schema_does_not_allow_is_noticed(
    path: list[Any], value: Any, schemas: dict[str, jsonschema.Draft7Validator]
) -> None:
    made = json.loads(json.dumps(jobset.jobset(FULL, parse_topology("v5e:4x4"), ["launch.train"])))
    inside = made
    for name in path[:-1]:
        inside = inside[name]
    inside[path[-1]] = value
    assert not schemas["JobSet"].is_valid(made)


def test_a_queue_hands_out_the_slices_of_a_run(tmp_path: Path, schemas: dict[str, jsonschema.Draft7Validator]) -> None:
    """It leads from the JobSet's label to nodes that the pods take, and has chips for all of its slices."""
    flags = [*GKE, "--slices=2", "--queue=team", "--queue-slices=3", "--spot", "--max-hours=0.5"]
    text, done = written(tmp_path, *flags, *COMMAND)
    flavor, queue, door, made = yaml.safe_load_all(text)
    assert door["metadata"]["name"] == made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert door["spec"]["clusterQueue"] == queue["metadata"]["name"]
    (group,) = queue["spec"]["resourceGroups"]
    (of,) = group["flavors"]
    assert (of["name"], group["coveredResources"]) == (flavor["metadata"]["name"], ["google.com/tpu"])
    assert of["resources"] == [{"name": "google.com/tpu", "nominalQuota": 3 * 256}]
    assert flavor["spec"] == {"nodeLabels": pod(made)["nodeSelector"], "tolerations": pod(made)["tolerations"]}
    # Kueue adds up the hours of a run over its restarts; a job has its own for each.
    assert made["metadata"]["labels"]["kueue.x-k8s.io/max-exec-time-seconds"] == "1800"
    assert "resourceflavors --selector=heed-queue=team" in done.out
    assert "of each attempt" not in done.out
    assert "--max-hours=2 is of each attempt, 8 h at most" in written(tmp_path, *GKE, "--max-hours=2", *COMMAND)[1].out
    queue["spec"]["resourceGroups"][0]["flavor"] = []
    assert not schemas["ClusterQueue"].is_valid(queue)


def test_a_whole_manifest(tmp_path: Path) -> None:
    """Field by field: a slice that loses a pod begins again as a whole, a bug does not."""
    flags = [*GKE, "--slices=2", "--queue=team", "--secret=wandb", "--secret=hub", "--spot", "--max-hours=0.5"]
    text, done = written(tmp_path, *flags, "--service-account=reader", *COMMAND)
    made = yaml.safe_load(text)
    assert (made["apiVersion"], made["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert made["metadata"] == {
        "name": "llama",
        "labels": {
            "heed-run": "llama",
            "kueue.x-k8s.io/queue-name": "team",
            "kueue.x-k8s.io/max-exec-time-seconds": "1800",
        },
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    }
    policy = made["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy", "DeadlineExceeded"])
    assert (job(made)["backoffLimit"], job(made)["activeDeadlineSeconds"]) == (0, 1800)
    disrupted, failed = job(made)["podFailurePolicy"]["rules"]
    assert (disrupted["action"], disrupted["onPodConditions"][0]["type"]) == ("Count", "DisruptionTarget")
    assert failed["onExitCodes"]["operator"] == "NotIn"
    assert failed["onExitCodes"]["containerName"] == container(made)["name"]
    assert {75, 134, 137, 143} <= {*failed["onExitCodes"]["values"]}
    assert not {0, 1, 2} & {*failed["onExitCodes"]["values"]}
    assert job(made)["template"]["metadata"]["labels"]["heed-run"] == "llama"
    assert pod(made)["restartPolicy"] == "Never"
    assert pod(made)["serviceAccountName"] == "reader"
    assert pod(made)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod(made)["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert container(made)["envFrom"] == [{"secretRef": {"name": "wandb"}}, {"secretRef": {"name": "hub"}}]
    assert {8471, 8080, 8482} <= {port["containerPort"] for port in container(made)["ports"]}
    told = {one["name"]: one.get("value", one.get("valueFrom")) for one in container(made)["env"]}
    assert told == {
        "HEED_RUN": {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']"}},
        "HEED_ATTEMPT": {"fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"}},
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_COORDINATOR_ADDRESS": "llama-slice-0-0.llama",
        "MEGASCALE_SLICE_ID": {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/job-index']"}},
    }
    assert container(made)["command"] == ["python", "-m"]
    assert container(made)["args"] == COMMAND[1:]
    assert "kubectl apply --filename=" in done.out
    assert "kubectl delete jobsets --selector=heed-run=llama" in done.out
    assert "no --max-hours" not in done.out


def test_a_run_is_told_from_another_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another namespace or cluster, also at a later attempt; an earlier attempt of its own is gone."""
    env = container(yaml.safe_load(written(tmp_path, *GKE, *COMMAND)[0]))["env"]

    def lease(uid: str, attempt: str, store: Store) -> Lease:
        """Of a pod: JobSet gives it these, as labels and as annotations."""
        marks = {"jobset-name": "llama", "jobset-uid": uid, "restart-attempt": attempt, "job-index": "0"}
        for one in env:
            inside = re.fullmatch(
                r"metadata\.(labels|annotations)\['jobset\.sigs\.k8s\.io/(.+)'\]",
                one.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", ""),
            )
            monkeypatch.setenv(one["name"], marks[inside[2]] if inside else one["value"])
        return Lease(store, dataclasses.replace(this_owner(), machine=f"{uid} {attempt}"))

    store = Store()
    lease("a", "0", store).take()
    with pytest.raises(UserError, match="is in use by process"):
        lease("b", "1", store).take()
    later = lease("a", "1", store)
    later.take()
    later.release()
    assert not store.data


def expanded(word: str, variables: dict[str, str]) -> str:
    """As Kubernetes does: $(NAME) is a variable where there is one, and $$ is one $."""
    found = re.compile(r"\$(\$|\(([^)]*)\))")
    return found.sub(lambda one: "$" if one[1] == "$" else variables.get(one[2], one[0]), word)


def test_words_reach_the_pod_unchanged(tmp_path: Path) -> None:
    assert expanded("$(A) $(B) $$(A) $A", {"A": "1"}) == "1 $(B) $(A) $A"
    text, _ = written(tmp_path, *GKE, *COMMAND, *HOSTILE)
    variables = {"HOME": "secret", "touch pwned": "secret"}
    args = [expanded(word, variables) for word in container(yaml.safe_load(text))["args"]]
    assert args == [*COMMAND[1:], *HOSTILE]


def test_no_word_is_taken_for_a_number(tmp_path: Path) -> None:
    """Nor for a truth, a date or nothing, whatever a reader of YAML knows."""
    flat = ["1e3", "y", "no", "~", "0o7", "1_0", "1:30", "2001-01-01", "null", ".inf", "<<", "=", ""]
    text = jobset.text([jobset.jobset(Pods("on", "i", queue="1e3"), parse_topology("v5e:2x2"), flat)])
    assert re.findall(r"^ +- '(.*)'$", text.partition("args:")[2].partition("ports:")[0], re.MULTILINE) == flat
    assert "name: 'on'" in text
    assert "queue-name: '1e3'" in text


def test_words_reach_srun_unchanged_through_bash(tmp_path: Path) -> None:
    tool = tmp_path / "bin/srun"
    tool.parent.mkdir()
    tool.write_text(f"#!{sys.executable} -IS\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    tool.chmod(0o755)
    shape = ["--nodes=3", "--gpus-per-node=4", "--queue=gpu", "--max-hours=1.5"]
    text, done = written(tmp_path, *SLURM, *shape, *COMMAND, *HOSTILE)
    env = {"PATH": f"{tool.parent}:/usr/bin:/bin"}
    ran = subprocess.run(["bash", tmp_path / "out"], capture_output=True, text=True, env=env, cwd=tmp_path, check=True)
    *own, python, module = json.loads(ran.stdout)[: -len(COMMAND[1:] + HOSTILE)]
    assert json.loads(ran.stdout)[len(own) + 2 :] == [*COMMAND[1:], *HOSTILE]
    assert (python, module, ran.stderr) == (".venv/bin/python", "-m", "")
    assert "--kill-on-bad-exit=1" in own
    assert not (tmp_path / "pwned").exists()
    # sbatch reads what stands before the first command.
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text.partition("\nsrun")[0], re.MULTILINE))
    assert {"nodes": "3", "ntasks-per-node": "4", "gpus-per-node": "4"}.items() <= asked.items()
    assert {"job-name": "llama", "comment": "heed-run=llama", "partition": "gpu", "time": "90"}.items() <= asked.items()
    assert "sbatch " in done.out


def test_the_longest_name_is_that_of_a_pod_of_63(tmp_path: Path) -> None:
    of = parse_topology("v5e:16x16", 12)
    longest = 63 - len("-slice-11-63-abcde")
    assert jobset.jobset(Pods(longest * "a", "i"), of, [])["metadata"]["name"] == longest * "a"
    done = call(manifest.main, [*GKE, f"--name={'a' * (longest + 1)}", "--slices=12", "--out=x", *COMMAND])
    assert (done.status, f"has {longest + 1} characters, and may have {longest}" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([*GKE, "--topology="], ("--topology",)),
        ([*GKE, "--topology=v5f:4x4"], ("v5f", "the nearest is v5")),
        ([*GKE, "--topology=v5e:4x4x4"], ("2 sizes", "v5e:4x4")),
        ([*GKE, "--topology=H100:8"], ("H100:8", "--kind=slurm")),
        ([*GKE, "--slices=0"], ("--slices=0",)),
        ([*GKE, "--max-restarts=-1"], ("--max-restarts=-1",)),
        ([*GKE, "--max-hours=-1"], ("--max-hours=-1",)),
        ([*GKE, "--max-hours=nan"], ("--max-hours=nan",)),
        ([*GKE, "--bucket=gs://b"], ("--image=here/heed:1 and --bucket=gs://b", "give one")),
        ([*GKE, "--image="], ("neither --image nor --bucket",)),
        ([*GKE, "--image=a b"], ("--image='a b'",)),
        ([*GKE, "--name=Llama"], ("--name='Llama'", "small letters")),
        ([*GKE, "--name=a-"], ("--name='a-'",)),
        ([*GKE, "--name=a\nb"], ("--name='a\\nb'",)),
        ([*GKE, "--queue=A"], ("--queue='A'",)),
        ([*GKE, f"--queue={64 * 'a'}"], ("has 64 characters, and may have 63",)),
        ([*GKE, "--queue-slices=2"], ("--queue-slices=2 makes the queue --queue=NAME",)),
        ([*GKE, "--queue=a", "--slices=2", "--queue-slices=1"], ("of at least --slices=2",)),
        ([*GKE, "--queue=a", "--queue-slices=-1"], ("--queue-slices=-1",)),
        ([*SLURM, "--queue-slices=2"], ("--queue-slices=2 is of --kind=gke",)),
        ([*GKE, "--secret=K=t0ken"], ("--secret: the name of a Kubernetes secret",)),
        ([*GKE, "--nodes=2"], ("--nodes=2 is of --kind=slurm",)),
        ([*GKE, "--kind=k8s"], ("k8s",)),
        ([*SLURM, "--topology=tpu7x:4x4x4"], ("--kind=slurm is for GPUs", "tpu7x is served by --kind=gke")),
        ([*SLURM, "--topology=h100:8"], ("--nodes and --gpus-per-node",)),
        ([*SLURM, "--nodes=0"], ("--nodes=0",)),
        ([*SLURM, "--gpus-per-node=0"], ("--gpus-per-node=0",)),
        ([*SLURM, "--secret=wandb"], ("--secret", "sbatch")),
        ([*SLURM, "--image=i"], ("--image=i is of --kind=gke",)),
        ([*SLURM, "--queue=a b"], ("--queue='a b'",)),
        ([*SLURM, "--name=a\n#SBATCH"], ("--name=",)),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_in_a_sentence(
    argv: list[str], parts: tuple[str, ...], tmp_path: Path
) -> None:
    done = call(manifest.main, [*argv, f"--out={tmp_path}/out", *COMMAND])
    assert done.status == 2
    assert len(done.err.splitlines()) == 1
    assert all(part in done.err for part in parts), done.err
    assert "t0ken" not in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["launch.train", "--config=base", "--workdir=runs/x"], ("--workdir=runs/x", "gs://")),
        (["launch.train", "--config=base", "--workdir=gs://b/r", "--config.train.prompt=\udcff"], ("Unicode",)),
        (["launch.bench", "--config=base"], ("launch.bench", "launch.train")),
    ],
)
def test_a_command_that_pods_cannot_run_is_refused(words: list[str], parts: tuple[str, ...], tmp_path: Path) -> None:
    done = call(manifest.main, [*GKE, f"--out={tmp_path}/out", "--", *words])
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert all(part in done.err for part in parts), done.err
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    done = call(manifest.main, [*SLURM, f"--out={tmp_path}/none/out", *COMMAND])
    assert (done.status, "none/out cannot be written" in done.err) == (2, True)


def test_the_committed_tree_is_what_a_bucket_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    (tmp_path / "first").write_text("1")
    for words in (["init", "--quiet"], ["add", "first"], ["commit", "--quiet", "--message=one"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(tree, "ROOT", tmp_path)
    commit = tree.commit()
    flags = ["--kind=gke", "--name=llama", "--topology=v5e:2x4", "--bucket=gs://mine/trees"]
    text, done = written(tmp_path, *flags, *COMMAND)
    made = container(yaml.safe_load(text))
    assert made["image"] == "python:3.12"
    source = Path(unpack.__file__).read_text()
    assert made["command"] == ["python", "-c", source, "mine", f"trees/heed-{commit}.tar.gz"]
    assert f"gcloud storage cp {tmp_path}/heed-{commit}.tar.gz gs://mine/trees/heed-{commit}.tar.gz" in done.out
    with tarfile.open(tmp_path / f"heed-{commit}.tar.gz") as packed:
        packed.extractall(tmp_path / "there", filter="data")
    there = ["git", "-C", str(tmp_path / "there"), "rev-parse", "HEAD"]
    assert subprocess.run(there, capture_output=True, text=True, check=True).stdout.strip() == commit
    (tmp_path / "file").write_text("")
    subprocess.run([*git, "add", "file"], check=True)
    refused = call(manifest.main, [*flags, "--out=x", *COMMAND])
    assert (refused.status, "file differs from the commit" in refused.err) == (2, True)


@contextlib.contextmanager
def bucket(objects: dict[str, bytes]) -> Iterator[str]:
    """A stand-in for the metadata server and the storage service, which wants the former's token; its address."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, status = b"", 404
            if self.path.endswith("/default/token") and self.headers["Metadata-Flavor"] == "Google":
                body, status = b'{"access_token": "t0"}', 200
            elif self.headers["Authorization"] == "Bearer t0" and self.path in objects:
                body, status = objects[self.path], 200
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.rest
def test_a_stock_image_becomes_the_command(tmp_path: Path) -> None:
    """From a real archive: unpacked, installed (here of nothing), and its words as they were."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, text in {
            "requirements-build.txt": "",
            "requirements.txt": "",
            "launch/__init__.py": "",
            "launch/shown.py": "import ascii_of\n",
            "ascii_of.py": "import os, sys\nprint(os.path.basename(os.getcwd()), ascii(sys.argv[1:]))\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    source = Path(unpack.__file__).read_text()
    with bucket({"/storage/v1/b/mine/o/trees%2Fheed.tar.gz?alt=media": held.getvalue()}) as address:
        env = {**os.environ, "GCE_METADATA_HOST": address, "STORAGE_EMULATOR_HOST": f"http://{address}"}

        def ran(name: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", source, "mine", name, "launch.shown", *HOSTILE]
            return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

        done, missing = ran("trees/heed.tar.gz"), ran("trees/none.tar.gz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"heed {ascii(HOSTILE)}"
    assert (missing.returncode, "gs://mine/trees/none.tar.gz: 404" in missing.stderr) == (1, True)
    gone = ran("trees/heed.tar.gz")
    assert (gone.returncode, "cannot be read now" in gone.stderr) == (75, True)
