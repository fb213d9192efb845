"""A run on machines: started, and watched while we live."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import cli
from launch.pods import resources
from launch.pods.gcloud import Tpus
from launch.pods.remote import Machines
from launch.pods.spec import Found
from model.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """What is started: `words` after `python -m`, the packed code, and the names of secrets."""

    tpus: Tpus
    name: str
    words: Sequence[str]
    secrets: Sequence[str]
    archive: Path

    def begin(self, found: Found) -> Machines:
        """Starts it on all hosts of a resource."""
        machines = Machines.of(self.tpus, found)
        cli.say(f"{self.name}: code and packages go to {machines.hosts} hosts, which takes some minutes")
        machines.install(self.archive)
        machines.start(self.words, self.secrets)
        cli.say(f"{self.name}: the run belongs to its {machines.hosts} hosts now")
        return machines

    def watch(self, found: Found, machines: Machines | None, most: int, on_interrupt: Callable[[str], None]) -> int:
        """Waits for the run's end; what is preempted or rebooted begins again, at most `most` times; 0 if it went well.

        Raises:
            UserError: it is gone, lost once too often, or out of hours.
        """
        restarts = 0
        cli.say(f"{self.name}: watched; Ctrl-C ends that, and not the run")
        while True:
            time.sleep(resources.PAUSE_SECONDS)
            now = resources.look_on(self.tpus, self.name)
            if now is None:
                raise UserError(f"--name={self.name} is gone: somebody deleted it, or its --max-hours are over.")
            found = now if any(now.nodes.values()) else found  # what is preempted may no longer tell when it began
            reason, states = now.over or _lost(now, machines), list[str]()
            if not reason and machines and now.ready:
                states = machines.states()
                if len(states) < machines.hosts or "running" in states:
                    continue
                if all(state.startswith("ended") for state in states):
                    cli.say(f"{self.name}: {states[0]}")
                    return int(any(state != "ended with status 0" for state in states))
                reason = f"without its run, as after a reboot ({', '.join(sorted({*states}))})"
            if reason:
                restarts += 1
                self._check(found, restarts, most, reason)
                verb = "started" if states else "made"
                cli.say(f"{self.name}: {reason}; it is {verb} again, {restarts} of at most {most} times")
                if not states:
                    resources.delete(self.tpus, self.name)
                    resources.make(self.tpus, found.again(), on_interrupt)
                    now = resources.look_on(self.tpus, self.name)
                machines = self.begin(now) if now else None

    def _check(self, found: Found, restarts: int, most: int, reason: str) -> None:
        hours = float(found.metadata["heed-max-hours"])
        if restarts > most:
            raise UserError(
                f"--name={self.name} is {reason}, and --max-restarts={most} are used up: the same run again, or"
                " launch.pod delete."
            )
        if found.started and time.time() >= found.started + hours * 3600:
            raise UserError(
                f"--name={self.name} is {reason}, and its --max-hours={hours:g} are over: launch.pod delete."
            )


def _lost(now: Found, machines: Machines | None) -> str:
    """A node that was there and is not: a preempted one may vanish before anything says so."""
    if machines and now.queued and now.states[0] == "ACTIVE" and None in now.nodes.values():
        return "without a machine that it had"
    return ""


def started(run: Run, found: Found, watch: bool, most: int, on_interrupt: Callable[[str], None]) -> int:
    """Starts a run, and watches it where that is asked for."""
    if watch and not found.ours:
        raise UserError(f"--name={run.name} was not made by heed, and so it is not made again: leave --watch out.")
    machines = None if watch and found.over else run.begin(found)
    return run.watch(found, machines, most, on_interrupt) if watch and not run.tpus.dry else 0
