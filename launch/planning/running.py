"""Asks the compiler in a process of its own, which Ctrl-C ends at once, and keeps what it said."""

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import launch
import model
import train
from launch.planning.chips import Slice
from model.errors import UserError
from train.devices.machine import cache_folder
from train.run.files.json_files import dumps, loads, read_cache, write

log = logging.getLogger("heed")
_APART = ("JAX_PLATFORMS", "JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR")
FREE = ("evaluate_every", "evaluate_windows", "log_every", "checkpoint_every", "keep_last", "keep_best", "prompt")


def planned(config: ConfigDict, where: Slice, seconds: float | None = None, effort: str = "default") -> dict[str, Any]:
    """The facts of a config on a slice (`compiled/facts.py`): kept ones, if they are of the same step, compiler and
    code, else new ones, asked for in so many seconds.

    At low effort the compiler takes half the time and less; what it says then is no final answer: `effort` is in it,
    and it is not kept.

    Raises:
        UserError: the config cannot be trained there, or the compiler is not installed here.
        subprocess.TimeoutExpired: the time is over.
    """
    found = _known(_job(config, where), seconds, {} if effort == "default" else {"effort": effort})
    return found | {"steps": config.train.steps}


def before(config: ConfigDict, where: Slice) -> dict[str, Any]:
    """What of these facts is known before anything is compiled, such as `placements`.

    Raises:
        UserError: as `planned`.
    """
    return _known(_job(config, where) | {"compile": False})


def _job(config: ConfigDict, where: Slice) -> dict[str, Any]:
    return {"config": config.to_dict(), "topology": where.topology, "slices": where.slices}


def _known(job: dict[str, Any], seconds: float | None = None, quick: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is kept of a job, or else what the compiler says, which is kept; of a quick one it is not."""
    file = cache_folder() / "plans" / f"{_key(job)}.json"
    kept: dict[str, Any] | None = read_cache(file, _check)
    if kept is None:
        kept = _compiled(job | (quick or {}), seconds)
        if not quick:
            _keep(file, kept)
    if "refused" in kept:
        raise UserError(kept["refused"])
    return kept


def _keep(file: Path, found: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, found)
    except OSError as error:
        log.warning("%s cannot be written (%s): this is compiled anew each time.", file, error.strerror)


def _compiled(job: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
    try:
        if not job["topology"].startswith("cpu:"):
            importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "the compiler for TPUs (libtpu, of jax[tpu]) is not installed here; it is for Linux on x86_64: make .venv."
        ) from None
    # Tied to this process, so that a signal which nobody hears here (SIGTERM, SIGKILL) ends it, too.
    words = [sys.executable, "-m", "launch.machines.tied", str(os.getpid()), "-m", "launch.planning.compiled.child"]
    child = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = child.communicate(dumps(job), timeout=seconds)
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode:
        raise RuntimeError(f"the compiler ended with status {child.returncode}:\n{errors[-3000:]}")
    found: dict[str, Any] = loads(out.splitlines()[-1])
    return found


def _key(job: dict[str, Any]) -> str:
    """The same only for the same step, of the same code, by the same compiler."""
    config = {name: dict(part) if isinstance(part, dict) else part for name, part in job["config"].items()}
    for name in FREE:
        config["train"].pop(name, None)
    found = hashlib.sha256(repr(sorted(_flat(job | {"config": config}))).encode())
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.update(f"{name} {importlib.metadata.version(name)}".encode())
    # What the compiler's process hears besides, and does not set itself.
    own = "XLA_FLAGS" if job["topology"].startswith("cpu:") else "LIBTPU_INIT_ARGS"
    heard = [name for name in os.environ if name == own or name.startswith("JAX_") and name not in _APART]
    found.update(repr([(name, os.environ[name]) for name in sorted(heard)]).encode())
    for room in (model.__path__[0], train.__path__[0], Path(launch.__path__[0]) / "planning"):
        for file in sorted(Path(room).rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:32]


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in _flat(one, f"{name}.{key}")]
    return [(name, repr(value))]


def _check(value: Any) -> None:
    if not isinstance(value, dict) or not value.keys() & {"hbm_bytes", "refused"}:
        raise ValueError("it is no plan")
