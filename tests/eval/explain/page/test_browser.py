"""The page in a real browser: it asks for nothing, and a click or a key tells the number of the array."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eval.explain.methods.table import METHODS, Asked
from eval.explain.page import Content, write
from eval.explain.page.collect import content_of
from eval.explain.targets import places, predicted
from tests.eval.explain.cases import case
from tests.eval.explain.page.chromium import PROGRAM, Tab
from tests.eval.explain.page.made import content
from tests.eval.explain.page.test_write import HOSTILE

pytestmark = [
    pytest.mark.rest,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed: apt-get install chromium"),
]
MODELS = ("gpt-language_model", "bert-classification", "encoder_decoder-translation")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with Tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def opened(tab: Tab, folder: Path, *contents: Content) -> None:
    """The page of the contents, of which nothing may be asked for or complained about while it is built."""
    write(folder / "report.html", contents)
    tab.requests.clear()
    tab.errors.clear()
    tab.open(folder / "report.html")


def quiet(tab: Tab) -> bool:
    """Whether the page has asked for itself alone, and nothing has gone wrong."""
    assert [url for url in tab.requests if not url.startswith("data:")][1:] == []
    assert tab.errors == []
    return True


def told(tab: Tab, view: str = "heads") -> str:
    text: str = tab.value(f"document.querySelector('.{view} .beside .readout').textContent")
    return text


def cell(tab: Tab, view: str, row: int, column: int, T: int, S: int) -> tuple[float, float]:
    """Where a cell of the large map is in the window."""
    tab.value(f"document.querySelector('.{view} .one').scrollIntoView({{block: 'center'}})")
    box = tab.value(f"JSON.parse(JSON.stringify(document.querySelector('.{view} .one').getBoundingClientRect()))")
    side = (box["width"] - 100) / S  # 96 pixels of labels, and 4 of border
    return box["x"] + 96 + (column + 0.5) * side, box["y"] + 90 + (row + 0.5) * (box["height"] - 94) / T


def check_number(text: str, expected: float, row_largest: float) -> None:
    """What is read out is the number to half a quantum, or a bound on it."""
    said = text.rpartition(": ")[2]
    half = row_largest * (1 + 2**-7) / 510 * 1.06  # half a quantum, as told by one digit
    if match := re.fullmatch(r"below ([0-9.e-]+)", said):
        assert 0 <= expected <= float(match[1]) * 1.06
    elif said == "0":
        assert expected == 0
    else:
        value, within = map(float, said.split(" ± "))
        assert within <= half * 1.5
        assert abs(value - expected) <= within * 1.06 + 1e-7


def explained(kind: str) -> Content:
    model, inputs, _ = case(kind)
    asked = Asked.of(model, inputs, predicted(model, inputs))
    real = {site: np.asarray(x)[0] for site, x in places(inputs).items()}
    pieces = {site: [f"{site[0]}{at}" for at in range(int(x.sum()))] for site, x in real.items()}
    values = METHODS["gradient_x_input"].call(asked)
    own = {site: np.asarray(x)[0][: len(pieces[site])] for site, x in values.items()}
    result = SimpleNamespace(
        method="gradient_x_input",
        signed=True,
        values=own,
        pieces=pieces,
        baseline="",
        error=None,
        passes=1,
        seconds=0.1,
    )
    return content_of(asked, [result], text=kind)


@pytest.mark.parametrize("kind", MODELS)
def test_a_click_or_key_tells_the_number_of_the_array(kind: str, tab: Tab, tmp_path: Path) -> None:
    one = explained(kind)
    opened(tab, tmp_path, one)
    for number, (place, x_LHTS) in enumerate(one.weights.items()):
        tab.value(
            f"(() => {{ const one = document.querySelector('.heads .place'); one.value = {number};"
            "one.dispatchEvent(new Event('change')); })()"
        )
        L, H, T, S = x_LHTS.shape
        assert tab.value("document.querySelectorAll('.overview canvas').length") == L * H
        for layer, head, row, column in ((0, 0, T - 1, 1), (L - 1, H - 1, T - 2, 0), (1, 1, 2, 2)):
            tab.value(f'document.querySelector(\'.overview button[data-layer="{layer}"][data-head="{head}"]\').click()')
            x_TS = x_LHTS[layer, head]
            tab.click(*cell(tab, "heads", row, column, T, S))
            assert told(tab).startswith(f"{row} ")
            check_number(told(tab), x_TS[row, column], np.abs(x_TS[row]).max())
            tab.value("document.querySelector('.heads .one').focus()")
            tab.press("ArrowUp")
            tab.press("ArrowRight")
            text = told(tab)
            if "not seen" not in text:
                check_number(text, x_TS[row - 1, column + 1], np.abs(x_TS[row - 1]).max())
            assert text.startswith(f"{row - 1} ")
        assert place in tab.value("document.querySelector('.head-name').textContent")
    for number, x_LTS in enumerate(one.rollout.values()):
        tab.value(
            f"(() => {{ const one = document.querySelector('.rollout .place'); one.value = {number};"
            "one.dispatchEvent(new Event('change')); })()"
        )
        tab.click(*cell(tab, "rollout", 3, 1, *x_LTS.shape[1:]))
        check_number(told(tab, "rollout"), x_LTS[-1, 3, 1], x_LTS[-1, 3].max())
    assert quiet(tab)


def test_large_maps_are_read_whole_or_by_their_largest_cells(tab: Tab, tmp_path: Path) -> None:
    one = content([f"t{at}" for at in range(200)], 3, 5, flow=None)
    opened(tab, tmp_path, one)
    importance = one.statistics["stack.attention"]["importance"]
    layers = [divmod(int(at), 5) for at in np.argsort(-importance.ravel())]
    for layer, head in (layers[0], layers[-1]):
        tab.value(f'document.querySelector(\'.overview button[data-layer="{layer}"][data-head="{head}"]\').click()')
        x_TS = one.weights["stack.attention"][layer, head]
        text = told(tab)
        column = int(text.partition(" looks at ")[2].partition(" ")[0])
        assert text.startswith("199 ")
        assert column == x_TS[199].argmax()
        check_number(text, x_TS[199, column], x_TS[199].max())
        tab.value("document.querySelector('.heads .one').focus()")
        tab.press("Home")
        check_number(told(tab), x_TS[199, 0], x_TS[199].max())
    assert "largest weights of each row" in tab.value("document.querySelector('.head-name').textContent")
    assert quiet(tab)


def test_hostile_text_does_nothing_but_show_itself(tab: Tab, tmp_path: Path) -> None:
    every = dict.fromkeys(HOSTILE[:3], HOSTILE[0])
    one = content(HOSTILE, answer=HOSTILE[0], facts=every, notes=HOSTILE, left_out=HOSTILE, commands=every)
    opened(tab, tmp_path, one, dataclasses.replace(one, text=HOSTILE[2]))
    assert tab.value("document.title").startswith("What the answer is due to: </script>")
    assert tab.value("document.scripts.length") == 2
    assert tab.value("document.images.length") == 4  # the pictures for where no script runs
    shown = tab.value("[...document.querySelectorAll('.strip .map')][0].textContent")
    assert all(text in shown for text in ("<img·src=x·onerror=alert(1)>", "<U+202E>", "a<U+0000>b", "<U+D800>", "🦄"))
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")
    for token in range(len(HOSTILE)):
        tab.value(f"document.querySelectorAll('.strip .map bdi')[{token}].click()")
        assert tab.value("document.querySelector('.tokens > .readout').textContent").startswith(f"{token} ")
    assert quiet(tab)


def test_tables_are_sorted_and_inputs_chosen(tab: Tab, tmp_path: Path) -> None:
    one = content(list("abcde"))
    opened(tab, tmp_path, one, content(list("xyz"), 2, 2))
    tab.value("document.querySelectorAll('.statistics .sortable th button')[2].click()")
    first = tab.value("document.querySelector('.statistics .sortable tbody th').textContent")
    entropy = one.statistics["stack.attention"]["entropy"]
    assert tuple(map(int, first.split("."))) == np.unravel_index(entropy.argmax(), entropy.shape)
    visible = "[...document.querySelectorAll('section.input')].map(one => !one.hidden)"
    assert tab.value(visible) == [True, False]
    tab.value(
        "(() => { const one = document.querySelector('.inputs'); one.value = 1;"
        "one.dispatchEvent(new Event('change')); })()"
    )
    assert tab.value(visible) == [False, True]
    assert tab.value("document.querySelectorAll('section.input')[1].querySelectorAll('.overview canvas').length") == 4
    assert quiet(tab)
