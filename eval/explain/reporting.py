"""What a page shows of inputs that were explained: maps with their words, heads, the lens, and where it comes from."""

import getpass
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from eval.explain.asking import COLUMNS, Given, asked_for, names, read
from eval.explain.capture import capture_parts
from eval.explain.explaining import chosen, explained
from eval.explain.faithfulness import kept
from eval.explain.faithfulness.validation import TOKENS, baseline, kind_of, kind_of_target
from eval.explain.files.result import Explained, Result, pieces, provenance
from eval.explain.methods.lens import logit_lens
from eval.explain.methods.table import METHODS, Asked
from eval.explain.page.collect import content_of
from eval.explain.page.content import Content, Table, shown
from eval.explain.page.packing import Head
from eval.explain.page.write import cell
from eval.explain.words import summed
from eval.runs import Run
from model.errors import UserError
from model.inspection import sites

STRONGEST = 6  # tokens that are told of a map


class Explanation(NamedTuple):
    """What each method says of one input, by its name; the table of whether they are faithful here; and the page of
    both, as which it shows itself in a notebook.
    """

    results: dict[str, Result]
    table: kept.Table
    content: Content

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return cell(self.content)._repr_mimebundle_(include, exclude)


def explain(
    run: Run,
    example: str | Mapping[str, Any],
    *,
    methods: Sequence[str] = (),
    target: str = "",
    against: str = "",
    at: int | None = None,
    compared: str = "mean",
) -> Explanation:
    """Explains the answer to one example, a text or the columns of the run's task ({"text": ...}), as `launch.explain`.

    The first time for a checkpoint it measures the methods' faithfulness, and says how long that takes.

    Raises:
        UserError: as that command.
    """
    called = chosen(run, methods)
    example = {COLUMNS[run.experiment.task.HEAD][0]: example} if isinstance(example, str) else example
    with run.placed():
        given, asked, kind = asked_for(run, read(run, [example]), at=at, target=target, against=against)
        source, question = provenance(run), Asked(run.model, given.inputs, asked, baseline(run, given.inputs, compared))
        results = explained(run, question, given, kind, called, compared, source)
        table = kept.table_or_why(run, print, source["parameters"], kind_of_target(asked, kind), compared)
        facts = provenance_facts(source, run.config.train.seeds, compared)
        (content,) = contents(run, question, given, results, table, facts=facts, commands={})
    return Explanation({name: one for name, (one,) in results.items()}, table, content)


def contents(
    run: Run,
    asked: Asked,
    given: Given,
    results: Mapping[str, Sequence[Result]],
    table: kept.Table,
    *,
    matrix: bool = False,
    heads: Sequence[Head] = (),
    facts: Mapping[str, str],
    commands: Mapping[str, str],
) -> list[Content]:
    """That of each row; of a `matrix` that of the last token written, with a table by method of all of them."""
    rows, tables = range(len(asked.target.places_BP)), list[Table]()
    if matrix:
        tables, rows = [_matrix(name, some) for name, some in results.items()], rows[-1:]
    notes = [f"Faithfulness: {note}." for note in table.notes]
    others = [
        f"{name.replace('_', ' ')}: it makes no sense for this model."
        for name in METHODS
        if not METHODS[name].serves(run.model)
    ]
    counts = {row.examples: row.few for row in table.rows.values()}
    for examples, few in counts.items():
        notes.append(
            f"Faithfulness is that of answers of this kind ({table.kind}) on {examples} examples of its validation set "
            f"(cut to {TOKENS} tokens); sufficiency, infidelity and sensitivity are of the first {few}."
        )
    found = []
    for row in rows:
        some = [one[row] for one in results.values()]
        lens, left = _lens(run, asked, given, row)
        told: dict[str, Any] = {"text": _text(run, given, row), "answer": sentence(some[0].target), "facts": facts}
        told |= {"verdicts": table.rows, "tables": tables, "notes": notes, "commands": commands, "lens": lens}
        found.append(content_of(asked, some, row, heads, left_out=[*others, *left], **told))
    return found


def heading(run: Run, workdir: str, table: kept.Table) -> str:
    """What stands above all answers: of which run, and what its faithfulness is of."""
    seeds, examples = run.config.train.seeds, max([row.examples for row in table.rows.values()], default=0)
    lines = [f"of the {seeds} seeds, the first: {run.config.train.seed}"] * (seeds > 1)
    told = f"that of answers of this kind ({table.kind}), by {examples} examples of its validation set"
    return "\n".join(
        [*lines, f"{workdir}, step {run.step}; faithfulness is {told}", *(f"  {one}" for one in table.notes)]
    )


def sentence(target: Explained) -> str:
    """What is explained, in a line."""
    answers = " ".join(map(repr, target.texts)) + (f" and not {target.against_texts[0]!r}" if target.against else "")
    where = f", told at {target.places[0]}" if target.kind != "class" else ""
    value = (
        "log-probability" if target.kind == "continuation" else "difference of logits" if target.against else "logit"
    )
    return f"{target.kind} {answers}{where}: {value} {target.value:.4g}, probability {target.probability:.4g}"


def strongest(
    results: Mapping[str, Sequence[Result]], table: kept.Table, groups: list[dict[str, list[list[int]]]], named: bool
) -> str:
    """Of each input what is explained, and for each method the word and the tokens with the largest numbers: of a row
    the sums of its `groups` of tokens by site, if these are `named`.
    """
    lines = []
    width = max(map(len, results))
    for row, one in enumerate(next(iter(results.values()))):
        lines.append(sentence(one.target))
        for name, some in results.items():
            error = some[row].error
            missed = "" if error is None else f"; completeness to {error:.1g}"
            said = f"{_strongest(some[row], groups[row], named)}{missed}"
            lines.append(f"  {name:<{width}}  {table.word(name):<18}  {said}")
    return "\n".join(lines)


def _strongest(result: Result, groups: dict[str, list[list[int]]], named: bool) -> str:
    """The tokens, or groups of them, with the largest numbers, each with its number."""
    found = []
    for site, values_n in result.values.items():
        pieces, side = result.pieces[site], f"{site.partition('.')[0]}:" if len(result.values) > 1 else ""
        some = groups[site] if named else [[at] for at in range(len(values_n))]
        own = [[at for at in group if at < len(values_n)] for group in some]
        for group, number in zip(own, summed(values_n, own), strict=True):
            where = "-".join(str(at) for at in dict.fromkeys((*group[:1], *group[-1:])))
            text = f"{side}{where} {''.join(pieces[at] for at in group)!r} {number:+.3g}"
            found.append((abs(float(number)), text))
    shown = sorted(found, key=lambda one: -one[0])[:STRONGEST]
    return "  ".join(text for _, text in shown)


def provenance_facts(source: Mapping[str, Any], seeds: int, compared: str) -> dict[str, str]:
    """What stands above a page of all that its numbers depend on; neither who nor where."""
    said = {name: "unknown" if value is None else str(value)[:16] for name, value in source.items()}
    said |= {"compared with": compared}
    return said | ({"seeds": f"{seeds}, of which the first"} if seeds > 1 else {})


def full_provenance(run: Run) -> dict[str, str]:
    """Who wrote a page, on which machine and of which folder: only where it is asked for."""
    return {"user": getpass.getuser(), "host": socket.gethostname(), "folder": str(run.folder.resolve())}


def _text(run: Run, given: Given, row: int) -> str:
    sides = [run.tokenizer.decode(rows[row]) for rows in given.tokens.values()]
    return " → ".join(reversed(sides)) if len(sides) > 1 else sides[0]


def _matrix(name: str, results: Sequence[Result]) -> Table:
    """What each token that was written is due to: rows of what is written, columns of what was read before."""
    last = results[-1]
    site = sorted(last.values)[-1]  # of pairs, the source
    columns = [shown(piece) for piece in last.pieces[site]]
    rows = []
    for one in results:
        numbers = [f"{value:+.3g}" for value in one.values[site]]
        rows.append([shown(one.target.texts[0]), *numbers, *[""] * (len(columns) - len(numbers))])
    return Table(f"{name.replace('_', ' ')}: what is written (down) by what is read (across)", ["", *columns], rows)


def _lens(run: Run, asked: Asked, given: Given, row: int) -> tuple[Table | None, list[str]]:
    """What the model would say behind each layer at the place of the answer; or why that is not shown."""
    try:
        lens = logit_lens(asked.model, asked.inputs)
    except UserError as error:
        return None, [f"The lens: {error}"]
    answers, shares = np.asarray(lens.answers), np.asarray(lens.probabilities)
    place = (row, int(np.asarray(asked.target.places_BP)[row, 0])) if answers.ndim == 4 else (row,)
    known = names(run) if kind_of(run) in ("class", "tag") else ["start", "stop"] * (kind_of(run) == "span")
    rows = []
    for layer, (some, parts) in enumerate(zip(answers, shares, strict=True)):
        texts = [known[one] for one in some[place]] if known else pieces(run.tokenizer, some[place])
        cells = [f"{shown(text)} {part:.3f}" for text, part in zip(texts, parts[place], strict=True)]
        rows.append([f"layer {layer}", *cells])
    columns = ["behind", *(f"{number}." for number in range(1, answers.shape[-1] + 1))]
    return Table("What the model would say if each layer were its last", columns, rows), []


def parsed_heads(text: str) -> list[Head]:
    """`stack.attention.3.1,...` as heads.

    Raises:
        UserError: it is none.
    """
    parts = [one.rsplit(".", 2) for one in text.split(",") if one]
    if any(len(one) != 3 or not (one[1] + one[2]).isdecimal() for one in parts):
        raise UserError(f"--heads={text} must be as stack.attention.3.1: a place, a layer and a head.")
    return [(place, int(layer), int(head)) for place, layer, head in parts]


def arrays(run: Run, asked: Sequence[Given], more: Sequence[str] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """The attention weights of all rows, (L, B, H, T, S), and what `more` sites have, in the dtype of the model, by the
    number of what is asked and their names, as `capture_parts` gives them.

    Raises:
        UserError: no such site, or one that takes more than may be captured in a single layer.
    """
    for number, given in enumerate(asked):
        names = [name for name in sites(run.model, **given.inputs) if name.endswith(".weights")]
        names += [name for name in more if name not in names]
        for name, x in capture_parts(run.model, names, **given.inputs):
            yield f"{number}.{name}", np.asarray(x)
