"""What all commands share: flags, config overrides, and one sentence for an error of the user's."""

import argparse
import contextlib
import difflib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import jax

from launch import configs, output
from model.errors import UserError
from train.run.files.disk import FullDisk
from train.run.files.naming import check_length

_PREFIX = "--config."


class Parser(argparse.ArgumentParser):
    """An argparse parser that refuses with a UserError."""

    def error(self, message: str) -> NoReturn:
        """Raises argparse's sentence, with the command that explains the flags."""
        raise UserError(f"{message}; see {self.prog} --help.")

    def flags(self) -> dict[str, str]:
        """Returns {its name with hyphens: the name that argparse knows} of every flag, such as '--workdir'."""
        names = [flag for action in self._actions for flag in action.option_strings]
        return {_hyphened(name): name for name in names}


def make_parser(command: str, description: str, config: bool = True, workdir: bool = True) -> Parser:
    """Returns the parser of `python -m launch.<command>`, with --config and --workdir where it takes them."""
    parser = Parser(
        prog=f"python -m launch.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=configs.help_text() if config else None,
    )
    if config:
        parser.add_argument("--config", required=True, help="file and variant, such as configs/gpt.py:quickstart")
    if workdir:
        parser.add_argument("--workdir", required=True, help="the run's folder, such as runs/try")
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the flags, and the overrides {'train.steps': '9'} given as --config.train.steps=9.

    In a flag's name, a hyphen and an underscore are the same.

    Raises:
      UserError: a flag is unknown, misses its value, or is missing, or the folder's name is empty.
    """
    rest, overrides = split_overrides(argv)
    # Unknown flags first: a misspelt required flag would otherwise be reported as missing.
    known = parser.flags()
    for at, word in enumerate(rest):
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            continue
        if _hyphened(flag) not in known:
            names = [*known.values(), *(_PREFIX + key for key in configs.comments())]
            near = difflib.get_close_matches(flag, names, n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise UserError(f"{flag}: there is no such flag{hint}; see {parser.prog} --help.")
        rest[at] = known[_hyphened(flag)] + equals + value
    flags = parser.parse_args(rest)
    if getattr(flags, "workdir", None) == "":
        raise UserError("--workdir is empty: give the run's folder, such as --workdir=runs/try.")
    for flag in ("workdir", "attention"):
        check_length(f"--{flag}", getattr(flags, flag, None) or "")
    return flags, overrides


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
            raise UserError(f"{word} has no value: write {word}=VALUE.")
        overrides[key.replace("-", "_")] = value
    return rest, overrides


def _hyphened(flag: str) -> str:
    return flag.replace("_", "-")


def say(text: str, end: str = "\n") -> None:
    """Prints on stdout, on the first of several processes only."""
    if jax.process_index() == 0:
        print(text, end=end, flush=True)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command on the words of the command line; a UserError is its last line on stderr, and exit status 2.

    Ctrl-C ends it with status 130, and a reader of its output that has gone with 141, as is usual; both without a word.
    """
    output.open_streams()
    try:
        with _plain_stderr():
            main(sys.argv[1:])
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except output.ClosedOutput:
        sys.exit(141)
    except UserError as error:
        with output.unheard():
            sys.stdout.flush()
        print(error, file=sys.stderr, flush=True)
        if isinstance(error, FullDisk):
            os._exit(2)  # what is open cannot be flushed, of which Python would tell with tracebacks
        sys.exit(2)


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
