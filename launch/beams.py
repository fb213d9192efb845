"""The flags of commands that can write by a beam."""

import argparse

from launch import cli
from model.beam import FORMS, Beam
from model.errors import UserError

FLAGS = (
    ("beam", int, 0, "write the best of so many hypotheses that are kept alive; 0: no beam"),
    ("beam_alpha", float, 0.6, "how much a beam favours what is long; 0: not at all"),
    ("beam_form", str, "wu", f"how a beam compares lengths: {' or '.join(FORMS)}"),
)


def add_flags(parser: cli.Parser) -> None:
    """Adds them to a command's."""
    for name, kind, default, text in FLAGS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)


def asked_for(flags: argparse.Namespace) -> Beam | None:
    """The beam that these flags mean, if any.

    Raises:
        UserError: a value out of its range, a form that does not exist, or what is of a beam without one.
    """
    if flags.beam:
        return Beam(flags.beam, flags.beam_alpha, flags.beam_form)
    for name, _, default, _ in FLAGS[1:]:
        if (value := getattr(flags, name)) != default:
            raise UserError(f"--{name}={value} is of a beam, and there is none: give --beam=4, or leave it out.")
    return None
