"""The objects of a bucket: the few requests that a run makes of the service, and its failures in one sentence each."""

import base64
import contextlib
import dataclasses
import datetime
import functools
from collections.abc import Iterator
from typing import Any, Protocol

from model.errors import Unanswered, UserError
from train.run.bucket.address import MISSING

_PATIENCE = 60  # seconds of trying again, where the network or the service fails for a moment


@dataclasses.dataclass(frozen=True)
class Stored:
    """What the service says of an object; `checksum` is its CRC-32C, and `updated` is by the service's own clock."""

    size: int
    checksum: int
    generation: int
    updated: datetime.datetime


class Refused(Exception):
    """An object is not of the generation that was asked for: somebody else has written or deleted it."""


class Objects(Protocol):
    """The objects below one folder of a bucket, by their names in it. `address` is that folder's."""

    address: str

    def listed(self, below: str = "") -> dict[str, Stored]:
        """All whose names begin so."""

    def read(self, name: str) -> tuple[bytes, Stored] | None:
        """One of them, if it is there; Refused if it is written meanwhile."""

    def write(self, name: str, data: bytes, generation: int | None = None) -> Stored:
        """Puts it there; `generation`: only in place of this one, 0 for none, else Refused."""

    def delete(self, name: str, generation: int | None = None) -> None:
        """Takes it away, if it is there; `generation`: only this one, else Refused."""


class GoogleObjects:
    """The objects of Google Cloud Storage, or of an emulator of it at STORAGE_EMULATOR_HOST.

    Raises:
        UserError: the packages or the credentials for it are missing; from its methods, that the bucket is missing,
            may not be used, or does not answer.
    """

    def __init__(self, address: str, flag: str = "--workdir"):
        self.address, self._called = address, f"{flag}={address}"
        name, _, self._folder = address.removeprefix("gs://").partition("/")
        try:
            from google.cloud import storage
        except ImportError as error:
            raise UserError(f"{self._called}: {MISSING}.") from error
        with self._telling():
            self._bucket = storage.Client(project="none").bucket(name)  # no request of ours is of a project

    def listed(self, below: str = "") -> dict[str, Stored]:
        """As `Objects`."""
        start = f"{self._folder}/"
        with self._telling():
            found = list(self._bucket.client.list_blobs(self._bucket, prefix=start + below, retry=_patient()))
        return {blob.name.removeprefix(start): _stored(blob) for blob in found if not blob.name.endswith("/")}

    def read(self, name: str) -> tuple[bytes, Stored] | None:
        """As `Objects`."""
        from google.api_core.exceptions import NotFound

        with self._telling():
            blob = self._bucket.get_blob(f"{self._folder}/{name}", retry=_patient())
            if blob is None:
                return None
            try:
                return blob.download_as_bytes(if_generation_match=blob.generation, retry=_patient()), _stored(blob)
            except NotFound as error:
                raise Refused(str(error)) from error

    def write(self, name: str, data: bytes, generation: int | None = None) -> Stored:
        """As `Objects`."""
        blob = self._bucket.blob(f"{self._folder}/{name}")
        with self._telling():
            blob.upload_from_string(
                data, "application/octet-stream", if_generation_match=generation, retry=_patient(), checksum="crc32c"
            )
        return _stored(blob)

    def delete(self, name: str, generation: int | None = None) -> None:
        """As `Objects`."""
        from google.api_core.exceptions import NotFound

        with self._telling(), contextlib.suppress(NotFound):
            blob = self._bucket.blob(f"{self._folder}/{name}")
            blob.delete(if_generation_match=generation, retry=_patient())

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        from google.api_core.exceptions import GoogleAPIError, PreconditionFailed
        from google.auth.exceptions import GoogleAuthError
        from requests import RequestException

        try:
            yield
        except PreconditionFailed as error:
            raise Refused(str(error)) from error
        except (GoogleAPIError, GoogleAuthError, RequestException) as error:
            raise _told(self._called, error) from error


def objects_of(address: str, flag: str = "--workdir") -> Objects:
    """The objects below gs://BUCKET/FOLDER, which a flag has chosen."""
    return GoogleObjects(address, flag)


def _told(called: str, error: Exception) -> UserError:
    from google.auth.exceptions import GoogleAuthError

    bucket, code, flag = called.split("/")[2], int(getattr(error, "code", None) or 0), called.partition("=")[0]
    if isinstance(error, GoogleAuthError) or code == 401:
        return UserError(
            f"{called}: this machine is not logged in ({_short(error)}): run gcloud auth application-default login, or"
            " give the machine a service account."
        )
    if code == 404:
        return UserError(f"{called}: there is no bucket {bucket}: make it, or give another {flag}.")
    if code == 403:
        return UserError(
            f"{called} cannot be used by this account ({_short(error)}): grant it roles/storage.objectUser and"
            f" roles/storage.legacyBucketReader on {bucket}, or give another {flag}."
        )
    return Unanswered(f"{called} does not answer ({_short(error)}): try again; what was saved before is intact.")


def _short(error: Exception) -> str:
    return str(getattr(error, "message", "") or error).splitlines()[0][:150].rstrip(". ")


@functools.cache
def _patient() -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(_PATIENCE)


def _stored(blob: Any) -> Stored:
    checksum = int.from_bytes(base64.b64decode(blob.crc32c), "big")
    return Stored(int(blob.size), checksum, int(blob.generation), blob.updated)


def checksum(data: bytes) -> int:
    """The CRC-32C by which the service compares."""
    import google_crc32c

    return int(google_crc32c.value(data))
