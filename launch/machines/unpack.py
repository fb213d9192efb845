"""What a pod on a stock Python image runs: fetches the committed tree from its bucket, installs what is locked there,
and becomes the command. Words: BUCKET OBJECT MODULE..."""

import json
import os
import subprocess
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPResponse
from typing import cast

AGAIN = 75  # the exit status after which the pods are started again


def opened(url: str, headers: dict[str, str]) -> HTTPResponse:
    """What is read there."""
    return cast(HTTPResponse, urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60))


def unpack(bucket: str, name: str) -> None:
    """Into ./heed, as the pod's service account."""
    metadata = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    own = f"http://{metadata}/computeMetadata/v1/instance/service-accounts/default/token"
    with opened(own, {"Metadata-Flavor": "Google"}) as answer:
        token = json.load(answer)["access_token"]
    storage = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")
    url = f"{storage}/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}?alt=media"
    with opened(url, {"Authorization": f"Bearer {token}"}) as answer, tarfile.open(fileobj=answer, mode="r|gz") as tree:
        tree.extractall("heed", filter="data")


if __name__ == "__main__":
    bucket, name, *words = sys.argv[1:]
    try:
        unpack(bucket, name)
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            sys.exit(AGAIN)
        sys.exit(f"gs://{bucket}/{name}: {error.code} {error.reason}: copy it there, or let the pods' account read it.")
    except (OSError, tarfile.ReadError) as error:
        print(f"gs://{bucket}/{name} cannot be read now ({error}).", file=sys.stderr)
        sys.exit(AGAIN)
    os.chdir("heed")
    for lock, *more in (["requirements-build.txt"], ["requirements.txt", "--no-build-isolation"]):
        pip = ["-m", "pip", "install", "--quiet", "--no-cache-dir", "--require-hashes", "--requirement", lock, *more]
        if subprocess.call([sys.executable, *pip]):
            sys.exit(AGAIN)
    os.execv(sys.executable, [sys.executable, "-m", *words])
