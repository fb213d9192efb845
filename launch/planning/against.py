"""A run beside its plan: what it took and was to take; and the factor by which that corrects the model of time."""

import datetime
import math
import statistics
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import launch
from launch.planning.chips import Slice
from launch.planning.running import FREE
from model.errors import UserError
from train.devices.machine import cache_folder
from train.devices.mesh import AXES
from train.run.bucket.run import folder_of
from train.run.files import learned
from train.run.files.json_files import read_cache, read_lines, write
from train.run.files.mending import read_kept
from train.run.folder import packages

# What does not change a step's program, and where the text of its data lies.
_ANY = {
    *learned.FREE,
    "data.seed",
    "train.steps",
    "train.seed",
    "train.dropout_seed",
    *(f"train.{one}" for one in FREE),
}


def config_of(workdir: str) -> ConfigDict:
    """The config of a run.

    Raises:
        UserError: there is none.
    """
    return ConfigDict(learned.with_added(read_kept(_folder(workdir), "config.json")))


def measured(workdir: str, config: ConfigDict, where: Slice) -> dict[str, Any]:
    """What a run of this config took there: `run`, `date`, `device_kind`, `devices`, the `steps` that were timed, their
    median `tokens_per_second`, `peak_bytes`, None where the device does not tell it, and whether there were
    `uncommitted` changes.

    Raises:
        UserError: it ran on other devices, with another config or other code, or has no step that was timed.
    """
    flag, folder = f"--against={workdir}", _folder(workdir)
    passport, saved = (read_kept(folder, name) for name in ("passport.json", "config.json"))
    devices = passport["devices"]
    if (devices["platform"] == "cpu") != where.chip.shared or devices["count"] != where.devices:
        raise UserError(
            f"{flag} ran on {devices['count']} x {devices['kind']}, and --topology={where.topology} is another: plan "
            "for what it ran on."
        )
    old, new = (_meant(one, where.devices) for one in (learned.with_added(saved), config))
    for key in sorted(old.keys() | new.keys()):
        if key not in _ANY and old.get(key) != new.get(key):
            raise UserError(
                f"{flag} ran with {key}={old.get(key)!r}, and {new.get(key)!r} is planned: give --config.{key} of it."
            )
    if (there := passport["packages"].get("jax")) != (here := packages()["jax"]):
        raise UserError(f"{flag} ran with jax {there}, and {here} is here: plan with what it ran with.")
    git = passport["git"] or {}
    if (commit := git.get("commit", "")) and _differs(commit):
        raise UserError(
            f"{flag} ran with the code of {commit[:12]}, and model/ or train/ are others here: plan with that commit."
        )
    lines, _ = read_lines(folder / "metrics.jsonl")
    timed = [line for line in lines if line.get("train/tokens_per_second")]
    if not timed:
        raise UserError(f"{flag} holds no step that was timed: let it run beyond --config.train.log_every.")
    return {
        "run": workdir,
        "date": datetime.date.fromtimestamp((folder / "metrics.jsonl").stat().st_mtime).isoformat(),
        "device_kind": devices["kind"],
        "devices": devices["count"],
        "steps": timed[-1]["step"] - 1,
        "uncommitted": git.get("changed", False),
        "tokens_per_second": statistics.median(line["train/tokens_per_second"] for line in timed),
        "peak_bytes": max((line["train/peak_bytes"] for line in timed if "train/peak_bytes" in line), default=None),
    }


def learn(run: dict[str, Any], found: dict[str, Any], where: Slice) -> dict[str, Any]:
    """What a plan said, in its model of time as it was, beside what the run took; from now on the chip's factor is the
    ratio of both.

    Raises:
        UserError: it ran on another chip than the plan's, or the factor cannot be kept.
    """
    if run["device_kind"] != found["device_kind"]:
        raise UserError(
            f"--against={run['run']} ran on {run['device_kind']}, and --topology={where.topology} is of "
            f"{found['device_kind']}: plan for what it ran on."
        )
    seconds, model = found["tokens_per_step"] / run["tokens_per_second"], found["model"]
    factor = seconds / (model["seconds_per_step"] / model["factor"])
    file = _file(where)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, {"factor": factor, **run})
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}), where the chip's factor is kept.") from None
    return run | {
        "predicted_seconds": model["seconds_per_step"],
        "measured_seconds": seconds,
        "predicted_peak_bytes": found["peak_bytes"],
    }


def correction(where: Slice) -> dict[str, Any]:
    """The `factor` of a chip, by which the model of time is too fast, and the run that says so, `factor_origin`."""
    kept = read_cache(_file(where), _check)
    return {"factor": kept.pop("factor") if kept else 1.0, "factor_origin": kept}


def _file(where: Slice) -> Path:
    return cache_folder() / "factors" / f"{where.name}.json"


def _check(value: Any) -> None:
    if not isinstance(value, dict) or not {"factor", "run", "date", "steps", "device_kind"} <= value.keys():
        raise ValueError("it is no factor")
    if type(value["factor"]) not in (int, float) or not 0 < value["factor"] < math.inf:
        raise ValueError("the factor is none")


def _differs(commit: str) -> bool:
    """Whether what a step is made of is not here as a commit has it."""
    words = ["git", "-C", str(Path(launch.__path__[0]).parent), "diff", "--quiet", commit, "--", "model", "train"]
    return subprocess.run(words, capture_output=True, check=False).returncode != 0


def _folder(workdir: str) -> Path:
    folder = folder_of(workdir, "--against")
    if not (folder / "passport.json").is_file():
        raise UserError(f"--against={workdir} holds no passport.json: give the folder of a run.")
    return folder


def _meant(config: Mapping[str, Any] | ConfigDict, devices: int) -> dict[str, Any]:
    """Its keys, with what -1 is in a mesh of so many devices."""
    found = {key: [*value] if isinstance(value, tuple) else value for key, value in learned.flatten(config).items()}
    mesh: dict[str, Any] = {f"mesh.{axis}": found[f"mesh.{axis}"] for axis in AXES}
    rest = devices // math.prod(size for size in mesh.values() if size != -1)
    return found | {key: rest if size == -1 else size for key, size in mesh.items()}
