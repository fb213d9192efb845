"""A run in a bucket, for the process that begins it, for its other processes, and for commands that read it."""

from pathlib import Path

from train.run.bucket.address import address_of, in_bucket, mirror_of
from train.run.bucket.mirror import Mirror
from train.run.bucket.objects import objects_of
from train.run.bucket.owner import Lease, this_owner


class RunInBucket:
    """A run's folder at gs://BUCKET/RUN: its `owner` takes it and writes, all others read; `folder` is the mirror."""

    def __init__(self, address: str, owner: bool, flag: str = "--workdir"):
        self.folder = mirror_of(address, owner)
        objects = objects_of(address, flag)
        self._mirror = Mirror(objects, self.folder)
        self._lease = Lease(objects, this_owner()) if owner else None
        self._fetched = False

    def open(self) -> None:
        """Takes the run, as its owner, and fetches its small files.

        Raises:
            UserError: it has another owner, or the bucket cannot be used.
        """
        if self._lease is not None:
            self._lease.take()
        self._mirror.fetch()
        self._fetched = True

    def publish(self) -> None:
        """Copies the small files there, if this is still the owner.

        Raises:
            UserError: it is not, or the bucket cannot be written.
        """
        if self._lease is not None:
            self._lease.renew()
            self._mirror.push()

    def close(self) -> None:
        """Copies the last of them, and gives the run up; an owner that has lost it writes nothing."""
        if self._lease is None:
            return
        try:
            if self._fetched and not self._lease.lost:
                self.publish()
        finally:
            self._lease.release()


def folder_of(workdir: str | Path, flag: str = "--workdir") -> Path:
    """The folder in which a run's own files are read: for gs://..., a copy of them that ends with this process; `flag`
    is what chose it.

    Raises:
        UserError: the bucket cannot be read.
    """
    if not in_bucket(workdir, flag):
        return Path(workdir)
    run = RunInBucket(str(workdir), owner=False, flag=flag)
    run.open()
    return run.folder


def published(file: Path) -> str:
    """What a command has written into such a folder is copied to the bucket; returns how the file is called there.

    Raises:
        UserError: the bucket cannot be written.
    """
    address = address_of(file)
    if address is None:
        return str(file)
    objects_of(address.rpartition("/")[0]).write(file.name, file.read_bytes())
    return address
