"""Did it matter? A verdict on runs of any framework, from a CSV file with the columns arm, seed and value:
`.venv/bin/python -m launch.ablate --table=runs.csv --baseline=base --direction=lower --smallest=0.01`.

The exit status says it to a script: 0 better, 3 worse, 4 below D, 5 equivalent, 6 not distinguishable, 7 invalid, 2 bad
input; of several arms the first of 7, 0, 4 (better), 5, 6, 4 (worse), 3 that one of them has.
"""

from collections.abc import Sequence

from launch import cli
from launch.ablation import tables
from model.errors import UserError


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("ablate", __doc__ or "", config=False, workdir=False)
    made.add_argument(
        "--workdir", help="the folder of the page; of a table, FILE.verdict beside it if this is left out"
    )
    made.add_argument("--plan", help="what was declared, such as configs/ablations/NAME.py")
    tables.add_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Prints the verdict and where its page is, and returns the exit status."""
    flags, overrides = cli.parse(parser(), argv)
    if overrides:
        raise UserError(f"--config.{next(iter(overrides))}: a table has no config; leave this out.")
    if not flags.table:
        raise UserError("--table is missing: give a CSV file with the columns arm, seed and value.")
    return tables.judge(flags)


if __name__ == "__main__":
    cli.run(main)
