"""What a plan could find, from its pilot's seeds, before its verdict's are spent.

    .venv/bin/python -m launch.power --plan=configs/ablations/scale.py --workdir=runs/ablations

runs the pilot, or reads it where it has run, and tells of each metric the spread of a pair's difference, of the
endpoint the seeds and hours that an effect needs, and writes power.json and power.svg beside the plan. --variance tells
what initial values, the order of the data and dropout each add to the spread of a run; --aa tries the grid on two equal
arms, each of which is trained, and ends with status 1 if it tells them apart.
"""

from collections.abc import Sequence
from pathlib import Path

from launch import cli
from launch.ablate import opened
from launch.ablation.plan import load_plan
from launch.ablation.power.equal_arms import PATHS, SEEDS, equal_arms, equal_plan, two_paths
from launch.ablation.power.pilot import foresee, table
from launch.ablation.power.sources import told, variance
from train.run.signals import stop_signals


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("power", __doc__ or "", config=False)
    made.add_argument("--plan", required=True, help="what is declared, such as configs/ablations/scale.py")
    made.add_argument("--jobs", type=int, default=1, help="programs that run at a time, each in its own process")
    made.add_argument("--variance", action="store_true", help="cross initial values, orders of the data and dropout")
    made.add_argument(
        "--aa", action="store_true", help="try the grid on two equal arms; status 1 if it tells them apart"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Tells what a plan could find."""
    flags, overrides = cli.parse(parser(), argv)
    plan = load_plan(flags.plan, **overrides)
    with (
        stop_signals(command=True),
        cli.telling_how_to_go_on(parser(), flags, overrides),
        opened(equal_plan(plan) if flags.aa else plan, Path(flags.workdir), flags.jobs) as grid,
    ):
        if flags.variance:
            cli.say(told(variance(grid), plan.endpoint))
            return 0
        if flags.aa:
            same, verdict = equal_arms(grid)
            word = "every difference is exactly 0" if same else "NOT THE SAME"
            cli.say(f"two trainings of {len(SEEDS)} seeds: {word}; the verdict: {verdict.rows[0].word}")
            p = two_paths(grid)
            cli.say(f"{PATHS} seeds as populations against {PATHS} others alone: p = {p:.3g} (Mann-Whitney, exact)")
            return 0 if same and p > 0.01 else 1
        cli.say(table(foresee(grid), plan))
    return 0


if __name__ == "__main__":
    cli.run(main)
