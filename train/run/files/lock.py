"""A folder of one process at a time, made if need be, and taken back if nothing came of it."""

import errno
import fcntl
import os
from pathlib import Path

from model.errors import UserError
from train.run.bucket.address import called
from train.run.files.disk import NO_SPACE, make_folders, remove_empty


class FolderLock:
    """Holds `folder` for this process until it is released, or the process dies.

    The lock is the kernel's (a POSIX record lock): it cannot outlive its process, and forked loaders do not inherit it.

    Raises:
        UserError: the folder cannot be made or written, or another process holds it.
    """

    def __init__(self, folder: Path):
        self._folder, self._made, self._new = folder, list[Path](), False  # what was not there before
        found = None
        try:
            while found is None:
                found = self._take()
            os.ftruncate(found, 0)
            os.write(found, str(os.getpid()).encode())
        except OSError as error:
            self._file = found
            self.release(undo=found is not None)
            raise _refusal(folder, error) from error
        self._file = found

    def release(self, undo: bool) -> None:
        """Gives the folder back; `undo`: with what was made for it, but for what holds anything else."""
        if self._file is not None:
            if undo and self._new:
                (self._folder / ".lock").unlink()
            os.close(self._file)
            self._file = None
        remove_empty(self._made)

    def _take(self) -> int | None:
        """The lock's file; None if whoever held it has removed it meanwhile, so that it locks nothing."""
        name = self._folder / ".lock"
        self._made = make_folders(self._folder) or self._made
        self._new = not name.exists()
        file = None
        try:
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file), os.stat(name)):
                return file
        except FileNotFoundError:  # and perhaps the folder
            pass
        except OSError:
            if file is not None:
                os.close(file)
            raise
        if file is not None:
            os.close(file)
        return None


def _refusal(path: Path, error: OSError) -> UserError:
    """The sentence for a folder that cannot be used."""
    if (
        error.errno in (errno.EAGAIN, errno.EACCES)
        and (path / ".lock").is_file()
        and os.access(path / ".lock", os.W_OK)
    ):
        owner = (path / ".lock").read_text() or "unknown"
        return UserError(
            f"--workdir={called(path)} is in use by another process (number {owner}): wait for it, or give another"
            " folder."
        )
    if error.errno in NO_SPACE:
        return UserError(f"--workdir={path}: the disk is full: make room, or give a folder on another disk.")
    if files := [one for one in (path, *path.parents) if one.is_file()]:
        return UserError(f"--workdir={path}: {files[0]} is a file: give a folder.")
    return UserError(f"--workdir={path} cannot be written ({error.strerror}): give a folder that you may write.")
