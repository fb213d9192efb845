"""The small files of a run in a bucket, and their mirror in a folder of this machine; checkpoints stay in the bucket.

A file that grows (metrics.jsonl, events of TensorBoard) lies there as numbered parts, so that none is written twice;
one that was put there whole, with a copied folder, becomes parts. Steps of checkpoints have only their notes in the
mirror, from which damaged files are mended.
"""

import collections
import contextlib
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.errors import UserError
from train.run.bucket.objects import Objects, Refused, Stored, checksum
from train.run.bucket.owner import NAME
from train.run.files.disk import full_disk
from train.run.files.step_files import COMMITTED, NOTES

_FOLDERS = ("tensorboard", "profile")  # of a run's folder, besides its checkpoints; no start of it reads them
_PART = re.compile(r"(.+)\.(\d{5})")
_THREADS, _TRIES = 16, 5


class Mirror:
    """The files of a run, here in `folder` and there in `objects`."""

    def __init__(self, objects: Objects, folder: Path):
        self.folder, self._objects = folder, objects
        self._there: dict[str, Stored] = {}
        self._parts: dict[str, list[Stored]] = collections.defaultdict(list)
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Makes the folder what the bucket holds; what only the folder holds of a run is deleted.

        Raises:
            UserError: the bucket cannot be read, or the disk is full.
        """
        listed = sorted(self._objects.listed().items())
        found = {name: one for name, one in listed if name != NAME and not name.startswith(".")}
        for name, one in found.items():
            if part := _PART.fullmatch(name):
                self._parts[part[1]].append(one)
            else:
                self._there[name] = one
        steps = [name.split("/")[1] for name in found if re.fullmatch(rf"checkpoints/\d+/{COMMITTED}", name)]
        notes = {f"checkpoints/{step}/{NOTES}" for step in steps}
        # Parts are written after what was there whole, and hold all of it.
        wanted = [name for name in found if ("/" not in name and name not in self._parts) or name in notes]
        with full_disk(self.folder), ThreadPoolExecutor(_THREADS) as pool:
            self._clear()
            for step in steps:
                (self.folder / "checkpoints" / step).mkdir(parents=True, exist_ok=True)
            for name, data in zip(wanted, pool.map(self._read, wanted), strict=True):
                part = _PART.fullmatch(name)
                file = self.folder / (part[1] if part else name)
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("ab" if part else "wb") as opened:
                    opened.write(data)

    def push(self) -> None:
        """Copies to the bucket what is new in the folder, or changed.

        Raises:
            UserError: the bucket cannot be written.
        """
        for file in self._files():
            name, stat = file.relative_to(self.folder).as_posix(), file.stat()
            now = stat.st_mtime_ns, stat.st_size
            if self._sent.get(name) == now:
                continue
            data = file.read_bytes()
            if name == "metrics.jsonl" or name.startswith("tensorboard/"):
                self._push_parts(name, data)
            elif name not in self._there or self._there[name].checksum != checksum(data):
                self._there[name] = self._objects.write(name, data)
            self._sent[name] = now

    def _push_parts(self, name: str, data: bytes) -> None:
        """Writes what comes after the parts that are there; those of lines that were dropped are deleted.

        No line that is kept is ever away: a part that differs is replaced, and only then the whole object deleted.
        """
        parts, good, at = self._parts[name], 0, 0
        for part in parts:
            piece = data[at : at + part.size]
            if (len(piece), checksum(piece)) != (part.size, part.checksum):
                break
            good, at = good + 1, at + part.size
        rest = data[at:]
        for number in range(len(parts), good + bool(rest), -1):
            self._objects.delete(_part(name, number))
            parts.pop()
        if rest:
            parts[good:] = [self._objects.write(_part(name, good + 1), rest)]
        if name in self._there:
            self._objects.delete(name)
            del self._there[name]

    def _read(self, name: str) -> bytes:
        for _ in range(_TRIES):
            with contextlib.suppress(Refused):
                found = self._objects.read(name)
                return b"" if found is None else found[0]
        raise UserError(f"{self._objects.address}/{name} changes while it is read: try again.")

    def _files(self) -> Iterator[Path]:
        for file in sorted(self.folder.iterdir()):
            if file.is_file() and not file.name.startswith("."):
                yield file
        for folder in _FOLDERS:
            yield from (file for file in sorted((self.folder / folder).rglob("*")) if file.is_file())

    def _clear(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for file in list(self._files()):
            file.unlink()
        for folder in ("checkpoints", *_FOLDERS):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self.folder / folder)


def _part(name: str, number: int) -> str:
    return f"{name}.{number:05}"
