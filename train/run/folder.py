"""A run's folder: one owner at a time, one config, and a passport that says what made it."""

import contextlib
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
from ml_collections import ConfigDict

from model.errors import UserError
from train.data import Tokenizer, load_tokenizer
from train.devices.together import check_shared, meet
from train.run.bucket.address import called, in_bucket
from train.run.bucket.run import RunInBucket
from train.run.files.disk import full_disk
from train.run.files.format import FORMAT, check_format
from train.run.files.json_files import dumps, loads
from train.run.files.learned import FREE, flatten, learned_changes
from train.run.files.lock import FolderLock
from train.run.files.mending import copies, mend
from train.run.files.naming import check_run_name

log = logging.getLogger("heed")

_PACKAGES = (
    "heed",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "numpy",
)


class RunFolder:
    """The folder of a run, made if need be, and locked until it is closed or the process dies.

    On several processes the first one owns the folder; the others write nothing. A run that is refused before its
    passport is written leaves nothing that was not there before. One that has saved nothing has learned nothing: the
    next one may learn something else in its place. Damaged files are mended (see `mending`).

    Raises:
        UserError: the folder cannot be named so, made or written, some hosts do not see it, another process uses it,
            or it holds a run of another format or whose config learns something else.
    """

    def __init__(self, path: str | Path, config: ConfigDict, extend: bool = False):
        self._owner = jax.process_index() == 0
        self._bucket = RunInBucket(str(path), self._owner) if in_bucket(path) else None
        self.path = self._bucket.folder if self._bucket else Path(path).absolute()
        self.name = called(self.path)
        check_run_name(self.path)
        self._lock = self._take() if self._owner else None
        try:
            if self._owner:
                self._prepare()
            meet("damaged files are mended")  # before anybody reads them
            if self._bucket and not self._owner:
                self._bucket.open()
            self._config = config.to_dict()
            self._check_config(extend)
            if not self._bucket:
                check_shared(self.path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The error that has ended a run is the one to tell.
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Gives the lock back, and the run in its bucket."""
        if self._lock is None:
            return
        try:
            if self._bucket:
                self._bucket.close()
        finally:
            self._lock.release(undo=not (self.path / "passport.json").exists())
            self._lock = None

    def publish(self) -> None:
        """Before a step is saved: copies the small files to the bucket in which the run lies, if it lies in one.

        Raises:
            UserError: another process has taken it, or it cannot be written.
        """
        if self._bucket:
            self._bucket.publish()

    def write_passport(self, values: Mapping[str, Any]) -> None:
        """Writes passport.json, what this start of the run was made of, and config.json, which may say another place.

        Raises:
            UserError: a run that has begun would go on with other text.
        """
        file = self.path / "passport.json"
        if self._has_begun() and file.is_file():
            before = loads(file.read_bytes())
            old, new = before["data"]["fingerprint"], values["data"]["fingerprint"]
            check_text(self.name, old, new)
            if before.get("evaluation") != values.get("evaluation"):
                log.warning(
                    "--config.train.evaluate_windows: scores are of %s, and were of %s: they do not compare, and"
                    " the best checkpoint is looked for anew.",
                    _windows(values),
                    _windows(before),
                )
        self.write("config.json", self._config)
        self.write("passport.json", values)

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the run has begun with, wherever its text lies now."""
        file = self.path / "tokenizer.json"
        return load_tokenizer(file) if self._has_begun() and file.is_file() else None

    def copies(self) -> dict[str, Any]:
        """The files that every checkpoint keeps a copy of; only the owner has them."""
        return copies(self.path) if self._owner else {}

    def _take(self) -> FolderLock:
        if not self._bucket:
            self._check_ours(".lock")
        return FolderLock(self.path)

    def _prepare(self) -> None:
        """What the first process does to the folder before any other looks at it."""
        if self._bucket:
            self._bucket.open()
            self._check_ours()
        if self._has_begun():
            check_format(self.path)
        mend(self.path, self._has_begun())
        self.publish()

    def _check_ours(self, *names: str) -> None:
        ours = any((self.path / name).exists() for name in ("passport.json", "checkpoints", *names))
        if (self.path / "config.json").exists() and not ours:
            raise UserError(f"--workdir={self.name} holds a config.json that heed did not write: give another folder.")

    def _check_config(self, extend: bool) -> None:
        file = self.path / "config.json"
        if file.is_file() and self._has_begun():
            changes = learned_changes(loads(file.read_bytes()), self._config)
            more_steps = changes.keys() == {"train.steps"} and changes["train.steps"][0] < changes["train.steps"][1]
            if changes and not (extend and more_steps):
                text = ", ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
                more = ", --extend for more train.steps," if more_steps else ""
                raise UserError(
                    f"--workdir={self.name} holds a run that learns something else ({text}): "
                    f"give its --config again{more} or another --workdir."
                )

    def _has_begun(self) -> bool:
        """Whether there is a checkpoint, be it broken; what Orbax has not finished has a dot in its name."""
        folder = self.path / "checkpoints"
        return folder.is_dir() and any("." not in path.name for path in folder.iterdir())

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes values as a JSON file of the folder, as `write_with`."""
        self.write_with(name, lambda path: path.write_text(dumps(values, indent=2) + "\n"))

    def write_with(self, name: str, save: Callable[[Path], object]) -> None:
        """Lets `save(path)` write a file of the folder, whole or not at all; only the owner does."""
        if not self._owner:
            return
        new = self.path / f".{name}.new"
        with full_disk(self.path):
            save(new)
            new.replace(self.path / name)


def check_text(run: str | Path, learned: str, found: str) -> None:
    """Compares the fingerprints of a run's data, then and now.

    Raises:
        UserError: they differ.
    """
    if learned != found:
        raise UserError(
            f"the text or its tokens changed since {run} began (fingerprint {learned[:12]} -> {found[:12]}), to which "
            "the names of its files belong, too: say where the same text lies now, under the same names, by "
            "--config.data.path, --config.data.name or --config.data.dir, or give another --workdir."
        )


def shared_keys(config: ConfigDict) -> str:
    """All keys but those that may differ from process to process, as one text."""
    return str({key: value for key, value in flatten(config).items() if key not in FREE})


def passport(config: ConfigDict, data: Mapping[str, Any], attention: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a run is made of: code, packages, devices, flags, data, seeds, and how attention is computed."""
    device = jax.devices()[0]
    return {
        "format": FORMAT,
        "command": sys.argv,
        "git": _git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
        "devices": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "processes": jax.process_count(),
        "cpus": os.cpu_count(),
        "flags": {
            name: value
            for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS")
            if (value := os.environ.get(name))
        },
        "data": {**data, "seed": config.data.seed},
        "seeds": [config.train.seed + i for i in range(config.train.seeds)],
        "attention": attention,
    }


def packages() -> dict[str, str]:
    """{name: version} of the packages by which a run's numbers are computed."""
    return {name: version for name in _PACKAGES if (version := _version(name))}


def _windows(passport: Mapping[str, Any]) -> str:
    measured = passport.get("evaluation")
    return f"{measured['windows']} of {measured['of']} rows" if measured else "unknown rows"


def _git_state() -> dict[str, Any] | None:
    """Commit of this code, and whether files differ from it; None where it is not a git checkout."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if commit is None else {"commit": commit, "changed": bool(changed)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
