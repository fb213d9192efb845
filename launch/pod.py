"""A run on TPU machines of Google Cloud, through `gcloud`: made, started, found again, and deleted.

    .venv/bin/python -m launch.pod create --name=try --zone=us-west4-a --plan=plan.json --max-hours=8 --price=1.2
    .venv/bin/python -m launch.pod run --name=try --zone=us-west4-a -- launch.train --config=configs/gpt.py:gpt2 ...
    .venv/bin/python -m launch.pod logs --name=try --zone=us-west4-a
    .venv/bin/python -m launch.pod fetch --name=try --zone=us-west4-a --workdir=runs/try
    .venv/bin/python -m launch.pod delete --name=try --zone=us-west4-a

Creating asks first, and what it makes deletes itself after --max-hours. `status` and `list` tell what is there, how old
it is, and what it has cost; `run` belongs to the machines: this one may be closed. --dry-run shows what would change.
"""

import argparse
import math
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import cli
from launch.machines import names, tree
from launch.machines.words import checked, parser_of
from launch.pods import money, resources, running, spec
from launch.pods.gcloud import Tpus
from launch.pods.remote import Machines
from launch.pods.spec import Found, Wanted
from model.errors import UserError
from train.run.command import command

_EVERY = "-"  # gcloud's word for all zones
_NAMED = "create run status logs fetch delete"
_ALL = f"{_NAMED} list"
# Each flag: the actions that take it, and how.
_FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--name": (_NAMED, {"required": True, "help": "of the resource, and of its run"}),
    "--zone": (_NAMED, {"required": True, "help": "such as us-west4-a"}),
    "--project": (_ALL, {"default": "", "help": "gcloud's own where it is not given"}),
    "--plan": ("create", {"default": "", "help": "the answer of launch.plan --json, which must say that it fits"}),
    "--topology": ("create", {"default": "", "help": "such as v5e:16x16; needed where the plan has several"}),
    "--slices": ("create", {"type": int, "default": 1, "help": "how many of them"}),
    "--capacity": (
        "create",
        {"choices": list(spec.CAPACITY), "default": "on-demand", "help": "how it is asked for"},
    ),
    "--direct": ("create", {"action": "store_true", "help": "a machine at once or not at all, without a queue"}),
    "--service_account": ("create", {"default": "", "help": "that the machines are; Compute Engine's where not given"}),
    "--max_hours": ("create", {"type": float, "required": True, "help": "after which it deletes itself"}),
    "--max_wait_hours": ("create", {"type": float, "default": 12.0, "help": "after which a request ends, unserved"}),
    "--price": ("create", {"type": float, "default": None, "help": "USD per chip-hour, as you know it"}),
    "--yes": ("create", {"action": "store_true", "help": "agree to the hours and the cost without being asked"}),
    "--dirty": ("run", {"action": "store_true", "help": "send changes that are not committed, too"}),
    "--secret": ("run", {"default": "", "help": "entries of Secret Manager that become variables: A,B"}),
    "--watch": ("run", {"action": "store_true", "help": "stay, and make it again where it is preempted"}),
    "--max_restarts": ("run", {"type": int, "default": 3, "help": "how often"}),
    "--worker": ("logs", {"type": int, "default": 0, "help": "whose log"}),
    "--workdir": ("fetch", {"required": True, "help": "the run's folder there, and here"}),
    "--dry_run": ("create run logs fetch delete", {"action": "store_true", "help": "show what would change"}),
}


def parser(action: str = "") -> cli.Parser:
    """The flags of an action; of all of them where none is named."""
    made = cli.make_parser(f"pod {action}".strip(), __doc__ or "", config=False, workdir=False)
    for name, (actions, how) in _FLAGS.items():
        if not action or action in actions.split():
            made.add_argument(name, **how)
    return made


def create(flags: argparse.Namespace, tpus: Tpus) -> None:
    """Makes a resource that a plan fits, after a yes, and waits until it can be used."""
    asked, fits = money.planned(flags.plan, flags.topology, flags.slices)
    names.check("--name", flags.name, "label", _longest(flags.slices))
    for flag in ("max_hours", "max_wait_hours"):
        if not 0 < getattr(flags, flag) < math.inf:
            raise UserError(f"--{flag.replace('_', '-')}={getattr(flags, flag):g} must be above 0.")
    if flags.price is not None and not 0 <= flags.price < math.inf:
        raise UserError(f"--price={flags.price:g} must be USD per chip-hour.")
    if flags.direct and (flags.slices > 1 or flags.capacity == "flex-start"):
        raise UserError("--direct makes one slice, and no flex-start: leave it out.")
    if flags.service_account and not re.fullmatch(r"[\w.@-]+", flags.service_account, re.ASCII):
        raise UserError(f"--service-account={flags.service_account!r} is no account's address.")
    queued, price = not flags.direct, flags.price
    wanted = Wanted(
        flags.name, asked.accelerator_type, asked.chip.runtime, flags.slices, flags.capacity, queued,
        flags.max_hours, flags.max_wait_hours, price, flags.service_account,
    )  # fmt: skip
    project = tpus.check_login()
    nodes = [f"{flags.name}-{i}" for i in range(flags.slices)] if flags.slices > 1 else [flags.name]
    resources.check_free(tpus, flags.name, nodes)
    what = f"{flags.name}: {flags.slices} x {asked.accelerator_type} ({asked.topology}), {flags.capacity}, {tpus.zone}"
    cli.say(str(money.Bill(what, fits, asked.chips, flags.max_hours, flags.max_wait_hours, price, queued)))
    # Google itself ends what was made with flex-start.
    doubt = "" if flags.capacity == "flex-start" else money.timer_doubt(project, flags.service_account)
    if doubt:
        cli.say(f"After {flags.max_hours:g} h nothing may end it but you: {doubt}.")
    if not tpus.dry and (doubt or not flags.yes):
        money.agree(
            "Create it, without a limit that is sure?" if doubt else "Create it?", "" if doubt else ", or --yes"
        )
    resources.make(tpus, wanted, on_interrupt(tpus, flags.name))
    cli.say(f"next: {again(tpus, 'run', flags.name)} -- launch.train --config=... --workdir=...")


def _longest(slices: int = 1) -> int:
    """How long a name may be, to which a number is added for each of several slices."""
    return 61 - (len(f"-{slices - 1}") if slices > 1 else 0)


def run(flags: argparse.Namespace, tpus: Tpus, words: Sequence[str]) -> int:
    """Brings the committed code to all hosts, and starts a command there."""
    if not words or (made := parser_of(words[0])) is None:
        told = f"{words[0]} is no command of heed's: what" if words else "what"
        raise UserError(f"{told} is to run comes last: {again(tpus, 'run', flags.name)} -- launch.train --config=...")
    checked(made, words[1:])
    secrets = [one for one in flags.secret.split(",") if one]
    if bad := [one for one in secrets if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", one)]:
        raise UserError(
            f"--secret={bad[0]} must be the name of an entry that can be a variable, such as WANDB_API_KEY."
        )
    if flags.max_restarts < 0:
        raise UserError(f"--max-restarts={flags.max_restarts} must be at least 0.")
    with tempfile.TemporaryDirectory(prefix="heed-") as folder:
        archive = Path(folder, "heed.tar.gz")
        tree.pack(archive, flags.dirty)
        job = running.Run(tpus, flags.name, words, secrets, archive)
        stop = on_interrupt(tpus, flags.name)
        status = running.started(job, there(tpus, flags.name), flags.watch, flags.max_restarts, stop)
    cli.say(f"its log: {again(tpus, 'logs', flags.name)}\nits end: {again(tpus, 'delete', flags.name)}")
    return status


def status(flags: argparse.Namespace, tpus: Tpus) -> None:
    """Tells how a resource and its run are, and what can be done."""
    found = there(tpus, flags.name)
    show([found])
    if found.over:
        cli.say(f"{flags.name} is {found.over}; it is made again, and its run started there, by\n  "
                f"{again(tpus, 'run', flags.name, '--watch')} -- THE SAME COMMAND\nand given up by\n  "
                f"{again(tpus, 'delete', flags.name)}")  # fmt: skip
    elif found.ready:
        machines = Machines.of(tpus, found)
        states = machines.states()
        told = [f"{states.count(one)} {one}" for one in dict.fromkeys(states)]
        silent = machines.hosts - len(states)
        cli.say(f"hosts: {', '.join(told + ([f'{silent} do not answer'] if silent else []))} (of {machines.hosts})")


def show(all_found: Sequence[Found]) -> None:
    """Prints resources as a table."""
    rows = [
        ("name", "zone", "machines", "state", "age", "so far, at most"),
        *(one.row(time.time()) for one in all_found),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cli.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def there(tpus: Tpus, name: str) -> Found:
    """The resource of this name; raises UserError where there is none."""
    tpus.check_login()
    if (found := resources.look(tpus, name)) is None:
        raise UserError(f"--name={name}: there is nothing of that name in {tpus.zone}; launch.pod list shows all.")
    return found


def again(tpus: Tpus, action: str, name: str, *more: str) -> str:
    """The command for an action on a resource."""
    project = [f"--project={tpus.project}"] if tpus.project else []
    return command("pod", action, f"--name={name}", f"--zone={tpus.zone}", *project, *more)


def on_interrupt(tpus: Tpus, name: str) -> Callable[[str], None]:
    """What Ctrl-C does while a resource is made by a request: delete it, or, at the next one, say how."""

    def stop(request: str) -> None:
        by_hand = again(tpus, "delete", name)
        cli.say(f"stopped: {name} is deleted, which takes a minute or two; Ctrl-C leaves that to you:\n  {by_hand}")
        try:
            resources.delete(tpus, name, patient=True, request=request)
        except (KeyboardInterrupt, UserError) as error:
            cli.say(f"{name} may still be there, and cost money ({error or 'stopped'}):\n  {by_hand}")

    return stop


def main(argv: Sequence[str]) -> int | None:
    """Does one action."""
    action, rest = (argv[0], list(argv[1:])) if argv else ("", [])
    if action in ("--help", "-h"):
        cli.parse(parser(), ["--help"])
    if action not in _ALL.split():
        raise UserError(f"launch.pod: the first word must be one of {', '.join(_ALL.split())}, and not {action!r}.")
    words = rest[rest.index("--") + 1 :] if "--" in rest else []
    flags, overrides = cli.parse(parser(action), rest[: rest.index("--")] if "--" in rest else rest)
    if overrides or (words and action != "run"):
        raise UserError(f"launch.pod {action} runs nothing with a config: that comes after run ... -- launch.train.")
    zone = getattr(flags, "zone", _EVERY)
    if zone != _EVERY and not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z]", zone):
        raise UserError(f"--zone={zone} is no zone, such as us-west4-a.")
    if flags.project and not re.fullmatch(r"[a-z][-a-z0-9.:]*", flags.project):
        raise UserError(f"--project={flags.project} is no project's ID.")
    if action != "list":
        names.check("--name", flags.name, "label", _longest())
    tpus = Tpus(zone, flags.project, getattr(flags, "dry_run", False))
    if action == "create":
        create(flags, tpus)
    elif action == "run":
        return run(flags, tpus, words)
    elif action == "status":
        status(flags, tpus)
    elif action == "logs":
        return Machines.of(tpus, there(tpus, flags.name)).logs(flags.worker)
    elif action == "fetch":
        Machines.of(tpus, there(tpus, flags.name)).fetch(flags.workdir)
    elif action == "list":
        project = tpus.check_login()
        if found := resources.listed(tpus):
            show(found)
        else:
            cli.say(f"nothing of heed's is in any zone of {project}")
    else:
        tpus.check_login()
        resources.delete(tpus, flags.name)
    return None


if __name__ == "__main__":
    cli.run(main)
