"""Says before anything is paid for whether a run fits a slice of TPUs, what it sends and how long it takes at least:

.venv/bin/python -m launch.plan --config=configs/gpt.py:llama_8b --topology=v5e:16x16

The step itself is compiled, by the real compiler for TPUs, which needs none; no data set is opened. Bytes are those of
one device. What is known once of a step is kept, and told again at once. Of an ablation, each program is compiled once:

.venv/bin/python -m launch.plan --plan=configs/ablations/scale.py --topology=v5e:2x2

--search tries meshes, what is computed again and accumulations (with --batches batches, too, by which it is learned
otherwise) and ends with the fastest by the model of time; started again it goes on.

A run that was planned says by how much the model of time is too fast, for later plans of its chip: `--against=runs/it`.
"""

import argparse
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from launch import cli, configs
from launch.ablation.gates.matching import matched
from launch.ablation.plan import load_plan
from launch.configs import load
from launch.planning import against, rates
from launch.planning.ablation import ablation
from launch.planning.changes import changed, largest_batch, tries
from launch.planning.chips import Slice, parse_topology
from launch.planning.running import before, planned
from launch.planning.search import Search
from launch.planning.telling import shardings, table, told
from model.errors import UserError
from train.run.files.json_files import write

MINUTES, MOST_MINUTES = 15.0, 10_000


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("plan", __doc__ or "", config=False, workdir=False)
    made.epilog = configs.help_text()
    made.add_argument("--config", help=cli.CONFIG_HELP)
    made.add_argument("--plan", help="an ablation instead, planned whole: such as configs/ablations/scale.py")
    made.add_argument("--topology", required=True, help="chip and grid, v5e:16x16, or cpu:8, here; several by commas")
    made.add_argument("--slices", type=int, default=1, help="how many such slices, between which only replica goes")
    made.add_argument("--json", metavar="FILE.json", default="", help="write the plan, or a list of several")
    made.add_argument("--price", type=float, metavar="USD", help="of a chip-hour, as you pay it: for the run's cost")
    made.add_argument("--watts", type=float, help="of a chip, for the run's energy")
    made.add_argument(
        "--against", metavar="RUN", default="", help="a run, of whose config --config may be: what it took mends plans"
    )
    made.add_argument("--shardings", action="store_true", help="list where each parameter lies, and end")
    made.add_argument("--no-tries", action="store_true", help="do not try what to change where it does not fit")
    made.add_argument("--effort", choices=("default", "low"), default="default", help="low: a quick answer, not kept")
    made.add_argument("--search", action="store_true", help="look for the fastest plan on this slice")
    made.add_argument("--minutes", type=float, default=MINUTES, help=f"of a search, at most; by default {MINUTES:g}")
    made.add_argument("--batches", default="", help="data.batch_size of a search, by commas: none but the config's")
    return made


def main(argv: Sequence[str]) -> int:
    """Prints the plan for each topology; the status is 1 where one does not fit."""
    flags, overrides = cli.parse(parser(), argv)
    places = [parse_topology(one, flags.slices, here=True) for one in flags.topology.split(",")]
    _check(flags, overrides)
    if flags.search:
        return _search(flags, overrides, places[0])
    plans = _ablations(flags, overrides, places) if flags.plan else _plans(flags, overrides, places)
    _write(flags, plans)
    return 0 if all(one["fits"] for one in plans) else 1


def _write(flags: argparse.Namespace, plans: Sequence[dict[str, Any]]) -> None:
    """Writes what --json asks for."""
    if flags.json and plans:
        try:
            write(Path(flags.json), plans[0] if len(plans) == 1 else [*plans])
        except OSError as error:
            raise UserError(f"--json={flags.json} cannot be written ({error.strerror}); give another place.") from None
        cli.say(f"plan: {flags.json}")


def _check(flags: argparse.Namespace, overrides: Mapping[str, str]) -> None:
    """Refuses flags that do not go together, or make no sense, before anything is compiled.

    Raises:
        UserError: names the first of them.
    """
    if bool(flags.config) == bool(flags.plan) and not flags.against:
        raise UserError("give one of --config, of which a run is planned, and --plan, of which an ablation is.")
    if flags.against and overrides and not flags.config:
        raise UserError(f"--against={flags.against} plans the run's own config: leave --config.{min(overrides)} out.")
    made = parser()
    given = {name for name, value in vars(flags).items() if value != made.get_default(name)}
    for name, others in _APART.items():
        if name in given and (other := [one for one in others if one in given]):
            one, two = (f"--{word.replace('_', '-')}" for word in (name, other[0]))
            raise UserError(f"{one} and {two} do not go together: leave one of them out.")
    for name in ("minutes", "batches"):
        if name in given and not flags.search:
            raise UserError(f"--{name} is of a search: add --search, or leave it out.")
    for name, what in (("search", "a search"), ("against", "a run")):
        if name in given and "," in flags.topology:
            raise UserError(f"--topology={flags.topology}: {what} is on one slice; give one, or leave out --{name}.")
    if not 0 < flags.minutes <= MOST_MINUTES:
        raise UserError(f"--minutes={flags.minutes:g} must be above 0 and at most {MOST_MINUTES}.")
    _batches(flags)
    for name in ("price", "watts"):
        if (value := getattr(flags, name)) is not None and not 0 <= value < math.inf:
            raise UserError(f"--{name}={value} must be a number of at least 0.")
    if flags.json and (not flags.json.endswith(".json") or not Path(flags.json).parent.is_dir()):
        raise UserError(f"--json={flags.json} must be a .json file in a folder that exists.")


# Of a search, a quick answer would be none: it tells too much of what is sent, by which plans are ranked.
_APART: dict[str, tuple[str, ...]] = {
    "plan": ("shardings", "search", "no_tries"),
    "search": ("shardings", "no_tries", "effort"),
    "against": ("plan", "search", "shardings", "effort", "slices"),
}
_APART |= {"shardings": ("effort", "json")}


def _batches(flags: argparse.Namespace) -> list[int]:
    words = [word.strip() for word in flags.batches.split(",") if flags.batches]
    if not all(word.isascii() and word.isdecimal() and int(word) for word in words):
        raise UserError(f"--batches={flags.batches} must be whole numbers above 0, by commas, such as 128,256.")
    return sorted({*map(int, words)})


def _search(flags: argparse.Namespace, overrides: Mapping[str, str], where: Slice) -> int:
    """The fastest plan, told and written however the search ends."""
    config = load(flags.config, **overrides)
    search = Search(config, where, functools.partial(before, where=where), _batches(flags))
    of_one = functools.partial(plan, where=where, price=flags.price, watts=flags.watts)
    try:
        search.run(lambda config, seconds: of_one(config, seconds=seconds), 60 * flags.minutes, cli.say)
    finally:
        cli.say(search.told())
        _write(flags, [found := search.resolved()])
    if search.best:
        cli.say(told(found))
    return 0 if search.best else 1


def _plans(flags: argparse.Namespace, overrides: Mapping[str, str], places: Sequence[Slice]) -> list[dict[str, Any]]:
    """A run's plan for each slice; none where only placements are asked for."""
    config = load(flags.config, **overrides) if flags.config else against.config_of(flags.against)
    plans = list[dict[str, Any]]()
    run = against.measured(flags.against, config, places[0]) if flags.against else None
    for where in places:
        if flags.shardings:
            cli.say(shardings(before(config, where)["placements"]))
            continue
        both = {"against": against.learn(run, plan(config, where), where)} if run else {}
        plans.append(plan(config, where, flags.price, flags.watts, effort=flags.effort) | both)
        cli.say(told(plans[-1]))
        if not plans[-1]["fits"] and not flags.no_tries and "effort" not in plans[-1]:
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
        ablation(
            asked,
            where,
            functools.partial(plan, where=where, price=flags.price, watts=flags.watts, effort=flags.effort),
            cli.say,
        )
        for where in places
    ]


def plan(
    config: ConfigDict, where: Slice, price: float | None = None, watts: float | None = None, **how: Any
) -> dict[str, Any]:
    """All that is known of a config on a slice before it runs, by name, in bytes of a device, FLOPs and seconds.

    how: the `seconds` and the `effort` of the compiler (`planning/running.py`).

    Raises:
        UserError: it cannot be trained there.
    """
    found = planned(config, where, **how)
    step, mended = rates.step(found, where, config.model.get("remat", "none")), against.correction(where)
    seconds = step.seconds * mended["factor"]
    # Fitted to what was measured, it is no bound by what a chip can do.
    mended |= {"fitted": where.chip.shared or mended["factor_origin"] is not None, "seconds_per_step": seconds}
    found["model"] = dict(zip(rates.PARTS, step, strict=False)) | mended
    return found | rates.totals(found, seconds, where, price, watts)


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
        f"the largest batch that fits, to an eighth: --config.data.batch_size={size}"
        if size
        else "no smaller batch fits; take more chips, or a smaller model"
    )
    return [*found, {"largest_batch": size}]


if __name__ == "__main__":
    cli.run(main)
