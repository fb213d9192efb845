"""The verdict on a table of runs that were made elsewhere, with the flags that declare it, or by a plan."""

import argparse
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from eval.verdict.decision import decide
from eval.verdict.declared import Contrast, Declared
from eval.verdict.page import Shown, text, write_page
from eval.verdict.page.write import FILES
from eval.verdict.table import Table, read_table
from launch import cli, output
from launch.ablation.gates.rules import NAMES
from launch.ablation.plan import Plan, load_plan
from model.errors import UserError
from train.run.command import command
from train.run.files.disk import full_disk
from train.run.files.naming import check_length

DECLARING = ("baseline", "direction", "smallest", "alpha")


def add_flags(parser: cli.Parser) -> None:
    """Adds the flags by which a table is judged."""
    parser.add_argument("--table", metavar="FILE.csv", help="runs to judge: a line each, with arm, seed and value")
    parser.add_argument("--baseline", metavar="NAME", help="the arm of the table that every other is compared with")
    parser.add_argument("--direction", choices=("lower", "higher"), help="which values are better")
    parser.add_argument("--smallest", type=float, metavar="D", help="the smallest effect of interest, above 0")
    parser.add_argument("--alpha", type=float, help="the share of false alarms, of all arms together; 0.05 if left out")


def judge(flags: argparse.Namespace) -> int:
    """Prints the verdict on --table, writes its page, and returns the exit status.

    Raises:
        UserError: a flag is missing, or the table cannot be judged.
    """
    table = read_table(flags.table)
    plan = load_plan(flags.plan) if flags.plan else None
    declared = _by_flags(flags, table) if plan is None else _by_plan(flags, table, plan)
    folder = Path(flags.workdir or Path(flags.table).with_suffix(".verdict"))
    check_length("--workdir", folder)
    verdict, shown = decide(declared, table.values), _shown(flags, table, plan)
    try:
        if any((folder / name).exists() and (folder / name).samefile(flags.table) for name in FILES):
            raise UserError(f"--workdir={folder} would write over --table={flags.table}: give another folder.")
        with full_disk(folder):
            page = write_page(folder, verdict, table.values, shown)["verdict.html"]
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be written ({error.strerror}): give another folder.") from error
    with output.unheard():  # the page is written, whether anybody listens or not
        cli.say(f"{text(verdict)}\npage: {page}")
    return verdict.status


def _by_flags(flags: argparse.Namespace, table: Table) -> Declared:
    for name in ("baseline", "direction", "smallest"):
        if getattr(flags, name) is None:
            raise UserError(
                f"--{name} is missing: a table is judged by --baseline, --direction and --smallest, or by --plan."
            )
    alpha = 0.05 if flags.alpha is None else flags.alpha
    if not 0 < alpha <= 0.2:
        raise UserError(f"--alpha={alpha} must be above 0 and at most 0.2: the share of false alarms.")
    arms = table.others_than(flags.baseline)
    named = arms[0] if len(arms) == 1 else f"any of {len(arms)} arms"
    question = f"Does {named} differ from {flags.baseline}, by {table.name}?"
    contrasts = tuple(Contrast(arm, (arm,), (flags.baseline,)) for arm in arms)
    looks = (len(table.seeds),)
    return Declared(question, contrasts, "value", flags.direction, _smallest(flags), alpha, looks)


def _by_plan(flags: argparse.Namespace, table: Table, plan: Plan) -> Declared:
    """What the plan declares; D is a flag's where the plan's is a share of a pilot that the table does not hold."""
    for name in DECLARING:
        if getattr(flags, name) is not None and not (name == "smallest" and plan.relative):
            raise UserError(f"--{name} is said by --plan={flags.plan}: leave it out.")
    if plan.relative and flags.smallest is None:
        raise UserError(
            f"--plan={flags.plan}: smallest={plan.smallest!r} is a share of a pilot, which a table does not hold: give "
            "--smallest=D beside it."
        )
    if {*plan.arms} != {*table.values}:
        raise UserError(
            f"--table={flags.table} has the arms {_listed(table.values)}, and --plan={flags.plan} has "
            f"{_listed(plan.arms)}: give the same."
        )
    looks = [tuple(sorted(plan.seeds[:look])) for look in plan.looks]
    if table.seeds not in looks:
        raise UserError(
            f"--table={flags.table} has the seeds {_listed(table.seeds)}, and --plan={flags.plan} has "
            f"{', or '.join(map(_listed, looks))}: give the same."
        )
    return plan.declared(_smallest(flags) if isinstance(plan.smallest, str) else plan.smallest)


def _smallest(flags: argparse.Namespace) -> float:
    if not 0 < flags.smallest < math.inf:
        raise UserError(f"--smallest={flags.smallest} must be a number above 0: the smallest effect of interest.")
    return float(flags.smallest)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


def _shown(flags: argparse.Namespace, table: Table, plan: Plan | None) -> Shown:
    given = [(name, getattr(flags, name)) for name in ("table", "plan", *DECLARING, "workdir")]
    line = command("ablate", *(f"--{name}={value}" for name, value in given if value is not None))
    # A table shows how many seeds there are, and a plan which; all other gates are about what made the values.
    checked = {"seeds"} if plan is None else {"seeds", "missing", "phases", *plan.waived}
    unchecked = [f"{name}: {gate}" for name, gate in NAMES.items() if name not in checked]
    shown = Shown(commands={"all rows": line}, unchecked=unchecked, exploratory=table.others)
    if plan is None:
        return shown
    said = {"plan": plan.name, "hash": plan.hash, "base": plan.base, "factor": _listed(plan.factor)}
    return replace(shown, plan=said, waived=plan.waived)
