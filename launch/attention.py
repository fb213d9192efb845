"""Says which attention core is exact for what: `python -m launch.attention --table`.

For one config on this machine: `python -m launch.attention --config=configs/gpt.py:gpt2`.

An exact cell is one whose output and gradients the tests compare with float64; what they cannot run here says so."""

import argparse
from collections.abc import Iterator, Sequence

from launch import cli
from launch.configs import load
from launch.train import check
from model.attention import CORES, Core, Refusal, Request
from model.attention.conditions import examples
from model.errors import UserError

EVIDENCE = {"tested": "exact", "interpreted": "exact, interpreted", "untested": "untested"}


def table() -> str:
    """The cores beside all conditions, as Markdown; the same on every machine: each core is asked for its home."""
    notes: list[str] = []
    rows: list[tuple[list[str], list[str]]] = []
    for name, example in examples().items():
        cells = [_cell(core.refusal(example.request(core)), core.evidence, notes) for core in CORES.values()]
        if rows and rows[-1][1] == cells:
            rows[-1][0].append(name.replace("|", "\\|"))
        else:
            rows.append(([name.replace("|", "\\|")], cells))
    lines = [["", *CORES], ["---"] * (len(CORES) + 1), ["runs on", *map(_home, CORES.values())]]
    lines += [["; ".join(names), *cells] for names, cells in rows]
    notes = [f"{number}. {text}" for number, text in enumerate(notes, 1)]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes])


def explain(request: Request) -> Iterator[str]:
    """One line for each core: exact, or why not and what to change."""
    for name, core in CORES.items():
        no = core.refusal(request)
        yield f"{name:<10} {f'refused: {no.reason}; {no.fix}' if no else EVIDENCE[core.evidence]}"


def _cell(no: Refusal | None, evidence: str, notes: list[str]) -> str:
    if no is None:
        return EVIDENCE[evidence]
    note = f"{no.reason}; {no.fix}."
    if note not in notes:
        notes.append(note)
    return f"no ({notes.index(note) + 1})"


def _home(core: Core) -> str:
    return "several devices" if core.context > 1 else "all" if core.platform == "cpu" else core.platform.upper()


def main(argv: Sequence[str]) -> None:
    """Prints the table, or what each core says of a config's training on this machine."""
    parser = cli.make_parser("attention", __doc__ or "", config=False, workdir=False)
    parser.add_argument("--table", action="store_true", help="every core under every condition")
    parser.add_argument("--config", default="", help="file and variant, such as configs/gpt.py:quickstart")
    flags, overrides = cli.parse(parser, argv)
    _check_flags(flags, overrides)
    if flags.table:
        print(table())
        return
    experiment = check(load(flags.config, **overrides))
    print("\n".join(explain(experiment.request)))
    print(f"{experiment.config.model.core} takes {experiment.attention.name}")


def _check_flags(flags: argparse.Namespace, overrides: dict[str, str]) -> None:
    if flags.table == bool(flags.config) or (flags.table and overrides):
        raise UserError("give either --table or --config, such as --config=configs/gpt.py:quickstart.")


if __name__ == "__main__":
    cli.run(main)
