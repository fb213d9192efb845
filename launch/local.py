"""Runs a command as several processes of this machine, as a pod would.

.venv/bin/python -m launch.local --processes=4 -- launch.train --config=configs/gpt.py:quickstart --workdir=runs/four

Each has fake devices of the CPU; its lines begin with [rank]. The exit status is that of the first that failed. Ctrl-C
is passed on to all, a second one kills all.
"""

import os
from collections.abc import Sequence

from launch import cli
from launch.machines import processes, words
from model.errors import UserError


def parser() -> cli.Parser:
    """The flags of this command, which stand before `--`."""
    made = cli.make_parser("local", __doc__ or "", config=False, workdir=False)
    made.add_argument("--processes", type=int, required=True, help="how many, each of which jax takes for a host")
    made.add_argument("--devices", type=int, default=1, help="the fake devices of each")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs what follows `--`."""
    flags, after, _ = words.split(parser(), argv)
    for name in ("processes", "devices"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name}={getattr(flags, name)} must be at least 1.")
    address = processes.free_address()
    env = processes.environment(os.environ, flags.devices, address)
    return processes.run_together(processes.ranks(after, flags.processes, address), env)


if __name__ == "__main__":
    cli.run(main)
