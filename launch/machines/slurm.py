"""A script of SLURM, for GPUs: one process for each, and all end with the first that fails."""

import shlex
from collections.abc import Sequence

from launch.machines import names
from model.errors import UserError


def script(name: str, nodes: int, gpus: int, words: Sequence[str], *, queue: str = "", max_hours: float = 0) -> str:
    """What `sbatch` takes, for `python -m` with these words, on `nodes` whole nodes of `gpus` each.

    Raises:
        UserError: a name is none, or nothing is asked for.
    """
    names.check("--name", name, "label")
    for flag, count in (("--nodes", nodes), ("--gpus-per-node", gpus)):
        if count < 1:
            raise UserError(f"{flag}={count} must be at least 1.")
    # Not --gpus-per-task: jax takes for itself the GPU of its local rank, and so must see all of them.
    asked = {"job-name": name, "comment": f"heed-run={name}", "nodes": nodes, "ntasks-per-node": gpus,
             "gpus-per-node": gpus, "output": f"{name}-%j.log", "open-mode": "append"}  # fmt: skip
    if queue:
        asked["partition"] = names.check("--queue", queue, "partition")
    if max_hours:
        asked["time"] = max(1, round(60 * max_hours))  # minutes
    lines = [f"#SBATCH --{key}={value}" for key, value in asked.items()]
    command = shlex.join(["srun", "--kill-on-bad-exit=1", "--label", ".venv/bin/python", "-m", *words])
    return "\n".join(["#!/bin/bash", *lines, command, ""])
