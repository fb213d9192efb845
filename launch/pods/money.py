"""What is agreed to before anything is paid for: a plan that fits, hours, a price, and a typed yes."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from launch import cli
from launch.planning.chips import CHIPS, Slice, parse_topology
from launch.pods.gcloud import NotFound, ask
from model.errors import UserError
from train.run.command import command
from train.run.files.json_files import read_checked

_MAY_DELETE = {"roles/owner", "roles/editor", "roles/tpu.admin"}
_KEYS = {"topology", "fits"}
_OF_STEPS = {"peak_bytes", "hbm_bytes"}  # of the plan, or of each program of an ablation's


def planned(file: str, topology: str, slices: int) -> tuple[Slice, str]:
    """The slice that a plan's file says fits, and that in words; `topology` chooses where it has several.

    Raises:
        UserError: there is no such plan, or it does not fit.
    """
    asked = topology or "v5e:16x16"
    make = command("plan", "--config=FILE:VARIANT", f"--topology={asked}", "--json=plan.json")
    if not file:
        raise UserError(f"creating needs a plan's answer: {make}, then --plan=plan.json.")
    try:
        found = read_checked(Path(file), _check)
    except ValueError as error:
        raise UserError(f"--plan={file} is no plan ({error}): make one by {make}.") from error
    plans = found if isinstance(found, list) else [found]
    names = [f"{plan['topology']} x {plan.get('slices', 1)}" for plan in plans]
    wanted = f"{topology or plans[0]['topology']} x {slices}"
    if wanted not in names or not topology and len(plans) > 1:
        raise UserError(
            f"--plan={file} is of {', '.join(names)} slices, and {wanted} is asked for: choose by --topology and"
            f" --slices, or make a plan of it by {make}."
        )
    plan = plans[names.index(wanted)]
    parts = plan.get("programs", [plan])
    peaks, limit = [one["peak_bytes"] for one in parts], parts[0]["hbm_bytes"]
    peak = None if None in peaks else max(peaks)
    memory = f"{'more' if peak is None else f'{peak / 1e9:.2f}'} of {limit / 1e9:.2f} GB on each device"
    if any("effort" in one for one in parts):
        raise UserError(f"--plan={file} is of --effort=low, which is no final answer: make one without it, by {make}.")
    if plan["fits"] is not True:
        raise UserError(f"--plan={file} does not fit {wanted} ({memory}): change the config until launch.plan says so.")
    return parse_topology(plan["topology"], slices), f"by its plan it needs {memory}"


def _check(found: Any) -> None:
    for plan in found if isinstance(found, list) else [found]:
        if not isinstance(plan, dict):
            raise ValueError("it holds what is no object")
        steps = plan.get("programs") or [plan]
        for keys, of in ((_KEYS, plan), *((_OF_STEPS, one) for one in steps)):
            if missing := keys - of.keys():
                raise ValueError(f"it has no {min(missing)}")
    if not found:
        raise ValueError("it is empty")


def chips_of(accelerator_type: str) -> int:
    """The chips of a type such as v5litepod-256 or v5p-128; 0 of one that we do not know."""
    kind, _, count = accelerator_type.rpartition("-")
    for chip in CHIPS.values():
        if chip.kind == kind and count.isdecimal():
            return int(count) // (2 if chip.counts_cores else 1)
    return 0


def cost(chips: int, hours: float, price: float | None) -> str:
    """Chip-hours, and what they cost at USD a chip-hour, where that is known."""
    used = chips * hours
    return f"{used:.1f} chip-hours, {'price unknown' if price is None else f'{used * price:.2f} USD'}"


@dataclasses.dataclass(frozen=True)
class Bill:
    """What is asked for, before it is."""

    what: str
    fits: str
    chips: int
    max_hours: float
    max_wait_hours: float
    price: float | None
    queued: bool

    def __str__(self) -> str:
        wait = f"; a request that is not served within {self.max_wait_hours:g} h ends" if self.queued else ""
        lines = [f"{self.what}, {self.chips} chips, for at most {self.max_hours:g} h{wait}; {self.fits}."]
        lines.append(f"At most {cost(self.chips, self.max_hours, self.price)}.")
        if self.price is None:
            lines.append("Nobody said the price: look it up for this zone, and give --price=USD per chip-hour.")
        return "\n".join(lines)


def agree(question: str, otherwise: str) -> None:
    """Goes on when `yes` is typed; `otherwise` says what would stand for it.

    Raises:
        UserError: anything else was, or nothing.
    """
    cli.say(f"{question} Type yes: ", end="")
    if sys.stdin is None or sys.stdin.readline().strip() != "yes":
        raise UserError(f"nothing was created: that takes a typed yes{otherwise}.")


def timer_doubt(project: str, account: str) -> str:
    """Why the service account of the machines may not be able to delete them; empty where it can."""
    try:
        if not account:
            number = ask(["projects", "describe", project])["projectNumber"]
            account = f"{number}-compute@developer.gserviceaccount.com"
        bindings = ask(["projects", "get-iam-policy", project]).get("bindings", [])
    except NotFound as error:
        raise UserError(f"--project={project}: gcloud finds no such project.") from error
    except UserError as error:
        return f"whether the machines' account may delete them could not be asked ({str(error).rstrip('.')})"
    member = f"serviceAccount:{account}"
    # A role that holds under a condition may not hold when it is needed.
    roles = {one["role"] for one in bindings if member in one.get("members", ()) and not one.get("condition")}
    if roles & _MAY_DELETE:
        return ""
    add = f"gcloud projects add-iam-policy-binding {project} --member={member} --role=roles/tpu.admin"
    return f"the machines' account {account} has no role that lets it delete them ({add} gives it one)"
