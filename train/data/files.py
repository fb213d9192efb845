"""Files that several processes may want at once: each is made once, whole or not at all, and without noise."""

import contextlib
import fcntl
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from model.errors import UserError
from train.run.files.disk import full_disk, make_folders
from train.run.files.json_files import set_aside

log = logging.getLogger("heed")


def make_folder(folder: Path) -> list[Path]:
    """Makes `folder` with its parents, and returns those that were not there, the innermost first.

    Raises:
        UserError: the folder cannot be made or written.
    """
    made, reason = list[Path](), "permission denied"
    try:
        made = make_folders(folder)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:  # the latter for characters that no name may hold
        writable, reason = False, getattr(error, "strerror", None) or str(error)
    if not writable:
        raise UserError(
            f"the data folder {folder} cannot be written ({reason}): choose another with --config.data.dir."
        )
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from printing and warning about what is normal here: data sets without a download or metadata."""
    tfds.disable_progress_bar()
    level = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(level)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, waiting for whoever holds it; the kernel frees it when its holder dies."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_once(target: Path, make: Callable[[Path], None], whole: Callable[[Path], bool]) -> Path:
    """Returns `target`, a file or a folder, which `make(path)` writes if it is not there yet, or not `whole`.

    It is written beside its place and renamed, under a lock: no process ever sees a half of it, and only one works.
    What a disk has cut or lost since is made anew.

    Raises:
        UserError: the disk is full.
    """
    if target.exists() and whole(target):
        return target
    with full_disk(target.parent, "--config.data.dir"), locked(target.with_name(target.name + ".lock")):
        if target.exists() and not whole(target):
            log.warning("%s was damaged, is kept as %s, and made anew.", target, set_aside(target).name)
        if not target.exists():
            partial = target.with_name(target.name + ".partial")
            _remove(partial)  # what a killed process left; ours alone under the lock
            make(partial)
            os.replace(partial, target)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
