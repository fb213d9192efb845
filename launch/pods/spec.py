"""What a queued resource is: as it is wanted, and as it is found."""

import dataclasses
import datetime
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.pods.gcloud import Tpus
from launch.pods.money import chips_of, cost

LABEL = "heed-run"
QUEUED, NODE = "queued-resources", "tpu-vm"
_OVER = {"FAILED", "SUSPENDING", "SUSPENDED", "PREEMPTED", "STOPPING", "STOPPED", "TERMINATED"}
_HAD_NODES = {"ACTIVE", "SUSPENDING", "SUSPENDED"}  # of a queued resource
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# How capacity is asked for, in the words of queued resources.
CAPACITY: dict[str, tuple[str, ...]] = {
    "on-demand": (),
    "spot": ("--spot",),
    "reserved": ("--reserved",),
    "flex-start": ("--provisioning-model=flex-start",),
}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A resource that is to be made.

    `started`: when the hours of one that it follows began, in seconds, or 0. `request`: which no other has.
    """

    name: str
    accelerator_type: str
    runtime: str
    slices: int
    capacity: str
    queued: bool
    max_hours: float
    max_wait_hours: float
    price: float | None
    account: str = ""
    started: float = 0.0
    request: str = dataclasses.field(default_factory=lambda: secrets.token_hex(4))

    def words(self, tpus: Tpus, script: Path) -> list[str]:
        """The words of gcloud that make it, with its startup script."""
        kept = {
            "heed-slices": self.slices,
            "heed-capacity": self.capacity,
            "heed-max-hours": self.max_hours,
            "heed-max-wait-hours": self.max_wait_hours,
            "heed-price": "unknown" if self.price is None else self.price,
            "heed-account": self.account,
            "heed-started": f"{self.started:.0f}" if self.started else "",
            "heed-request": self.request,
        }
        shared = [
            f"--accelerator-type={self.accelerator_type}",
            *CAPACITY[self.capacity],
            f"--labels={LABEL}={self.name}",
            f"--metadata={','.join(f'{key}={value}' for key, value in kept.items() if value != '')}",
            f"--metadata-from-file=startup-script={script}",
            f"--scopes={_SCOPE}",
            *([f"--service-account={self.account}"] if self.account else []),
        ]
        if not self.queued:  # waits, for its failure is told only to who does
            return tpus.words(NODE, "create", self.name, f"--version={self.runtime}", *shared)
        nodes = [f"--node-count={self.slices}", f"--node-prefix={self.name}"]
        flexible = self.capacity == "flex-start"
        shared += [f"--max-run-duration={_seconds(self.max_hours)}"] if flexible else []
        return tpus.words(
            QUEUED,
            "create",
            self.name,
            *(nodes if self.slices > 1 else [f"--node-id={self.name}"]),
            f"--runtime-version={self.runtime}",
            f"--valid-until-duration={_seconds(self.max_wait_hours)}",
            *shared,
            "--async",
            alpha=flexible,
        )


def _seconds(hours: float) -> str:
    return f"{max(1, round(hours * 3600))}s"


@dataclasses.dataclass(frozen=True)
class Found:
    """A resource as it is: its nodes by name (None: not there), and what their specification says."""

    name: str
    queued: Mapping[str, Any] | None
    nodes: Mapping[str, Mapping[str, Any] | None]

    @property
    def spec(self) -> Mapping[str, Any]:
        """What its nodes are made from."""
        if self.queued:
            return dict(self.queued["tpu"]["nodeSpec"][0]["node"])
        return next((node for node in self.nodes.values() if node), {})

    @property
    def zone(self) -> str:
        """Where it is."""
        return next((place(one)[0] for one in (self.queued, *self.nodes.values()) if one), "")

    @property
    def project(self) -> str:
        """Whose it is."""
        return next((str(one["name"]).split("/")[1] for one in (self.queued, *self.nodes.values()) if one), "")

    @property
    def ours(self) -> bool:
        """Whether it carries our label with its own name."""
        return bool(self.spec.get("labels", {}).get(LABEL) == self.name)

    @property
    def states(self) -> list[str]:
        """Those of the queued resource, where there is one, and of its nodes that are there."""
        queued = [self.queued.get("state", {}).get("state", "ASKED")] if self.queued else []
        return queued + [node.get("state", "ASKED") for node in self.nodes.values() if node]

    @property
    def ready(self) -> bool:
        """Whether all of its nodes can be used."""
        return all(node and node.get("state") == "READY" for node in self.nodes.values())

    @property
    def over(self) -> str:
        """Why it will never be used again, in words; empty while it may."""
        reason = ""
        if self.queued:
            error = self.queued.get("state", {}).get("failedData", {}).get("error", {})
            reason = f" ({error['message'].rstrip('.')})" if error.get("message") else ""
        return next((f"{state}{reason}" for state in self.states if state in _OVER), "")

    @property
    def started(self) -> float:
        """When the first of its nodes was made, or an earlier one that it follows, in seconds; 0 before that.

        Nodes that are gone take this with them: then the hours count from when they were asked for, which is earlier.
        """
        told = float(self.metadata.get("heed-started", 0))
        had = [self.queued] if self.queued and self.states[0] in _HAD_NODES else []
        times = [_time(one["createTime"]) for one in [*filter(None, self.nodes.values())] or had if "createTime" in one]
        return told or min(times, default=0.0)

    @property
    def metadata(self) -> Mapping[str, str]:
        """What we wrote there when we made it."""
        return dict(self.spec.get("metadata", {}))

    def again(self) -> Wanted:
        """What makes it once more, its hours counted from the first time."""
        told, price = self.metadata, self.metadata["heed-price"]
        return Wanted(
            self.name,
            self.spec["acceleratorType"],
            self.spec["runtimeVersion"],
            int(told["heed-slices"]),
            told["heed-capacity"],
            self.queued is not None,
            float(told["heed-max-hours"]),
            float(told["heed-max-wait-hours"]),
            None if price == "unknown" else float(price),
            told.get("heed-account", ""),
            self.started,
        )

    def row(self, now: float) -> tuple[str, ...]:
        """Name, zone, type, states, age, and cost so far, at most: it is counted from the making of the first node."""
        created = self.started
        hours = (now - created) / 3600 if created else 0.0
        price = self.metadata.get("heed-price", "unknown")
        chips = chips_of(self.spec.get("acceleratorType", "")) * max(1, len(self.nodes))
        spent = cost(chips, hours, None if price == "unknown" else float(price))
        kind = self.spec.get("acceleratorType", "?")
        state = "+".join(self.states) or "gone"
        return self.name, self.zone, f"{len(self.nodes)} x {kind}", state, f"{hours:.1f} h", spent


def place(told: Mapping[str, Any]) -> tuple[str, str]:
    """The zone and the name of what Google calls projects/PROJECT/locations/ZONE/KIND/NAME."""
    *_, zone, _, name = str(told["name"]).split("/")
    return zone, name


def _time(text: str) -> float:
    """A time of Google's, whose fractions may have nine digits, in seconds."""
    return datetime.datetime.fromisoformat(text[:19] + "+00:00").timestamp()
