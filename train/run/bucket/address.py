"""Where a run in a bucket lies on this machine: the owner's mirror of its small files, and copies of those who read."""

import atexit
import functools
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from model.errors import UserError
from train.devices.machine import cache_folder

_SCHEME = "gs://"
MISSING = "what buckets need is not installed; run pip install -e '.[gcs]'"
_FORM = re.compile(r"gs://[a-z0-9][-_.a-z0-9]*(/[-\w.]+)+", re.ASCII)


def in_bucket(folder: str | Path, flag: str = "--workdir") -> bool:
    """Whether a folder is a bucket's; `flag` is what chose it.

    Raises:
        UserError: it is that of another store, or no address of a folder.
    """
    text = str(folder)
    if not re.match("[a-z0-9]+://", text):
        return False
    if not _FORM.fullmatch(text) or {".", ".."} & {*text.split("/")}:
        raise UserError(f"{flag}={text} is no folder: give one of this machine, or gs://BUCKET/FOLDER.")
    return True


def mirror_of(address: str, owned: bool) -> Path:
    """The local folder of gs://BUCKET/RUN: its owner's is the same at each start, a reader's ends with the process."""
    root = cache_folder() / "gs" if owned else _readers()
    return root.absolute() / address.removeprefix(_SCHEME)


def address_of(path: Path) -> str | None:
    """The address of what is mirrored at a path; None for what lies on this machine alone."""
    for root in (cache_folder() / "gs", _readers()):
        if path.is_relative_to(root.absolute()):
            return _SCHEME + path.relative_to(root.absolute()).as_posix()
    return None


def local_only(flag: str, folder: str | Path, verb: str) -> None:
    """Refuses a folder that is not on this machine, for a command that writes more than a run there.

    Raises:
        UserError: it is a bucket's, or another store's.
    """
    if "://" in str(folder):
        raise UserError(
            f"{flag}={folder}: launch.{verb} needs a folder of this machine; a bucket may hold single runs."
        )


def checkpoints_of(folder: Path) -> Path:
    """Where the checkpoints of a run lie whose folder this is: in it, or in the bucket itself."""
    return absolute(f"{address_of(folder) or folder}/checkpoints")


def absolute(folder: str | Path) -> Path:
    """A folder by its whole name; that of a bucket is an epath.Path, which has the same methods."""
    found: Path = bucket_path(str(folder)) if in_bucket(folder) else Path(folder).absolute()
    return found


def called(folder: Path) -> str:
    """What a user calls a run's folder."""
    return address_of(folder) or str(folder)


def bucket_path(address: str) -> Any:
    """The epath.Path of an address, by which Orbax reads and writes.

    Raises:
        UserError: the packages for it are missing.
    """
    try:
        import fsspec.config
        import gcsfs  # noqa: F401
        from etils import epath
    except ImportError as error:
        raise UserError(f"{address}: {MISSING}.") from error
    # Arrays are written past gcsfs, which would go on to list what it once saw.
    fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
    return epath.Path(address)


@functools.cache
def _readers() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="heed-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
