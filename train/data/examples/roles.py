"""Tagging: what role does each name of a source text play? Its spelling does not say."""

import ast
import io
import itertools
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

from train.data.examples.scopes import roles_of
from train.data.examples.source import Places, parsed_files
from train.data.examples.types import Made, Tagged
from train.data.stdlib import split_of

ROLES = ("function", "class", "parameter", "attribute", "module", "local", "called")
TAGS = ("O", *(f"{mark}-{role}" for role in ROLES for mark in "BI"))
WORDS = 64  # of an example, at most
BEYOND, TOO_LONG = "lines beyond the first words of their functions", "lines of too many words"
LONGEST = 20  # characters of a string; a longer one is written '...'
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
# A formatted string is one token in Python 3.11 and many in later ones; here it is one word.
_OPENS, _CLOSES = (
    {getattr(tokenize, f"{kind}STRING_{end}") for kind in "FT" if hasattr(tokenize, f"{kind}STRING_{end}")}
    for end in ("START", "END")
)
Word = tuple[int, str]  # its place among the characters of the text, and itself


def roles(folder: Path, words: int = WORDS, while_waiting: Callable[[], object] = lambda: None) -> Made:
    """Returns the words of the library in `folder`, tagged by the roles of names, and what was left out.

    An example is the beginning of a function or method, whole lines of at most `words` words (what follows does not
    show its arguments, and is left out), or some lines outside of functions. Comments and strings that stand alone are
    no words. A dotted module is one entity. Files are split as `python_stdlib` is; what 'validation' holds, 'train'
    does not.
    """
    found: dict[str, dict[tuple[str, ...], Tagged]] = {"train": {}, "validation": {}}
    counted = {BEYOND: 0, TOO_LONG: 0}
    for path, text, tree in parsed_files(folder, while_waiting):
        split = split_of(path)
        if split not in found:
            continue
        known = roles_of(tree, Places(text))
        for lines in _groups(list(_lines(text)), tree, words, counted):
            some = list(itertools.chain(*lines))
            tagged = Tagged(tuple(word for _, word in some), tuple(known.get(at, "O") for at, _ in some))
            found[split].setdefault(tagged.words, tagged)
    for one in found["validation"]:
        found["train"].pop(one, None)
    return Made({split: list(some.values()) for split, some in found.items()}, counted)


def _lines(text: str) -> Iterator[tuple[int, list[Word]]]:
    """Yields the number of the first line, and the words, of each logical line; blank lines, comments and strings that
    stand alone are none."""
    starts = list(itertools.accumulate(map(len, io.StringIO(text)), initial=0))
    line: list[Word] = []
    first = depth = opened = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        place = starts[token.start[0] - 1] + token.start[1]
        if token.type in _OPENS:
            opened, depth = (opened, depth + 1) if depth else (place, 1)
        elif token.type in _CLOSES:
            depth -= 1
            if not depth:
                line.append((opened, _shortened(text[opened : starts[token.end[0] - 1] + token.end[1]])))
        elif token.type == tokenize.NEWLINE:
            if len(line) > 1 or (line and line[0][1][-1] not in "'\""):
                yield first, line
            line = []
            continue
        elif not depth and token.type not in _SILENT:
            line.append((place, _shortened(token.string) if token.type == tokenize.STRING else token.string))
        if len(line) == 1:
            first = token.start[0]


def _shortened(string: str) -> str:
    return string if len(string) <= LONGEST else "'...'"


def _groups(
    lines: list[tuple[int, list[Word]]], tree: ast.Module, most: int, counted: dict[str, int]
) -> Iterator[list[list[Word]]]:
    """Yields the lines of each example."""
    function_of = {number: i for i, numbers in enumerate(_outermost(tree)) for number in numbers}
    for function, numbered in itertools.groupby(lines, key=lambda line: function_of.get(line[0])):
        some = [line for _, line in numbered]
        while some:
            sizes = itertools.accumulate(map(len, some))
            taken = sum(size <= most for size in sizes)
            if taken:
                yield some[:taken]
            else:
                counted[TOO_LONG] += 1
            some = some[max(taken, 1) :]
            if function is not None:
                counted[BEYOND] += len(some)
                break


def _outermost(tree: ast.AST) -> list[range]:
    """The functions that stand in none, as the numbers of their lines, from the first decorator on."""
    found = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            assert node.end_lineno is not None
            found.append(range(first, node.end_lineno + 1))
        else:
            waiting += [one for one in ast.iter_child_nodes(node) if isinstance(one, ast.stmt | ast.ExceptHandler)]
    return found
