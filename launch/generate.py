"""Writes on from a prompt, or what becomes of a source:

.venv/bin/python -m launch.generate --workdir=runs/try --prompt='def main('
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from eval.attention_picture import attention_figure, check_looks
from eval.generation import generate, generate_by_beam
from eval.prompting import DEFAULT_NEW_TOKENS
from eval.runs import open_run
from launch import beams, cli, hosts
from model.beam import Beam
from model.errors import UserError

Write = Callable[..., list[str]]
FLAGS = (
    ("max_new_tokens", int, None, f"most tokens to write, default {DEFAULT_NEW_TOKENS} or as many as the model takes"),
    ("temperature", float, 1.0, "0 always takes the likeliest token"),
    ("top_k", int, 0, "draw from the k likeliest tokens; 0: from all"),
    ("top_p", float, 1.0, "draw from the likeliest tokens that hold this share of the probability"),
    ("min_p", float, 0.0, "draw from the tokens at least this many times as probable as the likeliest"),
    ("seed", int, 0, "of the draws"),
)


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("generate", __doc__ or "", config=False)
    made.add_argument(
        "--prompt", action="append", default=[], help="text to go on from, or a source; may be given more than once"
    )
    made.add_argument("--attention", metavar="FILE.png", help="write what the first prompt's tokens look at")
    hosts.add_flags(made)
    for name, kind, default, text in FLAGS:
        made.add_argument(f"--{name}", type=kind, default=default, help=text)
    beams.add_flags(made)
    return made


def main(argv: Sequence[str]) -> None:
    """Prints each prompt and what the run's model makes of it; one prompt is written on while you watch."""
    flags, overrides = cli.parse(parser(), argv)
    if overrides:
        raise UserError(
            f"--config.{next(iter(overrides))}: a run keeps the config it was trained with; leave this out."
        )
    if not all(flags.prompt) or not flags.prompt:
        raise UserError("the prompt is empty; give some text: --prompt=TEXT.")
    if not 0 <= flags.seed < 2**32:
        raise UserError(f"--seed={flags.seed} must be at least 0 and below 2^32.")
    picture = _picture_path(flags.attention) if flags.attention else None
    beam = beams.asked_for(flags)
    drawn = [name for name, _, default, _ in FLAGS[1:] if getattr(flags, name) != default]
    if beam and drawn:
        raise UserError(f"--beam={flags.beam} draws nothing: leave out --{drawn[0]}, or the beam.")
    with hosts.joined(flags):
        _write(flags, beam, picture)


def _write(flags: argparse.Namespace, beam: Beam | None, picture: Path | None) -> None:
    run = open_run(flags.workdir)
    if picture:
        check_looks(run.model)
    settings = {name: getattr(flags, name) for name, *_ in FLAGS}
    write: Write = functools.partial(generate, run.model, run.tokenizer, **settings)
    if beam:
        write = functools.partial(
            generate_by_beam, run.model, run.tokenizer, beam=beam, max_new_tokens=flags.max_new_tokens
        )
    # What becomes of a source does not go on from it.
    goes_on = "target" not in run.model.config.HEADS
    with run.placed():
        if len(flags.prompt) == 1 and not beam:
            _print_one(write, flags.prompt[0], goes_on)
        else:
            for prompt, text in zip(flags.prompt, write(flags.prompt), strict=True):
                title = f"=== {prompt!r}\n" if len(flags.prompt) > 1 else ""
                cli.say(f"{title}{prompt if goes_on else ''}{text}")
        if picture:
            figure = attention_figure(run.model, run.tokenizer, flags.prompt[0])
            if jax.process_index() == 0:
                figure.savefig(picture, dpi=120)
            cli.say(f"attention: {picture}")


def _print_one(write: Write, prompt: str, goes_on: bool) -> None:
    shown, before = False, prompt if goes_on else ""

    def show(index: int, text: str) -> None:
        nonlocal shown
        cli.say(text if shown else before + text, end="")
        shown = True

    write(prompt, stream=show)
    cli.say("" if shown else before)


def _picture_path(name: str) -> Path:
    path = Path(name)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise UserError(f"--attention={name} must be a .png file in a folder that exists.")
    return path


if __name__ == "__main__":
    cli.run(main)
