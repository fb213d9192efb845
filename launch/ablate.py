"""Changes one thing, and finds out, with evidence, whether it mattered.

    .venv/bin/python -m launch.ablate --plan=configs/ablations/scale.py --workdir=runs/scale

runs the grid of a plan, or goes on with it. Of runs of any framework, from a CSV file with the columns arm, seed and
value, the same verdict is

    .venv/bin/python -m launch.ablate --table=runs.csv --baseline=base --direction=lower --smallest=0.01

The exit status says it to a script: 0 better, 3 worse, 4 below D, 5 equivalent, 6 not distinguishable, 7 invalid, 2 bad
input; of several arms the first of 7, 0, 4 (better), 5, 6, 4 (worse), 3 that one of them has. From a notebook:
`verdict = ablate(plan)`.
"""

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.verdict.decision import Verdict
from eval.verdict.page import text
from launch import cli, hosts, output
from launch.ablation import tables
from launch.ablation.disk import check_disk
from launch.ablation.gates.dry_run import dry_run
from launch.ablation.gates.examine import admitted, keep
from launch.ablation.gates.matching import matched, with_match
from launch.ablation.gates.rules import refuse
from launch.ablation.grid import Grid, Pending, place_of
from launch.ablation.phases import pilot, verdict
from launch.ablation.plan import Plan, load_plan, make_plan
from launch.ablation.programs import Store
from launch.ablation.running import Bar
from launch.ablation.tuning import tune
from model.errors import UserError
from train.devices.machine import use_compilation_cache
from train.run.command import command
from train.run.files.disk import full_disk
from train.run.files.json_files import write
from train.run.files.lock import FolderLock
from train.run.signals import stop_signals


def ablate(
    plan: Plan | Mapping[str, Any] | str | Path, workdir: str | Path = "", *, jobs: int = 1, elsewhere: bool = False
) -> Verdict:
    """The verdict on a plan: a value, a dict as `get_plan` returns, or the path of a file.

    Without a `workdir`, the folder is runs/<name of the plan>. A grid that was stopped goes on; what has run is not run
    again. `jobs` programs run at a time; with `elsewhere` none does here.

    Raises:
        UserError: the plan or the folder cannot be used, or a gate refuses the plan.
        Pending: the programs that are to run elsewhere before this goes on.
        Stopped: it was told to stop.
    """
    if isinstance(plan, Mapping):
        plan = make_plan("notebook", plan)
    elif not isinstance(plan, Plan):
        plan = load_plan(plan)
    with opened(plan, Path(workdir or Path("runs") / plan.name), jobs, elsewhere) as grid:
        grid.ledger.begin(plan)
        rates = tune(grid)
        smallest, _ = pilot(grid, rates)
        return verdict(grid, rates, smallest)


@contextlib.contextmanager
def opened(plan: Plan, folder: Path, jobs: int = 1, elsewhere: bool = False) -> Iterator[Grid]:
    """Inside, a plan's grid, whose folder no other uses; the plan, with what it matches, is written before it runs.

    Raises:
        UserError: a gate refuses the plan, the folder cannot be used, or its disk does not hold the grid.
    """
    if jobs < 1:
        raise UserError(f"--jobs={jobs} must be at least 1: programs that run at a time.")
    folder, plan = folder.absolute(), matched(plan)
    use_compilation_cache()
    lock = FolderLock(folder)
    try:
        with full_disk(folder), stop_signals() as stop, Bar(Store(folder / "store")) as bar:
            stop.doing("the gates")
            check_disk(plan, folder)
            bar.phase("gates", ())
            examined = admitted(plan, place_of(plan, folder))
            grid = Grid(plan, folder, bar, jobs, elsewhere)
            grid.place.mkdir(parents=True, exist_ok=True)
            write(grid.place / "plan.json", {"hash": plan.hash, **plan.resolved})
            keep(plan, examined, grid.place)
            bar.expect(grid.seed_steps)
            stop.check()
            yield grid
    finally:
        lock.release(undo=not (folder / "plans").exists())


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("ablate", __doc__ or "", config=False, workdir=False)
    made.add_argument("--plan", help="what is declared, such as configs/ablations/scale.py")
    made.add_argument("--workdir", help="the grid's folder, such as runs/scale; of a table, FILE.verdict beside it")
    made.add_argument("--match", metavar="KEY", help="solve mlp_width, width, depth or steps for the matched budget")
    made.add_argument("--dry-run", action="store_true", help="print what the arms cost and what the gates find")
    made.add_argument("--jobs", type=int, default=1, help="programs that run at a time, each in its own process")
    made.add_argument(
        "--print-commands", action="store_true", help="print one command for each program that is due, and run none"
    )
    made.add_argument(
        "--program",
        metavar="KEY",
        help="run one program of the folder, as --print-commands tells; in one process or several",
    )
    tables.add_flags(made)
    hosts.add_flags(made)
    return made


def main(argv: Sequence[str]) -> int | None:
    """Says what came of a grid, or of a table, and where its page is; returns the exit status."""
    flags, overrides = cli.parse(parser(), argv)
    if overrides and (flags.table or flags.program):
        raise UserError(f"--config.{next(iter(overrides))}: only --plan takes changes of its config; leave this out.")
    _check_flags(flags)
    if flags.table:
        return tables.judge(flags)
    if not flags.workdir:
        raise UserError("--workdir is missing: give the grid's folder, such as --workdir=runs/scale.")
    if not flags.program:
        _check_alone(flags)
    several = hosts.joined(flags) if flags.program else contextlib.nullcontext()
    with several, stop_signals(command=True), cli.telling_how_to_go_on(parser(), flags, overrides):
        if flags.program:
            _run(Store(Path(flags.workdir).absolute() / "store"), flags.program)
            return None
        if not flags.plan:
            raise UserError("--plan is missing: give a plan's file, or --table, a CSV file with arm, seed and value.")
        plan = load_plan(flags.plan, **overrides)
        if flags.match:
            plan = with_match(plan, flags.match)
        plan = matched(plan)
        if flags.dry_run:
            told, gates = dry_run(plan, Path(flags.workdir).absolute())
            cli.say(told)
            refuse(plan, gates)
            return None
        try:
            found = ablate(plan, flags.workdir, jobs=flags.jobs, elsewhere=flags.print_commands)
        except Pending as pending:
            for program in pending.programs:
                cli.say(command("ablate", f"--workdir={flags.workdir}", f"--program={program.key}"))
            return None
    with output.unheard():  # the page is written, whether anybody listens or not
        place = Path(flags.workdir) / "plans" / f"{plan.name}-{plan.hash}"
        cli.say(f"{text(found)}\npage: {place / 'verdict.html'}")
    return found.status


def _check_alone(flags: argparse.Namespace) -> None:
    """Refuses a grid in several processes that know of one another.

    Raises:
        UserError: says how its programs run on all of them.
    """
    place = hosts.find_place(flags.coordinator, flags.process_id, flags.num_processes, flags.join_seconds)
    if place is not None:
        raise UserError(
            f"--plan is for one process, and this is rank {place.rank} of {place.count} (by {place.found_by}): take the"
            " commands that --print-commands prints in one process, --num-processes=1, and start each in all of them."
        )


def _check_flags(flags: argparse.Namespace) -> None:
    """Refuses flags that what is asked does not read.

    Raises:
        UserError: names the first of them.
    """
    grids = ("match", "dry_run", "jobs", "print_commands")
    asked, foreign = "plan", list(tables.DECLARING)
    if flags.table:
        asked, foreign = "table", [*grids, "program"]
    elif flags.program:
        asked, foreign = "program", ["plan", *grids, *tables.DECLARING]
    for name in foreign:
        if getattr(flags, name) != parser().get_default(name):
            raise UserError(
                f"--{name.replace('_', '-')} says nothing of a {asked}: leave it out, or leave out --{asked}."
            )


def _run(store: Store, key: str) -> None:
    """Runs a program that a plan has asked for.

    Raises:
        UserError: no plan has, or the code, the packages or the text are others here.
    """
    if not (store.place(key) / "program.json").is_file():
        raise UserError(f"--program={key}: no plan of this folder asks for it: see --print-commands.")
    use_compilation_cache()
    store.run(store.program(key).checked())


if __name__ == "__main__":
    cli.run(main)
