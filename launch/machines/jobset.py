"""A JobSet of GKE: a job for each slice of TPUs, a pod for each of its virtual machines, all restarted as one.

Field names: jobset.x-k8s.io/v1alpha2 and batch/v1; values: Google Cloud's pages of TPUs in GKE, and those of JobSet.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from launch.hosts.watch import AGAIN
from launch.machines import kueue, names
from launch.planning.chips import Slice
from model.errors import UserError

# After these the same command may do: a lost rank, or a run that was told to stop; Ctrl-C before its first step; an
# abort of jax; SIGKILL; SIGTERM. All others are bugs.
RESTARTABLE = (AGAIN, 130, 134, 137, 143)
STOCK = "python:3.12"  # has git, by which a passport names the commit
_JOB = "slice"
# libtpu's own, its traffic between slices, its metrics, and jax's coordinator.
_PORTS = {"tpu": 8471, "slices": 8080, "metrics": 8431, "coordinator": 8482}


@dataclasses.dataclass(frozen=True)
class Pods:
    """What the pods are, besides their slice: `tree` is (bucket, object) of the code, or None where the image has it.

    secrets: names of Kubernetes secrets, whose entries become variables. max_hours: of one attempt, in a queue of all
    together; 0: no limit. queue_slices: of a queue that is made beside it; 0: it is there already.
    """

    name: str
    image: str = ""
    tree: tuple[str, str] | None = None
    queue: str = ""
    secrets: tuple[str, ...] = ()
    service_account: str = ""
    spot: bool = False
    max_restarts: int = 3
    max_hours: float = 0
    queue_slices: int = 0


def jobset(pods: Pods, of: Slice, words: Sequence[str]) -> dict[str, Any]:
    """The manifest for `python -m` with these words.

    Raises:
        UserError: a name is none or too long, or a word is no Unicode.
    """
    _check(pods, of, words)
    ours = {"heed-run": pods.name}
    job: dict[str, Any] = {
        "parallelism": of.hosts,
        "completions": of.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod alone cannot begin again
        "podFailurePolicy": {
            "rules": [
                {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "heed", "operator": "NotIn", "values": list(RESTARTABLE)},
                },
            ]
        },
        "template": {"metadata": {"labels": ours}, "spec": _pod(pods, of, words)},
    }
    labels = ours | ({kueue.QUEUE: pods.queue} if pods.queue else {})
    if pods.max_hours:
        job["activeDeadlineSeconds"] = round(3600 * pods.max_hours)
        labels |= {kueue.LIMIT: str(job["activeDeadlineSeconds"])} if pods.queue else {}
    ends = {"name": "bugs", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": pods.name,
            "labels": labels,
            # Each job has a node pool, which is a slice, for itself.
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": pods.max_restarts, "rules": [ends]},
            "replicatedJobs": [
                {"name": _JOB, "replicas": of.slices, "template": {"metadata": {"labels": ours}, "spec": job}}
            ],
        },
    }


def objects(pods: Pods, of: Slice, words: Sequence[str]) -> list[dict[str, Any]]:
    """All that is written: the queue, where one is to be made, and the JobSet; raises as `jobset`."""
    made = jobset(pods, of, words)
    return [*(kueue.queue(pods.queue, of, pods.queue_slices, _nodes(pods, of)) if pods.queue_slices else ()), made]


def text(manifests: Sequence[dict[str, Any]]) -> str:
    """As YAML, one after the other; words are quoted, for readers differ on whether 1e3, y or 0o7 is one."""
    return yaml.dump_all(map(_quoted, manifests), Dumper=_Dumper, sort_keys=False, width=110)


def _check(pods: Pods, of: Slice, words: Sequence[str]) -> None:
    # The longest name of a pod: NAME-slice-SLICE-HOST-xxxxx, of at most 63.
    longest = 63 - len(f"-{_JOB}-{of.slices - 1}-{of.hosts - 1}-xxxxx")
    names.check("--name", pods.name, "label", longest)
    if pods.queue:
        names.check("--queue", pods.queue, "object", 63)  # it stands in labels
    if pods.service_account:
        names.check("--service-account", pods.service_account, "object")
    for secret in pods.secrets:
        if not names.fits(secret, "object"):  # and is not told, for it may be the secret itself
            raise UserError("--secret: the name of a Kubernetes secret is needed, and not what it holds.")
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{word!r}: words for GKE must be Unicode; give this one another form.") from error


def _pod(pods: Pods, of: Slice, words: Sequence[str]) -> dict[str, Any]:
    command = ["python", "-m"]
    if pods.tree is not None:
        command = ["python", "-c", Path(__file__).with_name("unpack.py").read_text(), *pods.tree]
    container: dict[str, Any] = {
        "name": "heed",
        "image": pods.image or STOCK,
        "command": list(map(_literal, command)),
        "args": list(map(_literal, words)),
        "ports": [{"name": name, "containerPort": port} for name, port in _PORTS.items()],
        "env": _variables(pods, of),
        "envFrom": [{"secretRef": {"name": secret}} for secret in pods.secrets],
        "resources": {"limits": {"google.com/tpu": math.prod(of.grid) // of.hosts}},
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # JobSet would set OnFailure
        **_nodes(pods, of),
        "containers": [{name: value for name, value in container.items() if value != []}],
    }
    if pods.service_account:
        spec["serviceAccountName"] = pods.service_account
    return spec


def _nodes(pods: Pods, of: Slice) -> dict[str, Any]:
    """Which nodes may be taken."""
    selector = {
        "cloud.google.com/gke-tpu-accelerator": of.chip.gke,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, of.grid)),
    }
    if not pods.spot:
        return {"nodeSelector": selector}
    spot = "cloud.google.com/gke-spot"
    taken = {"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    return {"nodeSelector": selector | {spot: "true"}, "tolerations": [taken]}


def _variables(pods: Pods, of: Slice) -> list[dict[str, Any]]:
    """What GKE does not tell: which slice this is, who a host alone is, which run, and which attempt of it."""
    alone = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"} if of.hosts == 1 else {}
    if of.slices > 1:
        first = f"{pods.name}-{_JOB}-0-0.{pods.name}"  # HOST.SUBDOMAIN of the first pod, as JobSet names them
        alone |= {"MEGASCALE_NUM_SLICES": str(of.slices), "MEGASCALE_COORDINATOR_ADDRESS": first}
    told: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in alone.items()]
    # A name is one namespace's of one cluster; the uid, which JobSet tells since 0.9, is that of all attempts alone.
    paths = {
        "HEED_RUN": "metadata.labels['jobset.sigs.k8s.io/jobset-uid']",
        "HEED_ATTEMPT": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']",
    }
    if of.slices > 1:
        paths["MEGASCALE_SLICE_ID"] = "metadata.labels['jobset.sigs.k8s.io/job-index']"
    return told + [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in paths.items()]


def _literal(word: str) -> str:
    """Kubernetes puts a variable for $(NAME), and so a secret's entry, and one $ for two."""
    return word.replace("$", "$$")


class _Quoted(str):
    pass


def _quoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _quoted(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return list(map(_quoted, value))
    return _Quoted(value) if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    pass


def _represented(dumper: yaml.SafeDumper, word: _Quoted) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(word), style="|" if word.count("\n") > 1 else "'")


_Dumper.add_representer(_Quoted, _represented)
