"""A page as one file, and as the cell of a notebook."""

import base64
import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from eval.explain.page import views
from eval.explain.page.content import Content
from eval.explain.page.packing import BUDGET, PAGE, Head, embedded, packed
from eval.explain.page.pictures import overview, overviews
from eval.verdict.page.blocks import plain
from eval.verdict.page.style import style
from model.errors import UserError

CELL = 1_000_000  # bytes of the cell of a notebook
TITLE = 60  # characters of an input that stand for it
SLACK = 4_000  # bytes for sentences on what is left out
_ROOM = Path(__file__).parent
_SCRIPTS = "numbers.js", "maps.js", "views.js", "page.js"
# Nothing is fetched, nothing is sent, nothing else is run: the browser itself sees to it.
_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    "script-src 'sha256-{script}'; style-src 'sha256-{style}'"
)


def write(path: str | Path, contents: Sequence[Content], heads: Sequence[Head] = (), budget: int = BUDGET) -> list[str]:
    """Writes one page of one or several inputs, whole or not at all; what is left out of it, in sentences.

    Raises:
        UserError: the name is no .html in a folder that exists, a head that there is not, or a budget in which not even
            the overview fits.
        OSError: it cannot be written.
    """
    file = Path(path)
    if file.suffix != ".html" or not file.parent.is_dir():
        raise UserError(f"--out={path} must be a .html file in a folder that exists.")
    text, left_out = page(contents, heads, budget)
    new = file.with_name(f".{file.name}.{os.getpid()}.new")
    try:
        new.write_text(text, encoding="utf-8", newline="\n")
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
    return left_out


def page(contents: Sequence[Content], heads: Sequence[Head] = (), budget: int = BUDGET) -> tuple[str, list[str]]:
    """A whole page of at most `budget` bytes, and what is left out of it.

    Text comes first; then, in what it leaves of its part, pictures; the arrays of the inputs share the rest.

    Raises:
        UserError: as `write`.
    """
    inputs = [_input(content) for content in contents]
    text = _size(_rendered(inputs)) + SLACK * len(inputs)
    part = max(text, min(PAGE, budget * PAGE // BUDGET * 2))
    room = (part - text) * 3 // 4 // len(inputs)  # in base64, which takes a third more
    data, left_out = [], list[str]()
    for one in inputs:
        made, missing = overviews(one["content"], room)
        one["pictures"] = [
            _words(place) | {"source": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}
            for place, picture in made.items()
        ]
        found = packed(one["content"], (budget - part) // len(inputs) - 2, heads, len(inputs))
        data.append(found.data)
        one["left_out"] = [*one["content"].left_out, *found.left_out, *missing]
        left_out += one["left_out"]
    # The data come last, when nothing looks at the text any more for places to put something.
    told = f'<script type="application/json" id="data">{embedded({"inputs": data})}</script>\n</body>\n</html>\n'
    return _rendered(inputs) + told, left_out


class Cell(NamedTuple):
    """A page as a notebook shows it: in a frame that may run the page's script and nothing else, with a picture for
    where frames are not shown.
    """

    frame: str
    picture: bytes | None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        png = {} if self.picture is None else {"image/png": base64.b64encode(self.picture).decode()}
        return {"text/html": self.frame, **png}


def cell(content: Content, heads: Sequence[Head] = (), budget: int = CELL) -> Cell:
    """The page of one input for a notebook, in at most `budget` bytes.

    Raises:
        UserError: as `write`.
    """
    picture = next((overview(x_LHTS, 32) for x_LHTS in content.weights.values()), None)
    room = budget - (0 if picture is None else -(-len(picture) // 3) * 4)
    framed = _framed(page([content], heads, room)[0])
    if (more := _size(framed) - room) > 0:  # what is quoted takes more bytes
        framed = _framed(page([content], heads, room - more)[0])
    return Cell(framed, picture)


def _framed(text: str) -> str:
    quoted = text.replace("&", "&amp;").replace("'", "&#39;")
    return f"<iframe sandbox='allow-scripts' width='100%' height='900' title='explanation' srcdoc='{quoted}'></iframe>"


def _input(content: Content) -> dict[str, Any]:
    facts = {"Explained": content.answer} if content.answer else {}
    return {
        "content": content,
        "name": _short(content.text),
        "text": content.text,
        "facts": list((facts | dict(content.facts)).items()),
        "notes": list(content.notes),
        "strips": views.strips(content),
        "numbers": views.numbers(content),
        "judged": views.judged(content),
        "heads": views.heads(content),
        "tables": [views.heat(table) for table in content.tables],
        "flow": views.graph(content),
        "commands": list(content.commands.items()),
        "pictures": [],
        "left_out": list(content.left_out),
    }


def _rendered(inputs: Sequence[dict[str, Any]]) -> str:
    sheet, script = style(":root") + _read("page.css"), "\n".join(map(_read, _SCRIPTS))
    policy = _POLICY.format(script=_hash(script), style=_hash(sheet))
    title = f"What the answer is due to: {inputs[0]['name']}"
    return _template().render(inputs=inputs, title=title, style=sheet, script=script, policy=policy) + "\n"


def _short(text: str) -> str:
    text = plain(" ".join(text[: 2 * TITLE].split())) or "(nothing)"
    return text if len(text) <= TITLE else f"{text[: TITLE - 1]}…"


def _words(place: str) -> dict[str, str]:
    """What a picture shows, and the method whose word stands beside it."""
    if place.startswith("rollout."):
        said = f"{place}: what has come to each place (down) of each token, layers across; the brighter, the more."
        return {"method": "rollout", "words": said}
    said = f"{place}: what each head looks at, layers down and heads across; the brighter, the more."
    return {"method": "raw_weights", "words": said}


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(_ROOM)
    rules: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    made = jinja2.Environment(loader=loader, autoescape=True, finalize=_visible, **rules)
    return made.get_template("page.html.jinja")


def _visible(value: Any) -> Any:
    """What goes into the template, with codes for what shows nothing; lines stay lines, and so do our own parts."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(plain, value.split("\n")))


@cache
def _read(name: str) -> str:
    return (_ROOM / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _size(text: str) -> int:
    return len(text.encode())
