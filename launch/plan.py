"""Says before anything is paid for whether a run fits a slice of TPUs, what it sends and how long it takes at least:

.venv/bin/python -m launch.plan --config=configs/gpt.py:llama_8b --topology=v5e:16x16

The step itself is compiled, by the real compiler for TPUs, which needs none; no data set is opened. Bytes are those of
one device. What is known once of a step is kept, and told again at once. Of an ablation, each program is compiled once:

.venv/bin/python -m launch.plan --plan=configs/ablations/scale.py --topology=v5e:2x2
"""

import argparse
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from launch import cli, configs
from launch.ablation.gates.matching import matched
from launch.ablation.plan import load_plan
from launch.configs import load
from launch.planning import rates
from launch.planning.ablation import ablation
from launch.planning.changes import changed, largest_batch, tries
from launch.planning.chips import Slice, parse_topology
from launch.planning.running import placed_on, planned
from launch.planning.telling import shardings, table, told
from model.errors import UserError
from train.run.files.json_files import write


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("plan", __doc__ or "", config=False, workdir=False)
    made.epilog = configs.help_text()
    made.add_argument("--config", help=cli.CONFIG_HELP)
    made.add_argument("--plan", help="an ablation instead, planned whole: such as configs/ablations/scale.py")
    made.add_argument("--topology", required=True, help="chip and grid, such as v5e:16x16; several by commas: a table")
    made.add_argument("--slices", type=int, default=1, help="how many such slices, between which only replica goes")
    made.add_argument("--json", metavar="FILE.json", default="", help="write the plan, or a list of several")
    made.add_argument("--price", type=float, metavar="USD", help="of a chip-hour, as you pay it: for the run's cost")
    made.add_argument("--watts", type=float, help="of a chip, for the run's energy")
    made.add_argument("--shardings", action="store_true", help="list where each parameter lies, and end")
    made.add_argument("--no-tries", action="store_true", help="do not try what to change where it does not fit")
    return made


def main(argv: Sequence[str]) -> int:
    """Prints the plan for each topology; the status is 1 where one does not fit."""
    flags, overrides = cli.parse(parser(), argv)
    places = [parse_topology(one, flags.slices) for one in flags.topology.split(",")]
    _check(flags)
    plans = _ablations(flags, overrides, places) if flags.plan else _plans(flags, overrides, places)
    if flags.json and plans:
        try:
            write(Path(flags.json), plans[0] if len(plans) == 1 else plans)
        except OSError as error:
            raise UserError(f"--json={flags.json} cannot be written ({error.strerror}); give another place.") from None
        cli.say(f"plan: {flags.json}")
    return 0 if all(one["fits"] for one in plans) else 1


def _check(flags: argparse.Namespace) -> None:
    """Refuses flags that do not go together, or make no sense, before anything is compiled.

    Raises:
        UserError: names the first of them.
    """
    if bool(flags.config) == bool(flags.plan):
        raise UserError("give one of --config, of which a run is planned, and --plan, of which an ablation is.")
    if flags.plan and flags.shardings:
        raise UserError("--shardings is of one run, and --plan of many: give the --config of an arm.")
    for name in ("price", "watts"):
        if (value := getattr(flags, name)) is not None and value < 0:
            raise UserError(f"--{name}={value} must be at least 0.")
    if flags.json and (not flags.json.endswith(".json") or not Path(flags.json).parent.is_dir()):
        raise UserError(f"--json={flags.json} must be a .json file in a folder that exists.")


def _plans(flags: argparse.Namespace, overrides: Mapping[str, str], places: Sequence[Slice]) -> list[dict[str, Any]]:
    """A run's plan for each slice; none where only placements are asked for."""
    config, plans = load(flags.config, **overrides), list[dict[str, Any]]()
    for where in places:
        if flags.shardings:
            cli.say(shardings(placed_on(config, where)))
            continue
        plans.append(plan(config, where, flags.price, flags.watts))
        cli.say(told(plans[-1]))
        if not plans[-1]["fits"] and not flags.no_tries:
            plans[-1]["tried"] = _try(config, where)
    if len(plans) > 1:
        cli.say(table(plans))
    return plans


def _ablations(
    flags: argparse.Namespace, overrides: Mapping[str, str], places: Sequence[Slice]
) -> list[dict[str, Any]]:
    """An ablation's plan for each slice."""
    asked = matched(load_plan(flags.plan, **overrides))
    return [
        ablation(asked, where, functools.partial(plan, where=where, price=flags.price, watts=flags.watts), cli.say)
        for where in places
    ]


def plan(config: ConfigDict, where: Slice, price: float | None = None, watts: float | None = None) -> dict[str, Any]:
    """All that is known of a config on a slice before it runs, by name, in bytes of a device, FLOPs and seconds.

    Raises:
        UserError: it cannot be trained there.
    """
    found = planned(config, where)
    seconds = rates.step(found, where, config.model.get("remat", "none"))
    found["model"] = seconds._asdict() | {"seconds_per_step": seconds.seconds}
    return found | rates.totals(found, seconds.seconds, where, price, watts)


def _try(config: ConfigDict, where: Slice) -> list[dict[str, Any]]:
    """What was tried to make it fit, each told as it comes."""
    cli.say("it does not fit; what would:")
    found = []
    for _, changes in tries(config, where):
        one = changed(config, where, planned, changes, cli.say)
        found.append(
            {"changes": changes, "fits": bool(one and one["fits"]), "needed_bytes": one and one["needed_bytes"]}
        )
    size = largest_batch(config, where, planned, cli.say)
    cli.say(
        f"the largest batch that fits, of halves: --config.data.batch_size={size}"
        if size
        else "no half of the batch fits; take more chips, or a smaller model"
    )
    return [*found, {"largest_batch": size}]


if __name__ == "__main__":
    cli.run(main)
