"""What the sources of examples share that read the standard library: syntax trees, and where a node stands."""

import ast
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from train.data.stdlib import source_files


def parsed_files(folder: Path, while_waiting: Callable[[], object]) -> Iterator[tuple[str, str, ast.Module]]:
    """Yields (path, text, tree) of each file of the library in `folder`.

    One of a newer grammar is left out, and so are the tables of `encodings`. For each file `while_waiting` is
    called, and may raise.
    """
    for path, text in source_files(folder):
        while_waiting()
        if path.startswith("encodings/"):
            continue
        tree = parsed(text)
        if tree:
            yield path, text, tree


def parsed(text: str) -> ast.Module | None:
    """Returns the tree of a source text, None where this Python cannot read it."""
    with warnings.catch_warnings(action="ignore"):  # of escapes that are none
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):  # the latter for a null character
            return None


class Places:
    """Where syntax nodes, which count UTF-8 bytes of a line, stand among the characters of a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = text.split("\n")
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def at(self, line: int, column: int) -> int:
        """Returns the place of a line, from 1, and a byte of it, from 0."""
        text = self._lines[line - 1]
        return self._starts[line - 1] + (column if text.isascii() else len(text.encode()[:column].decode()))

    def find(self, word: str, start: int) -> int:
        """Returns where a whole word, or some with dots between, stands first from a place on."""
        while True:
            start = self._text.index(word, start)
            around = self._text[start - 1 : start] + self._text[start + len(word) : start + len(word) + 1]
            if not any(letter.isidentifier() or letter.isdigit() for letter in around):
                return start
            start += 1

    def of(self, node: ast.expr | ast.stmt | ast.arg) -> slice:
        """Returns the characters of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return slice(self.at(node.lineno, node.col_offset), self.at(node.end_lineno, node.end_col_offset))
