"""What follows `--`: a command of this room that can run as several processes, and its words, unchanged."""

import argparse
import importlib
import pkgutil
from collections.abc import Sequence

import launch
from launch import cli
from launch.ablation.plan import load_plan
from launch.configs import load
from model.errors import UserError

_OURS = ("--coordinator", "--process-id", "--num-processes")  # whoever starts the processes tells them


def split(parser: cli.Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], argparse.Namespace]:
    """The flags before `--`, the words after it, such as ['launch.train', '--config=...'], and the flags in these.

    Raises:
        UserError: the words are none that the command takes, or its config's; it cannot run as several processes, or a
            word says which process it is.
    """
    own, after = list(argv), list[str]()
    if "--" in own:
        at = own.index("--")
        own, after = own[:at], own[at + 1 :]
    flags, _ = cli.parse(parser, own)
    if not after:
        raise UserError("nothing follows --: write -- launch.train --config=FILE:VARIANT --workdir=FOLDER.")
    command, *words = after
    made = _several(command)
    for word in words:
        if (flag := word.partition("=")[0].replace("_", "-")) in _OURS:
            raise UserError(f"{word} after --: each process is told its own {flag}; leave it out.")
    if made is None:
        able = ", ".join(name for name in _commands() if _several(name))
        raise UserError(f"-- {command}: it must be a command that runs as several processes: {able}.")
    return flags, after, checked(made, words)


def checked(made: cli.Parser, words: Sequence[str]) -> argparse.Namespace:
    """The flags in a command's words: a mistake in them, or in what is changed of the config or plan that they name, is
    told once and now, and not by every process, where each may be paid for.

    Raises:
        UserError: there is one.
    """
    inner, overrides = cli.parse(made, words)
    if getattr(inner, "config", None):
        load(inner.config, **overrides)
    if getattr(inner, "plan", None):
        load_plan(inner.plan, **overrides)
    return inner


def _commands() -> list[str]:
    return [f"launch.{found.name}" for found in pkgutil.iter_modules(launch.__path__)]


def parser_of(command: str) -> cli.Parser | None:
    """The flags of a command of this room, launch.train; None where it is none."""
    if command not in _commands():
        return None
    module = importlib.import_module(command)
    made: cli.Parser | None = module.parser() if hasattr(module, "parser") else None
    return made


def _several(command: str) -> cli.Parser | None:
    """The flags of a command that takes those of `hosts`."""
    made = parser_of(command)
    return made if made and {*_OURS} <= made.flags().keys() else None
