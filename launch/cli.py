"""What all commands share: flags, config overrides, and one sentence for an error of the user's."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from launch import configs
from model.errors import UserError

_PREFIX = "--config."


class Parser(argparse.ArgumentParser):
    """An argparse parser that refuses with a UserError."""

    def error(self, message: str) -> NoReturn:
        """Raises argparse's sentence, with the command that explains the flags."""
        raise UserError(f"{message}; see {self.prog} --help.")

    def flags(self) -> list[str]:
        """Returns every flag that it knows, such as '--workdir'."""
        return [flag for action in self._actions for flag in action.option_strings]


def make_parser(command: str, description: str, config: bool = True) -> Parser:
    """Returns the parser of `python -m launch.<command>`, with --workdir, and with --config if it takes one."""
    parser = Parser(
        prog=f"python -m launch.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=f"keys of a config, and their defaults (configs/base.py):\n{configs.help_text()}",
    )
    if config:
        parser.add_argument("--config", required=True, help="file and variant, such as configs/gpt.py:quickstart")
    parser.add_argument("--workdir", required=True, help="the run's folder, such as runs/try")
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the flags, and the overrides {'train.steps': '9'} given as --config.train.steps=9.

    Raises:
      UserError: a flag is unknown, misses its value, or is missing.
    """
    rest, overrides = split_overrides(argv)
    # Unknown flags first: a misspelt required flag would otherwise be reported as missing.
    known = parser.flags()
    for flag in (word.partition("=")[0] for word in rest if word.startswith("--")):
        if flag not in known:
            near = difflib.get_close_matches(flag, known + [_PREFIX + key for key in configs.comments()], n=1)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise UserError(f"{flag}: there is no such flag{hint}; see {parser.prog} --help.")
    return parser.parse_args(rest), overrides


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
        overrides[key] = value
    return rest, overrides


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command on the words of the command line; a UserError is its last line on stderr, and exit status 2."""
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stdout.flush()
        print(error, file=sys.stderr, flush=True)
        sys.exit(2)
