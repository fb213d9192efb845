"""The page as text: safe whatever an input says, and within its budget."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.explain.page import Table
from eval.explain.page.views import level
from eval.explain.page.write import cell, page, write
from model.errors import UserError
from tests.eval.explain.page.made import across, content

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=alert(1)>",
    "</title><title>owned",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eright to left\u202c שלום עליכם",
    "\U0001f984",
    "a\0b",
    "x" * 10_000,
    "\ud800",
    "&lt;b&gt;\"'`",
    "\u2028\u2029",
    "",
    " \n\t",
]
ROOM = Path(__file__).resolve().parents[4] / "eval" / "explain" / "page"
OWN = {"script", "style", "meta", "link"}


class Read(HTMLParser):
    """The tags and attributes of a page, and the text that it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.titles = (
            list[str](),
            list[tuple[str, str | None]](),
            "",
            list[str](),
        )
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def plain() -> str:
    return page([content([f"t{at}" for at in range(len(HOSTILE))])])[0]


@pytest.fixture(scope="module")
def hostile() -> str:
    every = dict.fromkeys(HOSTILE[:3], HOSTILE[0])
    return page([content(HOSTILE, answer=HOSTILE[0], facts=every, notes=HOSTILE, left_out=HOSTILE, commands=every)])[0]


def test_hostile_text_is_shown_and_adds_no_markup(plain: str, hostile: str) -> None:
    usual, found = Read(plain), Read(hostile)
    assert {*found.tags} == {*usual.tags} | {"ul", "li"}
    assert {name for name, _ in found.attributes} == {name for name, _ in usual.attributes}
    assert [tag for tag in found.tags if tag in OWN] == [tag for tag in usual.tags if tag in OWN]
    assert HOSTILE[0] in found.text
    assert HOSTILE[1] in found.text
    for code in ("<U+202E>", "<U+0000>", "<U+D800>", "<U+2028>"):
        assert code in found.text
    assert "(10,000 characters)" in found.text
    assert "\u202e" not in hostile
    hostile.encode()
    assert len(hostile) < 400_000


def test_what_the_script_reads_is_the_text(hostile: str) -> None:
    (told,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', hostile, re.DOTALL)
    assert not re.search("[<>&\u2028\u2029]", told)
    pieces = json.loads(told)["inputs"][0]["pieces"]["embedding"]
    assert pieces[:2] == [
        "</script><script>document.title='owned'</script>".replace(" ", "·"),
        HOSTILE[1].replace(" ", "·"),
    ]
    assert hostile.rstrip().endswith("</script>\n</body>\n</html>")
    assert hostile.count('id="data"') == 1


def test_the_policy_names_the_hashes_of_what_is_there(plain: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', plain)
    for part in ("default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:"):
        assert part in policy.split("; ")
    assert "unsafe" not in policy
    for name in ("script", "style"):
        (text,) = re.findall(f"<{name}>(.*?)</{name}>", plain, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy.split("; ")


@pytest.mark.parametrize("made", [content(["a", "b", "c"]), across()], ids=["stack", "pairs"])
def test_nothing_is_asked_of_the_net_or_linked_to(made: Any) -> None:
    text, _ = page([made])
    bare = re.sub(r"[A-Za-z0-9+/=]{60,}", "", text)  # base64
    for wrong in ("http:", "https:", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "import(", "fetch("):
        assert wrong not in bare
    assert not re.search(r"\beval\(|new Function|XMLHttpRequest|\son[a-z]+=", bare)
    assert not re.search(r"""["'(=]\s*//""", bare)
    read = Read(text)
    assert {"style", "srcset", "action"}.isdisjoint(name for name, _ in read.attributes)
    assert {value for name, value in read.attributes if name == "href"} == {"data:,"}
    assert all((value or "").startswith("data:image/png;base64,") for name, value in read.attributes if name == "src")
    assert {"a", "form", "iframe", "object", "embed"}.isdisjoint(read.tags)


def test_every_map_has_a_word_and_every_number_stands_without_the_script(plain: str) -> None:
    shown = Read(plain)
    for method in ("raw weights", "rollout", "flow", "gradient x input", "integrated gradients"):
        assert re.search(rf"<b>{method}</b>\s*<span class=\"said[^>]*>(not )?(faithful here|measured)</span>", plain)
    assert plain.count("not measured") >= 3
    value = content([f"t{at}" for at in range(len(HOSTILE))]).results[4].values["embedding"][3]
    assert f"{value:.3g}" in shown.text
    assert shown.tags.count("img") == 2
    assert "one of many optima" in shown.text


def test_signs_and_sizes_choose_the_colour() -> None:
    assert [level(x, 2.0) for x in (2.0, 1.0, 0.0, -0.01, -1.0, -2.0)] == ["p8", "p4", "p0", "p0", "n4", "n8"]
    assert level(0.0, 0.0) == "p0"


def test_a_table_of_numbers_is_marked_on_one_scale() -> None:
    rows = [["a", "+0.5", ""], ["b", "-1", "none"]]
    text, _ = page([content(list("abc"), tables=[Table("written x read", ["", "x", "y"], rows)])])
    body = text[text.index("<caption>written x read") :]
    assert re.findall(r'<td class="(\w*)">', body[: body.index("</table>")]) == ["p4", "", "n8", ""]


def test_512_tokens_and_several_inputs_stay_within_the_budget() -> None:
    long = content([f"token{at}" for at in range(512)], 2, 7)
    text, left_out = page([long, content(list("abc")), long])
    assert len(text.encode()) <= 5_000_000
    assert any("Whole maps" in one for one in left_out)
    assert all(one in html.unescape(text) for one in left_out)
    with pytest.raises(UserError, match="the overview of all heads"):
        page([long, long], budget=300_000)


def test_a_cell_is_a_sandboxed_frame_of_at_most_a_megabyte() -> None:
    shown = cell(content([f"token{at}" for at in range(200)], 3, 5))._repr_mimebundle_()
    assert len(shown["text/html"].encode()) + len(shown["image/png"]) <= 1_000_000
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    frame = Read(shown["text/html"])
    assert frame.tags == ["iframe"]
    assert dict(frame.attributes)["sandbox"] == "allow-scripts"
    assert (dict(frame.attributes)["srcdoc"] or "").startswith("<!DOCTYPE html>")
    assert "Content-Security-Policy" in (dict(frame.attributes)["srcdoc"] or "")


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    assert write(tmp_path / "report.html", [content(list("abc"))]) == []
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    for name in ("report.txt", "nowhere/report.html"):
        with pytest.raises(UserError, match=r"--out=.* must be a \.html file in a folder that exists"):
            write(tmp_path / name, [content(list("abc"))])


def test_text_is_read_on_every_colour() -> None:
    """Contrast of at least 4.5 (WCAG 2) of the ink on the strongest marks, in light and dark."""
    sheet = (ROOM / "page.css").read_text()
    for ink, values in (("#1b1d21", sheet.split("@media")[0]), ("#e8eaed", sheet.split("@media")[1])):
        colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", values))
        for name in ("for", "against", "blank"):
            assert _contrast(ink, colours[name]) >= 4.5


def _contrast(one: str, other: str) -> float:
    bright = []
    for colour in (one, other):
        x = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
        bright.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(bright) / min(bright)
