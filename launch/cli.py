"""What all commands share: flags, config overrides, and one sentence for an error of the user's."""

import argparse
import contextlib
import difflib
import gc
import importlib
import logging
import os
import pkgutil
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax

import launch
from launch import configs, output
from model.errors import UserError
from train.run.bucket.address import in_bucket, local_only
from train.run.command import command, interpreter
from train.run.files.disk import FullDisk
from train.run.files.naming import check_length

_PREFIX = "--config."
_OF_A_RUN = "train", "evaluate", "generate", "explain"  # the commands on a run, which may lie in a bucket
CONFIG_HELP = "file and variant, such as configs/gpt.py:quickstart; configs/gpt.py alone is its first variant, the same"


class Parser(argparse.ArgumentParser):
    """An argparse parser that refuses with a UserError."""

    def error(self, message: str) -> NoReturn:
        """Raises argparse's sentence, or ours for a number that is none, with the command that explains the flags."""
        if found := re.fullmatch(r"argument (\S+): invalid (int|float) value: '(.*)'", message, re.DOTALL):
            kind = {"int": "a whole number", "float": "a number"}[found[2]]
            message = f"{found[1]}={found[3]}: {kind} is needed"
        raise UserError(f"{message}; see {self.prog} --help.")

    def flags(self) -> dict[str, argparse.Action]:
        """Returns {its name with hyphens: what it does} of every flag, such as '--workdir'."""
        return {_hyphened(name): action for action in self._actions for name in action.option_strings}


def make_parser(verb: str, description: str, config: bool = True, workdir: bool = True) -> Parser:
    """Returns the parser of `launch.<verb>`, with --config and --workdir where it takes them.

    The interpreter that a description names is replaced by the one that runs.
    """
    parser = Parser(
        prog=command(verb),
        description=description.replace(".venv/bin/python", interpreter()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=configs.help_text() if config else None,
    )
    if config:
        parser.add_argument("--config", required=True, help=CONFIG_HELP)
    if workdir:
        parser.add_argument("--workdir", required=True, help="the run's folder, such as runs/try")
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the flags, and the overrides {'train.steps': '9'} given as --config.train.steps=9.

    In a flag's name, a hyphen and an underscore are the same.

    Raises:
      UserError: a flag is unknown, misses its value or its dashes, or is missing, or the folder is none.
    """
    rest, overrides = split_overrides(argv)
    if {"--help", "-h"} & {*rest} and (named := [word for word in rest if word.startswith("--config=")]):
        parser.epilog = configs.help_text(configs.load(named[-1].partition("=")[2], **overrides))
    # Unknown flags first: a misspelt required flag would otherwise be reported as missing.
    flags = parser.parse_args(list(_whole(parser, rest)))
    for flag in ("workdir", "attention"):
        check_length(f"--{flag}", getattr(flags, flag, None) or "")
    if (folder := getattr(flags, "workdir", None)) is not None:
        if not folder:
            raise UserError("--workdir is empty: give the run's folder, such as --workdir=runs/try.")
        verb = parser.prog.rpartition(".")[2]
        if not (verb in _OF_A_RUN and in_bucket(folder)):
            local_only("--workdir", folder, verb)
        if Path(folder).is_file():
            raise UserError(f"--workdir={folder} is a file: give the run's folder.")
    return flags, overrides


def again(parser: Parser, flags: argparse.Namespace, overrides: Mapping[str, str]) -> tuple[str, str]:
    """Returns the command that goes on, and the one that goes on to more steps: each flag said once, in any form.

    On several processes both end with a comment that says so: they are of the first process.
    """
    given = vars(flags) | ({"process_id": "RANK"} if getattr(flags, "process_id", None) is not None else {})
    more = given | {"extend": False, "profile_steps": ""}
    keys = {key: value for key, value in overrides.items() if key != "train.steps"}
    note, count = "", jax.process_count()
    if count > 1:
        own = f", with its own RANK from 0 to {count - 1}" if given.get("process_id") == "RANK" else ""
        note = f"  # on each of the {count} processes{own}"
    extended = f"{_line(parser, more, keys)} --extend {_PREFIX}train.steps=N"
    return _line(parser, given, overrides) + note, extended + note


@contextlib.contextmanager
def telling_how_to_go_on(parser: Parser, flags: argparse.Namespace, overrides: Mapping[str, str]) -> Iterator[None]:
    """Inside, what is stopped by a signal ends with the command that goes on from there."""
    try:
        yield
    except KeyboardInterrupt:
        with output.unheard():
            line, _ = again(parser, flags, overrides)
            say(f"stopped; nothing that is saved is lost, and the same command goes on from there:\n  {line}")
        raise


def _line(parser: Parser, flags: Mapping[str, Any], overrides: Mapping[str, str]) -> str:
    words = []
    for action in parser._actions:
        name, value = action.option_strings[-1], flags.get(action.dest, action.default)
        if value != action.default:
            words.append(name if action.nargs == 0 else f"{name}={value}")
    return command(parser.prog.rpartition(".")[2], *words, *(f"{_PREFIX}{key}={one}" for key, one in overrides.items()))


def _whole(parser: Parser, words: Sequence[str]) -> Iterator[str]:
    """The words for argparse, each flag together with its value, as '--flag=value'.

    Raises:
        UserError: a word is no flag of this command, or one without its value.
    """
    known, left = parser.flags(), iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        action = known.get(_hyphened(flag))
        if action is None:
            raise UserError(f"{_unknown(parser, word, flag)}; see {parser.prog} --help.")
        if action.nargs == 0:
            if equals:
                raise UserError(f"{word}: {flag} takes no value; write {flag}.")
            yield flag if flag == "-h" else action.option_strings[-1]
            continue
        value = value if equals else next(left, "--")
        if not equals and value.startswith("--"):
            raise UserError(f"{flag} has no value: write {flag}=VALUE.")
        yield f"{action.option_strings[-1]}={value}"


def _unknown(parser: Parser, word: str, flag: str) -> str:
    """What a word may have meant that is no flag of this command."""
    known, keys = parser.flags(), configs.comments()
    if not flag.startswith("--"):
        name = flag.lstrip("-")
        if name in keys or name.startswith(_PREFIX.strip("-")) or f"--{_hyphened(name)}" in known:
            return f"{word} lacks its dashes: write {_PREFIX if name in keys else '--'}{word.lstrip('-')}"
        return f"{word} is no flag: flags begin with --"
    names = [action.option_strings[-1] for action in known.values() if action.dest != "help"]
    if "--config" in known:
        names += (flags := [_PREFIX + key for key in keys])
        if ends := [one for one in flags if one.endswith("." + flag.strip("-").replace("-", "_"))]:
            return f"{flag} is a key of the config: write {' or '.join(ends)}"
    if owners := [verb for verb, other in _others() if _hyphened(flag) in other.flags()]:
        return f"{flag} is a flag of {', '.join(owners)}, and not of {parser.prog.rpartition(' ')[2]}"
    near = difflib.get_close_matches(flag, names, n=1)
    return f"{flag}: there is no such flag" + (f"; the nearest is {near[0]}" if near else "")


def _others() -> Iterator[tuple[str, Parser]]:
    """The commands with their parsers: the modules of this room that have one."""
    for found in pkgutil.iter_modules(launch.__path__):
        module = importlib.import_module(f"launch.{found.name}")
        if hasattr(module, "parser"):
            yield f"launch.{found.name}", module.parser()


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Returns the other words, and {'a.b': 'v'} of each `--config.a.b=v` or `--config.a.b v`.

    Raises:
      UserError: an override has no value.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith(_PREFIX):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix(_PREFIX).partition("=")
        value = value if equals else next(words, "--")
        if not equals and value.startswith("--"):
            if inside := [name for name in configs.comments() if name.startswith(f"{key}.")]:
                raise UserError(
                    f"{word} is a section: write {_PREFIX}{inside[0]}=VALUE, or one of {', '.join(inside)}."
                )
            raise UserError(f"{word} has no value: write {word}=VALUE.")
        overrides[key.replace("-", "_")] = value
    return rest, overrides


def _hyphened(flag: str) -> str:
    return flag.replace("_", "-")


def say(text: str, end: str = "\n") -> None:
    """Prints on stdout, on the first of several processes only."""
    if jax.process_index() == 0:
        print(text, end=end, flush=True)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command on the words of the command line; a UserError is its last line on stderr.

    Its exit status is what it returns, or what a UserError has, 2 for most.

    Ctrl-C ends it with status 130, and a reader of its output that has gone with 141, as is usual; both without a word.
    """
    output.open_streams()
    try:
        with _plain_stderr():
            status = main(sys.argv[1:])
            sys.stdout.flush()
    except KeyboardInterrupt:
        gc.freeze()  # else Python's exit looks through all that jax has made, for most of a second of a processor
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one, during Python's exit, ends it without a traceback
        sys.exit(130)
    except output.ClosedOutput:
        sys.exit(141)
    except UserError as error:
        with output.unheard():
            sys.stdout.flush()
        print(error, file=sys.stderr, flush=True)
        if isinstance(error, FullDisk):
            os._exit(error.status)  # what is open cannot be flushed, of which Python would tell with tracebacks
        sys.exit(error.status)
    if status:
        sys.exit(status)


@contextlib.contextmanager
def _plain_stderr() -> Iterator[None]:
    """Inside, what heed warns of is a plain line on stderr, and a save that fails is told of once."""
    log, handler, hook = logging.getLogger("heed"), logging.StreamHandler(), sys.unraisablehook

    def unraisable(error: "sys.UnraisableHookArgs") -> None:
        # When one file of a checkpoint cannot be written, Orbax no longer listens to those that write the others.
        if "Event loop is closed" not in str(error.exc_value):
            hook(error)

    log.addHandler(handler)
    log.propagate, sys.unraisablehook = False, unraisable
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate, sys.unraisablehook = True, hook
