"""Says what a run's answer is due to, beside whether each method that says so is faithful on this model:

.venv/bin/python -m launch.explain --workdir=runs/quickstart --input='def main('

The first time for a checkpoint, faithfulness is measured on its own validation set, which takes some minutes; the run's
folder keeps it. What is explained, if nobody says otherwise: the predicted class, the next token behind the last one,
or the token at <mask>.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.explain import intended
from eval.explain.asking import COLUMNS, Given, asked_for, continued, read
from eval.explain.explaining import baseline, chosen, explained, written
from eval.explain.faithfulness import elsewhere, kept
from eval.explain.methods.table import METHODS, Asked
from eval.explain.page.packing import BUDGET
from eval.explain.page.write import write
from eval.explain.reporting import arrays, contents, full_provenance, parsed_heads, provenance_facts, sentence
from eval.explain.result import Result, provenance, save
from eval.explain.sites import find, layers_of, listed
from eval.explain.words import grouped, parsed, summed
from eval.runs import Run, open_run
from launch import cli
from model.errors import UserError
from train.run.files.json_files import loads
from train.run.files.learned import PLACES

STRONGEST = 6  # tokens that are printed of a map
FLAGS = (
    ("inputs", "FILE", "more inputs: a line each, or JSON lines (.jsonl) with the columns of the task's own data"),
    ("methods", "A,B", f"default all that make sense for the model: {', '.join(METHODS)}"),
    ("target", "NAME", "what is explained: a class, a tag, or a token, such as ' return' or '(end)'"),
    ("against", "NAME", "explain what speaks for the target and not for this one"),
    ("continuation", "TEXT", "explain the probability of this text behind each input"),
    ("baseline", "NAME", "what tokens are compared with: mean (of all vectors; default), zero, end, pad or mask"),
    ("spans", "A:B,C:D", "also print what these spans of characters count for"),
    ("out", "FILE.html", "write a page that opens by double click: maps, heads, faithfulness"),
    ("heads", "PLACE.L.H,...", "show these heads whole, such as stack.attention.3.1; default the most important"),
    ("attributions", "FILE", "judge maps of these inputs that were made elsewhere, as --json or --arrays writes them"),
    ("intended", "FILE", "spans that should matter, a line such as 0:5,9:12 of each input: how much they do"),
    ("json", "FILE.json", "write all numbers"),
    ("arrays", "FILE.safetensors", "write all numbers, and the attention weights"),
    (
        "capture",
        "A,B",
        "what else --arrays holds, by the names that --sites lists; stack.residual: of all layers",
    ),
)


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("explain", __doc__ or "", config=False)
    made.add_argument("--input", action="append", default=[], help="a text, or a source; may be given more than once")
    for name, shape, text in FLAGS:
        made.add_argument(f"--{name}", metavar=shape, default="", help=text)
    made.add_argument("--at", type=int, help="the place, from 0 on, whose answer is explained")
    made.add_argument("--generate", type=int, metavar="N", help="explain each of N tokens that the model writes")
    made.add_argument(
        "--words", action="store_true", help="print words in the stead of tokens: the sums of their pieces"
    )
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
    run = open_run(flags.workdir, overrides)
    with run.placed():
        if flags.sites:
            _list_sites(run)
            return
        _explain(run, flags, argv)


def _explain(run: Run, flags: argparse.Namespace, argv: Sequence[str]) -> None:
    methods = chosen(run, [name for name in flags.methods.split(",") if name])
    examples = _examples(run, flags)
    asked = _asked(run, flags, examples)
    captured = [name for name in flags.capture.split(",") if name]
    if captured and not flags.arrays:
        raise UserError(f"--capture={flags.capture} is written nowhere; give --arrays=FILE.safetensors.")
    if captured:
        find(layers_of(run.model, **asked[0][0].inputs), captured)
    spans, heads = parsed(flags.spans), parsed_heads(flags.heads)
    for given, *_ in asked:
        grouped(run.tokenizer, given.tokens, spans, flags.words)  # refuses before anything is computed
    rows = [len(target.places_BP) for _, target, _ in asked]
    if (flags.attributions or flags.intended) and flags.generate is not None:
        raise UserError("--generate explains each token by itself: leave out --attributions and --intended.")
    meant = intended.read_spans(flags.intended, sum(rows)) if flags.intended else []
    source, compared = provenance(run), flags.baseline or "mean"
    questions = [Asked(run.model, one.inputs, target, baseline(run, one.inputs, compared)) for one, target, _ in asked]
    found = [
        explained(run, question, given, kind, methods, compared, source)
        for question, (given, _, kind) in zip(questions, asked, strict=True)
    ]
    table = _table(run, source["parameters"])
    cli.say(_heading(run, flags, table))
    for (given, *_), results in zip(asked, found, strict=True):
        _print(results, table, grouped(run.tokenizer, given.tokens, spans, flags.words), bool(spans) or flags.words)
    if flags.attributions:
        given_maps = elsewhere.read_maps(flags.attributions, questions[0], next(iter(found[0].values())))
        told = elsewhere.told(elsewhere.judged_elsewhere(questions[0], given_maps))
        cli.say(f"{flags.attributions}, by the {rows[0]} inputs that are given:\n{told}")
    if flags.intended:
        looked = intended.intended(questions[0], run.tokenizer, asked[0][0].tokens, meant, found[0])
        cli.say(intended.told(looked, [name for name in found[0] if table.word(name) == "faithful here"]))
    whole = [result for results in found for some in results.values() for result in some]
    beside = {"faithfulness": dataclasses.asdict(table) | {"rows": {k: v._asdict() for k, v in table.rows.items()}}}
    if flags.out:
        facts = provenance_facts(source, run.config.train.seeds, compared)
        facts |= full_provenance(run) if flags.full_provenance else {}
        more: dict[str, Any] = {"matrix": flags.generate is not None, "heads": heads, "facts": facts}
        more |= {"commands": {"This page, from the run's folder": _again(argv)}}
        shown = [
            content
            for question, (given, *_), results in zip(questions, asked, found, strict=True)
            for content in contents(run, question, given, results, table, **more)
        ]
        left = write(flags.out, shown, heads, flags.budget)
        cli.say("\n".join([f"page: {flags.out}", *(f"  left out: {one}" for one in left)]))
    if flags.json:
        save(whole, flags.json, beside=beside)
        cli.say(f"numbers: {flags.json}")
    if flags.arrays:
        save(whole, flags.arrays, arrays(run, [given for given, *_ in asked], captured), beside)
        cli.say(f"arrays: {flags.arrays}")


def _asked(run: Run, flags: argparse.Namespace, examples: list[dict[str, Any]]) -> list[tuple[Given, Any, str]]:
    """The rows to explain, with their targets: of all inputs together, or of each where it is written on."""
    named = [name for name in ("continuation", "generate") if getattr(flags, name)]
    if len(named) == 2 or (named and (flags.target or flags.against or flags.at is not None)):
        others = [name for name in ("generate", "target", "against", "at") if getattr(flags, name) not in (None, "")]
        raise UserError(f"--{named[0]} says what is explained: leave out --{next(o for o in others if o != named[0])}.")
    if flags.generate is not None:
        return [written(run, read(run, [one]), flags.generate) for one in examples]
    if flags.continuation:
        return [continued(run, examples, flags.continuation)]
    return [asked_for(run, read(run, examples), at=flags.at, target=flags.target, against=flags.against)]


def _examples(run: Run, flags: argparse.Namespace) -> list[dict[str, Any]]:
    """The inputs, each with the columns of the run's task.

    Raises:
        UserError: there is none, or a file that cannot be read.
    """
    first = COLUMNS[run.experiment.task.HEAD][0]
    found: list[dict[str, Any]] = [{first: text} for text in flags.input]
    if flags.inputs:
        try:
            lines = Path(flags.inputs).read_text(encoding="utf-8").splitlines()
            for number, line in enumerate(lines, 1):
                one = loads(line) if flags.inputs.endswith(".jsonl") else {first: line}
                if not isinstance(one, dict):
                    raise ValueError(f"line {number} holds no columns")
                found.append(one)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UserError(f"--inputs={flags.inputs} cannot be read ({reason}); give a file of lines.") from None
    if not found:
        raise UserError("there is no input; give --input=TEXT, or --inputs=FILE.")
    return found


def _table(run: Run, parameters: str) -> kept.Table:
    """The faithfulness table, or an empty one that says why."""
    try:
        return kept.table(run, cli.say, parameters)
    except UserError as error:
        cli.say(f"faithfulness: not measured, as the run's validation set cannot be had: {error}")
        return kept.Table(kept.kind_of(run), run.step, "", {}, (f"not measured: {error}",))


def _heading(run: Run, flags: argparse.Namespace, table: kept.Table) -> str:
    lines = [f"of the {run.config.train.seeds} seeds, the first: {run.config.train.seed}"] * (
        run.config.train.seeds > 1
    )
    examples = max([row.examples for row in table.rows.values()], default=0)
    lines.append(f"{flags.workdir}, step {run.step}; faithfulness by {examples} examples of its validation set")
    return "\n".join([*lines, *(f"  {note}" for note in table.notes)])


def _print(
    results: Mapping[str, Sequence[Result]], table: kept.Table, groups: list[dict[str, list[list[int]]]], named: bool
) -> None:
    width = max(map(len, results))
    for row, one in enumerate(next(iter(results.values()))):
        cli.say(sentence(one.target))
        for name, some in results.items():
            error = some[row].error
            missed = "" if error is None else f"; completeness to {error:.1g}"
            cli.say(f"  {name:<{width}}  {table.word(name):<18}  {_strongest(some[row], groups[row], named)}{missed}")


def _strongest(result: Result, groups: dict[str, list[list[int]]], named: bool) -> str:
    """The tokens, or groups of them, with the largest numbers, each with its number."""
    found = []
    for site, values_n in result.values.items():
        pieces, side = result.pieces[site], f"{site.partition('.')[0]}:" if len(result.values) > 1 else ""
        some = groups[site] if named else [[at] for at in range(len(values_n))]
        own = [[at for at in group if at < len(values_n)] for group in some]
        for group, number in zip(own, summed(values_n, own), strict=True):
            found.append((abs(float(number)), f"{side}{''.join(pieces[at] for at in group)!r} {number:+.3g}"))
    shown = sorted(found, key=lambda one: -one[0])[:STRONGEST]
    return "  ".join(text for _, text in shown)


def _sites(run: Run, given: Given) -> list[tuple[str, str]]:
    return listed(run.model, **given.inputs)


def _list_sites(run: Run) -> None:
    names = _sites(run, read(run, [dict.fromkeys(COLUMNS[run.experiment.task.HEAD], "a")]))
    width = max(len(name) for name, _ in names)
    cli.say("\n".join(f"{name:<{width}}  {meaning}" for name, meaning in names))


def _again(argv: Sequence[str]) -> str:
    """The command, as it is typed in the run's folder, without other places of this machine."""
    places = ("--workdir", "--out", "--json", "--arrays", "--inputs", "--config.")
    words = [word for word in argv if not word.startswith(places)]
    return shlex.join(["python", "-m", "launch.explain", "--workdir=.", *words])


def _check_name(flag: str, name: str) -> None:
    ending = {"out": ".html", "json": ".json", "arrays": ".safetensors"}[flag]
    if name and (not name.endswith(ending) or not Path(name).parent.is_dir()):
        raise UserError(f"--{flag}={name} must be a {ending} file in a folder that exists.")


if __name__ == "__main__":
    cli.run(main)
