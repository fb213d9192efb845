"""Says what a run's answer is due to, beside whether each method that says so is faithful on this model:

.venv/bin/python -m launch.explain --workdir=runs/quickstart --input='def main('

The first time for a checkpoint, faithfulness is measured on its own validation set, which takes some minutes; the run's
folder keeps it. What is explained, if nobody says otherwise: the predicted class, the next token behind the last one,
or the token at <mask>.
"""

import argparse
import contextlib
import dataclasses
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from eval.explain import intended
from eval.explain.asking import COLUMNS, Given, asked_for, continued, read
from eval.explain.explaining import chosen, explained, texts_of, written
from eval.explain.faithfulness import elsewhere, kept
from eval.explain.faithfulness.validation import baseline, kind_of_target
from eval.explain.files.reading import examples
from eval.explain.files.result import Result, provenance, save
from eval.explain.methods.table import METHODS, Asked
from eval.explain.page.collect import check_page
from eval.explain.page.packing import BUDGET, Head
from eval.explain.page.write import write
from eval.explain.reporting import (
    arrays,
    contents,
    full_provenance,
    heading,
    parsed_heads,
    provenance_facts,
    strongest,
)
from eval.explain.sites import find, layers_of, listed
from eval.explain.words import grouped, parsed
from eval.runs import Run, open_run
from launch import cli
from model.errors import UserError
from train.run.files.learned import PLACES
from train.run.files.naming import check_length

FLAGS = (
    ("inputs", "FILE", "more inputs: a line each, or JSON lines (.jsonl) with the columns of the task's own data"),
    ("methods", "A,B", f"default all that make sense for the model: {', '.join(METHODS)}"),
    ("target", "NAME", "what is explained: a class, a tag, or a token, such as ' return' or '(end)'"),
    ("against", "NAME", "explain what speaks for the target and not for this one"),
    ("continuation", "TEXT", "explain the probability of this text behind each input"),
    ("baseline", "NAME", "what tokens are compared with: mean (of all vectors; default), zero, end, pad or mask"),
    ("spans", "A:B,C:D", "print what these spans of characters count for, instead of tokens"),
    ("out", "FILE.html", "write a page that opens by double click: maps, heads, faithfulness"),
    ("heads", "PLACE.L.H,...", "show these heads whole, such as stack.attention.3.1; default the most important"),
    ("attributions", "FILE", "judge maps of these inputs that were made elsewhere, as --json or --arrays writes them"),
    ("intended", "FILE", "spans that should matter, a line such as 0:5,9:12 of each input: how much they do"),
    ("json", "FILE.json", "write all numbers"),
    ("arrays", "FILE.safetensors", "write all numbers, and the attention weights"),
    ("capture", "A,B", "what else --arrays holds, by the names of --sites; stack.residual: of all layers"),
)


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("explain", __doc__ or "", config=False)
    made.add_argument("--input", action="append", default=[], help="a text, or a source; may be given more than once")
    for name, shape, text in FLAGS:
        made.add_argument(f"--{name}", metavar=shape, default="", help=text)
    made.add_argument("--at", type=int, help="the place, from 0 on, whose answer is explained")
    made.add_argument("--generate", type=int, metavar="N", help="explain each of N tokens that the model writes")
    made.add_argument("--words", action="store_true", help="print words instead of tokens: sums of their pieces")
    made.add_argument("--budget", type=int, default=BUDGET, metavar="BYTES", help="of the page, at most")
    made.add_argument("--full-provenance", action="store_true", help="let the page name user, host and folder")
    made.add_argument("--sites", action="store_true", help="list what can be captured of the model, and end")
    return made


def main(argv: Sequence[str]) -> None:
    """Prints, for each input and method, the strongest tokens and the word; writes what is asked for."""
    flags, overrides = cli.parse(parser(), argv)
    if others := [key for key in overrides if key not in PLACES]:
        raise UserError(
            f"--config.{others[0]}: a run keeps the config it was trained with, but for where its text lies "
            f"({', '.join(PLACES)}); leave this out."
        )
    for one in ("out", "json", "arrays"):
        _check_name(one, getattr(flags, one))
    if flags.spans and flags.words:
        raise UserError(f"--spans={flags.spans} says what is printed instead of tokens: leave out --words.")
    if not flags.out and (flags.heads or flags.full_provenance or flags.budget != BUDGET):
        one = "heads" if flags.heads else "full-provenance" if flags.full_provenance else "budget"
        raise UserError(f"--{one} is of a page; give --out=FILE.html, too.")
    run = open_run(flags.workdir, overrides)
    with run.placed():
        if flags.sites:
            _list_sites(run)
            return
        _explain(run, flags)


def _explain(run: Run, flags: argparse.Namespace) -> None:
    methods = chosen(run, [name for name in flags.methods.split(",") if name])
    texts = examples(flags.input, flags.inputs, COLUMNS[run.experiment.task.HEAD][0])
    asked = _asked(run, flags, texts)
    captured = [name for name in flags.capture.split(",") if name]
    if captured and not flags.arrays:
        raise UserError(f"--capture={flags.capture} is written nowhere; give --arrays=FILE.safetensors.")
    if captured:
        find(layers_of(run.model, **asked[0][0].inputs), captured)
    spans, heads = parsed(flags.spans) if flags.spans else [], parsed_heads(flags.heads)
    for given, *_ in asked:
        grouped(run.tokenizer, given.tokens, spans, flags.words)  # refuses before anything is computed
    if (flags.attributions or flags.intended) and flags.generate is not None:
        raise UserError("--generate explains each token by itself: leave out --attributions and --intended.")
    source, compared = provenance(run), flags.baseline or "mean"
    questions = [Asked(run.model, one.inputs, target, baseline(run, one.inputs, compared)) for one, target, _ in asked]
    (first, *_), rows = asked[0], len(asked[0][1].places_BP)
    if flags.out:  # before anything is computed
        shown = zip(questions, [given.tokens for given, *_ in asked], strict=True)
        check_page(list(shown), heads, flags.budget, matrix=flags.generate is not None)
    if flags.attributions:
        others = elsewhere.read_maps(flags.attributions, questions[0], texts_of(run, first), source["parameters"])
    if flags.intended:
        meant = intended.meant(run.tokenizer, first.tokens, intended.read_spans(flags.intended, rows))
    found = [
        explained(run, question, given, kind, methods, compared, source)
        for question, (given, _, kind) in zip(questions, asked, strict=True)
    ]
    table = kept.table_or_why(run, cli.say, source["parameters"], kind_of_target(*asked[0][1:]), compared)
    cli.say(heading(run, flags.workdir, table))
    for (given, *_), results in zip(asked, found, strict=True):
        groups = grouped(run.tokenizer, given.tokens, spans, flags.words)
        cli.say(strongest(results, table, groups, bool(spans) or flags.words))
    more: dict[str, Any] = {}
    if flags.attributions:
        judged = elsewhere.judged_elsewhere(questions[0], others)
        more["attributions"] = {name: row._asdict() for name, row in judged.items()}
        cli.say(f"{flags.attributions}, by the {rows} inputs that are given:\n{elsewhere.told(judged)}")
    if flags.intended:
        looked = intended.intended(questions[0], meant, found[0])
        more["intended"] = [one._asdict() for one in looked]
        cli.say(intended.told(looked, [name for name in found[0] if table.word(name) == "faithful here"]))
    every = list(zip(questions, [given for given, *_ in asked], found, strict=True))
    _write(run, flags, every, table, heads, captured, more)


def _write(
    run: Run,
    flags: argparse.Namespace,
    rows: Sequence[tuple[Asked, Given, dict[str, list[Result]]]],
    table: kept.Table,
    heads: Sequence[Head],
    captured: Sequence[str],
    beside: dict[str, Any],
) -> None:
    """Writes what is asked for."""
    whole = [result for *_, results in rows for some in results.values() for result in some]
    beside |= {"faithfulness": dataclasses.asdict(table) | {"rows": {k: v._asdict() for k, v in table.rows.items()}}}
    if flags.out:
        facts = provenance_facts(whole[0].provenance, run.config.train.seeds, flags.baseline or "mean")
        facts |= full_provenance(run) if flags.full_provenance else {}
        more: dict[str, Any] = {"matrix": flags.generate is not None, "heads": heads, "facts": facts}
        more |= {"commands": {"This page, from the run's folder": _again(flags)}}
        shown = [content for one in rows for content in contents(run, *one, table, **more)]
        with _writing("out", flags.out):
            left = write(flags.out, shown, heads, flags.budget)
        cli.say("\n".join([f"page: {flags.out}", *(f"  left out: {one}" for one in left)]))
    if flags.json:
        with _writing("json", flags.json):
            save(whole, flags.json, beside=beside)
        cli.say(f"numbers: {flags.json}")
    if flags.arrays:
        own = arrays(run, [given for _, given, _ in rows], captured)
        with _writing("arrays", flags.arrays):
            save(whole, flags.arrays, own, beside)
        cli.say(f"arrays: {flags.arrays}")


def _asked(run: Run, flags: argparse.Namespace, texts: list[dict[str, Any]]) -> list[tuple[Given, Any, str]]:
    """The rows to explain, with their targets: of all inputs together, or of each where it is written on."""
    named = [name for name in ("continuation", "generate") if getattr(flags, name)]
    if len(named) == 2 or (named and (flags.target or flags.against or flags.at is not None)):
        others = [name for name in ("generate", "target", "against", "at") if getattr(flags, name) not in (None, "")]
        raise UserError(f"--{named[0]} says what is explained: leave out --{next(o for o in others if o != named[0])}.")
    if flags.generate is not None:
        return [written(run, read(run, [one]), flags.generate) for one in texts]
    if flags.continuation:
        return [continued(run, texts, flags.continuation)]
    return [asked_for(run, read(run, texts), at=flags.at, target=flags.target, against=flags.against)]


def _list_sites(run: Run) -> None:
    names = listed(run.model, **read(run, [dict.fromkeys(COLUMNS[run.experiment.task.HEAD], "a")]).inputs)
    width = max(len(name) for name, _ in names)
    cli.say("\n".join(f"{name:<{width}}  {meaning}" for name, meaning in names))
    cli.say("Without its number, as stack.residual, a name is that of all layers.")


def _again(flags: argparse.Namespace) -> str:
    """The command, as it is typed in the run's folder: of files only their names, and no place of this machine."""
    words = [f"--input={text}" for text in flags.input]
    words += [f"--{name}={Path(getattr(flags, name)).name}" for name in ("inputs", "out") if getattr(flags, name)]
    told = "methods", "target", "against", "continuation", "baseline", "spans", "heads", "at", "generate"
    words += [f"--{name}={getattr(flags, name)}" for name in told if getattr(flags, name) not in (None, "")]
    words += [f"--budget={flags.budget}"] * (flags.budget != BUDGET)
    return shlex.join(["python", "-m", "launch.explain", "--workdir=.", *words])


@contextlib.contextmanager
def _writing(flag: str, name: str) -> Iterator[None]:
    """Inside, a file is written.

    Raises:
        UserError: it cannot be.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise UserError(
            f"--{flag}={name} cannot be written ({reason}): what is above is not lost, nor the table of faithfulness; "
            "give a place with room."
        ) from None


def _check_name(flag: str, name: str) -> None:
    ending = {"out": ".html", "json": ".json", "arrays": ".safetensors"}[flag]
    check_length(f"--{flag}", name)
    if name and (Path(name).suffix != ending or not Path(name).parent.is_dir()):
        raise UserError(f"--{flag}={name} must be a {ending} file in a folder that exists.")


if __name__ == "__main__":
    cli.run(main)
