"""The script that a machine runs at its first boot, before anything else, so that it cannot outlive its hours.

When they are over, it deletes the resource that the machine belongs to by name, as the machine's service account. A
shutdown would not do: what is stopped, or left in the queue, still costs or holds quota.
"""

# Python, for it is on every image, and its words cannot be split by a shell. It goes on in a process of its own, so
# that the boot does not wait for it; every host has one, so that none must live. A time is kept on the disk, so that a
# reboot does not give more; a machine that follows a preempted one is told by its metadata since when hours count.
_SCRIPT = """#!/usr/bin/python3
import json, os, sys, time, urllib.request

RESOURCE, HOURS = {resource!r}, {hours!r}
METADATA = os.environ.get("HEED_METADATA", "http://metadata.google.internal/computeMetadata/v1")
SERVICE = os.environ.get("HEED_SERVICE", "https://tpu.googleapis.com/v2")
KEPT = os.environ.get("HEED_KEPT", "/var/lib/heed-started")


def metadata(path):
    request = urllib.request.Request(METADATA + "/" + path, headers={{"Metadata-Flavor": "Google"}})
    return urllib.request.urlopen(request, timeout=30).read().decode()


def told():
    try:
        return [float(metadata("instance/attributes/heed-started"))]
    except (OSError, ValueError):
        return []


def delete():
    token = json.loads(metadata("instance/service-accounts/default/token"))["access_token"]
    url = SERVICE + "/projects/" + metadata("project/project-id") + "/" + RESOURCE
    request = urllib.request.Request(url, method="DELETE", headers={{"Authorization": "Bearer " + token}})
    urllib.request.urlopen(request, timeout=60).read()


try:
    with open(KEPT, "x") as file:
        file.write(repr(time.time()))
except FileExistsError:
    pass
try:
    started = [float(open(KEPT).read())]
except ValueError:
    started = [time.time()]
if os.fork():
    sys.exit(0)
os.setsid()
for number in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), number)
end = min(started + told()) + HOURS * 3600
while time.time() < end:
    time.sleep(max(0.0, min(60.0, end - time.time())))
while True:
    try:
        delete()
    except (OSError, ValueError, KeyError):
        pass
    time.sleep(60)
"""


def script(zone: str, name: str, queued: bool, hours: float) -> str:
    """The startup script of a queued resource, or of a node that was made without one."""
    what = f"queuedResources/{name}?force=true" if queued else f"nodes/{name}"
    return _SCRIPT.format(resource=f"locations/{zone}/{what}", hours=hours)
