"""Span questions: "what is the default of argument x?", over the headers of the standard library's functions."""

import ast
import functools
import itertools
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from train.data.examples.source import Places, parsed, parsed_files
from train.data.examples.types import Made, Question
from train.data.stdlib import split_of

_ASKED = re.compile(r"what is the default of argument (\w+)\?")


class Argument(NamedTuple):
    """An argument of a header: where its name and, if it has one, its default stand among the characters."""

    name: str
    named: slice
    default: slice | None
    group: str  # arguments with a default may change places within a group

    @property
    def whole(self) -> slice:
        """From its name to the end of its default."""
        assert self.default is not None
        return slice(self.named.start, self.default.stop)


def questions(folder: Path, while_waiting: Callable[[], object] = lambda: None) -> Made:
    """Returns a question for each argument with a default, of functions with at least two different defaults.

    Files are split as `python_stdlib` is. A header is asked about once, whatever functions have it, and in
    'validation' alone where both splits have it.
    """
    splits: dict[str, dict[str, list[Question]]] = {"validation": {}, "train": {}}
    for path, text, tree in parsed_files(folder, while_waiting):
        split, places = split_of(path), Places(text)
        for node in ast.walk(tree):
            if split in splits and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if len(node.args.defaults) + len(node.args.kw_defaults) > 1:
                    header = _header(node, text, places)
                    splits[split].setdefault(header, asked_of(header))
    for header in splits["validation"]:
        splits["train"].pop(header, None)
    return Made({name: list(itertools.chain(*splits[name].values())) for name in ("train", "validation")})


def asked_of(header: str) -> list[Question]:
    """Returns the questions of one header, in the order of its arguments; none where its defaults are all alike."""
    known = [one for one in arguments(header) if one.default]
    if len({header[one.default] for one in known if one.default}) < 2:
        return []
    return [_question(header, one) for one in known]


def defaults(context: str) -> list[str]:
    """Returns the defaults that stand in a header, in their order; none where it is no header of a function."""
    return [context[one.default] for one in arguments(context) if one.default]


def asked_name(question: str) -> str:
    """Returns the argument that a question asks for; '' where it is another kind of question."""
    found = _ASKED.fullmatch(question)
    return found[1] if found else ""


@functools.lru_cache(2**14)
def arguments(header: str) -> tuple[Argument, ...]:
    """Returns the arguments of a header `def f(a, b=1):` in their order; none where it is no header."""
    tree = parsed(header + "\n pass")
    if tree is None or not tree.body or not isinstance(tree.body[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return ()
    given, places = tree.body[0].args, Places(header)
    positional = [*given.posonlyargs, *given.args]
    groups = [
        *zip(positional[::-1], itertools.chain(given.defaults[::-1], itertools.repeat(None)), strict=False),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
        *((one, None) for one in (given.vararg, given.kwarg) if one),
    ]
    found = []
    for argument, default in groups:
        group = "positional" if argument in positional else "by keyword"
        start = places.of(argument).start
        named = slice(start, start + len(argument.arg))
        found.append(Argument(argument.arg, named, _with_parentheses(header, places, argument, default), group))
    return tuple(sorted(found, key=lambda one: one.named.start))


def varied(train: Sequence[Question]) -> Callable[[Question, int], Question]:
    """Returns how a question is asked anew from 64 random bits.

    Arguments get other names, of those that the questions of `train` ask for, and those with a default change places
    as far as Python allows. The one that is asked for keeps its default.
    """
    pool = sorted({asked_name(one.question) for one in train})

    def anew(question: Question, draw: int) -> Question:
        header, drawn = question.context, random.Random(draw)
        known = arguments(header)
        asked = next(i for i, one in enumerate(known) if one.name == asked_name(question.question))
        names = drawn.sample([name for name in pool if name not in header], len(known))
        order = list(range(len(known)))
        for group in ("positional", "by keyword"):
            places = [i for i in order if known[i].default and known[i].group == group]
            for place, taken in zip(places, drawn.sample(places, len(places)), strict=True):
                order[place] = taken
        return _rewritten(header, known, names, order, asked)

    return anew


def _rewritten(
    header: str, known: Sequence[Argument], names: Sequence[str], order: Sequence[int], asked: int
) -> Question:
    """The question for argument `asked` of a header whose place i holds the argument order[i] under its new name."""
    pieces, length, at, start = list[str](), 0, 0, 0
    for place, taken in enumerate(order):
        old, new = known[place], known[taken]
        part = new.whole if new.default else new.named
        stop = old.whole.stop if old.default else old.named.stop
        written = [header[at : old.named.start], names[taken], header[new.named.stop : part.stop]]
        pieces += written
        length += sum(map(len, written))
        at = stop
        if taken == asked:
            assert new.default is not None
            start = length - (part.stop - new.default.start)
    default = known[asked].default
    assert default is not None
    answer = header[default]
    return Question(_asking(names[asked]), "".join([*pieces, header[at:]]), (answer,), (start,))


def _question(header: str, argument: Argument) -> Question:
    assert argument.default is not None
    return Question(_asking(argument.name), header, (header[argument.default],), (argument.default.start,))


def _asking(name: str) -> str:
    return f"what is the default of argument {name}?"


def _with_parentheses(header: str, places: Places, argument: ast.arg, default: ast.expr | None) -> slice | None:
    """Where a default stands; a node ends before the parentheses that it may stand in, `a=(1 + 2)`."""
    if default is None:
        return None
    start, stop = places.of(default).start, places.of(default).stop
    opened = header[places.of(argument).stop : start].count("(")
    for _ in range(opened):
        start, stop = header.rindex("(", 0, start), header.index(")", stop) + 1
    return slice(start, stop)


def _header(node: ast.FunctionDef | ast.AsyncFunctionDef, text: str, places: Places) -> str:
    """The text of a function before its body, without its indentation."""
    first = node.body[0]
    decorators = getattr(first, "decorator_list", [])
    stop = places.of(first).start
    if decorators:
        stop = text.rindex("@", 0, places.of(decorators[0]).start)
    lines = text[places.at(node.lineno, node.col_offset) : stop].rstrip().split("\n")
    indent = " " * node.col_offset
    return "\n".join([lines[0], *(line.removeprefix(indent) for line in lines[1:])])
