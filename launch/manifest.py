"""Writes what starts a command elsewhere, and says which commands hand it over; starts and creates nothing itself.

.venv/bin/python -m launch.manifest --kind=gke --name=llama --topology=v5e:16x16 --bucket=gs://mine --out=llama.yaml \\
  -- launch.train --config=configs/gpt.py:llama_8b --workdir=gs://mine/llama
.venv/bin/python -m launch.manifest --kind=slurm --name=llama --nodes=4 --out=llama.sh \\
  -- launch.train --config=configs/gpt.py:llama_8b --workdir=runs/llama

gke: a JobSet on TPUs, restarted as a whole when a host is lost. slurm: a script for GPUs, one process for each.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import cli
from launch.machines import jobset, names, slurm, tree, words
from launch.planning.chips import Slice, parse_topology
from model.errors import UserError

# Flags that are of one kind alone, with what they are where they are not given.
_OF: dict[str, dict[str, Any]] = {
    "gke": {"topology": "", "slices": 1, "image": "", "bucket": "", "service_account": "", "spot": False,
            "secret": [], "max_restarts": 3, "queue_slices": 0},
    "slurm": {"nodes": 1, "gpus_per_node": 8},
}  # fmt: skip
_GPUS = ("a100", "b200", "gb200", "gb300", "h100", "h200", "l4", "v100")


def parser() -> cli.Parser:
    """The flags of this command, which stand before `--`."""
    made = cli.make_parser("manifest", __doc__ or "", config=False, workdir=False)
    made.add_argument("--kind", required=True, choices=sorted(_OF), help="gke: TPUs; slurm: GPUs")
    made.add_argument("--name", required=True, help="of the run there, which carries the label heed-run=NAME")
    made.add_argument("--out", required=True, metavar="FILE", help="what is written: YAML or a script")
    made.add_argument("--queue", default="", help="gke: the LocalQueue of Kueue; slurm: the partition")
    made.add_argument("--max-hours", type=float, default=0, help="of all attempts; gke without --queue: of each")
    gke = made.add_argument_group("--kind=gke")
    gke.add_argument("--topology", default="", help="of one slice, such as v5e:16x16")
    gke.add_argument("--slices", type=int, default=1)
    gke.add_argument("--image", default="", help="one that holds heed in its working folder, and its packages")
    gke.add_argument("--bucket", default="", help=f"in place of an image: {jobset.STOCK}, and the committed tree here")
    gke.add_argument("--service-account", default="", help="of Kubernetes, which may read the bucket")
    gke.add_argument(
        "--secret", action="append", default=[], help="name of a Kubernetes secret of variables; may repeat"
    )
    gke.add_argument("--spot", action="store_true", help="on machines that may be taken away")
    gke.add_argument("--max-restarts", type=int, default=3)
    gke.add_argument("--queue-slices", type=int, default=0, help="make the queue, too, for so many slices of this kind")
    gpus = made.add_argument_group("--kind=slurm")
    gpus.add_argument("--nodes", type=int, default=1)
    gpus.add_argument("--gpus-per-node", type=int, default=8, help="all that a node has")
    return made


def main(argv: Sequence[str]) -> None:
    """Writes the file."""
    flags, after, inner = words.split(parser(), argv)
    for name, default in ((name, default) for kind in _OF if kind != flags.kind for name, default in _OF[kind].items()):
        if getattr(flags, name) != default:
            raise UserError(_other(flags, name))
    if not 0 <= flags.max_hours < float("inf"):
        raise UserError(f"--max-hours={flags.max_hours:g} must be a number of hours; 0 is no limit.")
    archive = None
    if flags.kind == "slurm":
        shape = flags.nodes, flags.gpus_per_node
        text = slurm.script(flags.name, *shape, after, queue=flags.queue, max_hours=flags.max_hours)
        own = f"--me --name={flags.name}"
        next_ = [f"sbatch {shlex.quote(flags.out)}", f"squeue {own}", f"scancel {own}"]
    else:
        text, next_, archive = _gke(flags, after, inner)
    try:
        Path(flags.out).write_text(text, errors="surrogateescape")
        if archive is not None:
            tree.pack(archive, dirty=False)
    except OSError as error:
        raise UserError(f"--out={flags.out} cannot be written ({error.strerror}): give another file.") from error
    print(f"written: {flags.out}; nothing is started yet. In this order it is handed over, watched and ended:")
    print("\n".join(f"  {line}" for line in next_))
    if not flags.max_hours:
        print("no --max-hours: it costs until its own end")
    elif flags.kind == "gke" and not flags.queue:
        most = flags.max_hours * (1 + flags.max_restarts)
        print(f"--max-hours={flags.max_hours:g} is of each attempt, {most:g} h at most; with --queue it is of all")


def _gke(
    flags: argparse.Namespace, after: Sequence[str], inner: argparse.Namespace
) -> tuple[str, list[str], Path | None]:
    """The manifest, the commands for it, and where the tree is to be packed for them."""
    of, workdir = _slice(flags), getattr(inner, "workdir", None)
    if workdir is not None and not workdir.startswith("gs://"):
        raise UserError(f"--workdir={workdir}: a pod's disk goes with it; give a folder of a bucket, gs://BUCKET/RUN.")
    if bool(flags.image) == bool(flags.bucket):
        given = f"--image={flags.image} and --bucket={flags.bucket}" if flags.image else "neither --image nor --bucket"
        raise UserError(f"{given}: give one, an image that holds heed or a bucket for the committed tree.")
    before, place, archive = list[str](), None, None
    if flags.image:
        names.check("--image", flags.image, "image")
    else:
        bucket, _, folder = names.check("--bucket", flags.bucket, "bucket").removeprefix("gs://").partition("/")
        archive = Path(flags.out).with_name(f"heed-{tree.commit()}.tar.gz")
        place = bucket, f"{folder}/{archive.name}" if folder else archive.name
        before = [f"gcloud storage cp {shlex.quote(str(archive))} gs://{'/'.join(place)}"]
    pods = jobset.Pods(
        flags.name, flags.image, place, flags.queue, tuple(flags.secret), flags.service_account, flags.spot,
        flags.max_restarts, flags.max_hours, flags.queue_slices,
    )  # fmt: skip
    text = jobset.text(jobset.objects(pods, of, after))
    ours = f"--selector=heed-run={flags.name}"
    commands = [
        *before,
        f"kubectl apply --filename={shlex.quote(flags.out)}",
        f"kubectl get jobsets,pods {ours}",
        f"kubectl logs --follow --prefix --tail=-1 --max-log-requests={of.hosts * of.slices} {ours}",
        f"kubectl delete jobsets {ours}",
    ]
    if flags.queue_slices:
        commands.append(f"kubectl delete localqueues,clusterqueues,resourceflavors --selector=heed-queue={flags.queue}")
    return text, commands, archive


def _slice(flags: argparse.Namespace) -> Slice:
    if not flags.topology:
        raise UserError("--kind=gke lacks its chips: give --topology, such as --topology=v5e:16x16.")
    if flags.topology.lower().startswith(_GPUS):
        raise UserError(f"--topology={flags.topology}: --kind=gke serves TPUs; for GPUs take --kind=slurm --nodes=N.")
    if flags.max_restarts < 0:
        raise UserError(f"--max-restarts={flags.max_restarts} must be at least 0.")
    if flags.queue_slices and (not flags.queue or flags.queue_slices < flags.slices):
        raise UserError(
            f"--queue-slices={flags.queue_slices} makes the queue --queue=NAME, of at least --slices={flags.slices}."
        )
    return parse_topology(flags.topology, flags.slices)


def _other(flags: argparse.Namespace, name: str) -> str:
    """Why a flag is of the other kind."""
    flag, value = f"--{name.replace('_', '-')}", getattr(flags, name)
    if name == "topology":
        chip = value if value.lower().startswith(_GPUS) else parse_topology(value).name
        fix = "give --nodes and --gpus-per-node" if chip == value else f"{chip} is served by --kind=gke"
        return f"--topology={value}: --kind=slurm is for GPUs; {fix}."
    if name == "secret":
        return "--secret: SLURM hands on the variables of whoever calls sbatch; export them there instead."
    (kind,) = (kind for kind in _OF if name in _OF[kind])
    return f"{flag}={value} is of --kind={kind}, and not of --kind={flags.kind}; leave it out."


if __name__ == "__main__":
    cli.run(main)
