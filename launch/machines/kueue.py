"""A queue of Kueue, which hands out a number of slices of TPUs to whoever asks by its name.

Field names: kueue.x-k8s.io/v1beta2.
"""

import math
from typing import Any

from launch.planning.chips import Slice

LIMIT = "kueue.x-k8s.io/max-exec-time-seconds"  # of a workload, over all times that it was let in
QUEUE = "kueue.x-k8s.io/queue-name"


def queue(name: str, of: Slice, slices: int, nodes: dict[str, Any]) -> list[dict[str, Any]]:
    """The three objects of a queue in the namespace `default`: where its chips are, how many, and its door.

    `nodes`: the `nodeSelector`, and the `tolerations` where there are any, of pods on such a slice.
    """

    def made(kind: str, spec: dict[str, Any], **more: str) -> dict[str, Any]:
        head = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind}
        return {**head, "metadata": {"name": name, "labels": {"heed-queue": name}, **more}, "spec": spec}

    quota = {"name": "google.com/tpu", "nominalQuota": math.prod(of.grid) * slices}
    group = {"coveredResources": [quota["name"]], "flavors": [{"name": name, "resources": [quota]}]}
    flavor = {"nodeLabels": nodes["nodeSelector"]} | {key: nodes[key] for key in ("tolerations",) if key in nodes}
    return [
        made("ResourceFlavor", flavor),
        made("ClusterQueue", {"namespaceSelector": {}, "resourceGroups": [group]}),
        made("LocalQueue", {"clusterQueue": name}, namespace="default"),
    ]
