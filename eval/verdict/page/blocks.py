"""A document as a list of blocks, each of which is HTML and Markdown: what one shows, the other shows."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Line:
    """A paragraph; `kind` is its class in the style, such as 'good'."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table: what it shows, the names of its columns, and its rows, of which the first cell is a name."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


@dataclass(frozen=True)
class Picture:
    """Inline SVG, and what it shows in words; Markdown has the words alone."""

    svg: str
    words: str


@dataclass(frozen=True)
class Command:
    """A command to be typed, and what it does."""

    name: str
    text: str


Block = Heading | Line | Items | Grid | Picture | Command


def plain(text: str) -> str:
    """The text on one line, with the code of each character that shows nothing or turns its neighbours around."""
    return "".join(one if one.isprintable() else f"<U+{ord(one):04X}>" for one in text)


def safe(text: str) -> str:
    """The text for HTML, between tags or quotes."""
    return escape(plain(text))


def html(block: Block) -> str:
    """A block as HTML that is well-formed XML, too."""
    match block:
        case Heading(text, level):
            return f"<h{level}>{safe(text)}</h{level}>"
        case Line(text, kind):
            return f'<p class="{kind}">{safe(text)}</p>' if kind else f"<p>{safe(text)}</p>"
        case Items(texts):
            return f"<ul>{''.join(f'<li>{safe(text)}</li>' for text in texts)}</ul>"
        case Grid(caption, columns, rows, numbers):
            head = "".join(f'<th scope="col">{safe(name)}</th>' for name in columns)
            body = "\n".join(f"<tr>{_row(row)}</tr>" for row in rows)
            inside = f"<caption>{safe(caption)}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody>"
            # A wide table moves inside of its box, which the keyboard reaches; the page keeps its width.
            box = f'role="region" aria-label="{safe(caption)}" tabindex="0"'
            return f'<div class="wide" {box}><table class="{"numbers" if numbers else "words"}">{inside}</table></div>'
        case Picture(svg, words):
            return f"<figure>{svg}<figcaption>{safe(words)}</figcaption></figure>"
        case Command(name, text):
            return f'<p>{safe(name)}</p><pre class="wide" tabindex="0"><code>{safe(text)}</code></pre>'


def _row(cells: Sequence[str]) -> str:
    kind = ' class="long"' if len(cells[0]) > 20 else ""  # beside many columns it would have a word in a line
    return f'<th scope="row"{kind}>{safe(cells[0])}</th>' + "".join(f"<td>{safe(cell)}</td>" for cell in cells[1:])


def markdown(block: Block) -> str:
    """A block as Markdown, with tables as GitHub has them."""
    match block:
        case Heading(text, level):
            return f"{'#' * level} {marked(text)}"
        case Line(text, kind):
            return f"**{marked(text)}**" if kind else _first(text)
        case Items(texts):
            return "\n".join(f"- {_first(text)}" for text in texts)
        case Grid(caption, columns, rows, numbers):
            rule = f"| --- |{(' ---: |' if numbers else ' --- |') * (len(columns) - 1)}"
            return "\n".join([_first(caption), "", _cells(columns), rule, *map(_cells, rows)])
        case Picture(_, words):
            return _first(words)
        case Command(name, text):
            return f"{_first(name)}\n\n    {plain(text)}"


def marked(text: str) -> str:
    """The text for Markdown, in which nothing means anything but itself."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escape(plain(text), quote=False))


def _first(text: str) -> str:
    """The text where a line begins, at which more has a meaning: lists, headings, quotes."""
    return re.sub(r"^(\d*)([-+#.=])", r"\1\\\2", marked(text).lstrip())


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(marked(cell) for cell in cells)} |"
