"""The page: everything of the verdict is on it, whatever it is called, and nothing is fetched to show it."""

import csv
import html
import io
import json
import math
import random
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from eval.verdict.decision import Verdict, decide
from eval.verdict.declared import Contrast, Results
from eval.verdict.page import Curve, Shown, notebook_html, text, write_page
from eval.verdict.page.figures import curves, dots, scale_of
from eval.verdict.page.style import DARK, LIGHT
from eval.verdict.table import read_table
from tests.eval.verdict.pages import CASES, NAMES, all_shown, case, judged, results
from tests.tiers import tiered

Page = tuple[dict[str, str], Results, Verdict, Shown]
EVERY_DAY = tiered([(name,) for name in CASES], lambda name: name != "many")


@pytest.fixture(scope="module", params=EVERY_DAY)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    given, verdict, shown = case(request.param)
    paths = write_page(tmp_path_factory.mktemp("page") / "new folder", verdict, given, shown)
    assert {path.name for path in next(iter(paths.values())).parent.iterdir()} == {*paths}
    return {name: path.read_bytes().decode() for name, path in paths.items()}, given, verdict, shown


def tree(source: str) -> ElementTree.Element:
    return ElementTree.fromstring(source.removeprefix("<!DOCTYPE html>\n"))


def words_of(element: ElementTree.Element | None) -> str:
    assert element is not None
    return "".join(element.itertext())


def numbers(value: object) -> Iterator[float]:
    """All numbers of a JSON value that are no counts of a few."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, float) and not isinstance(value, bool):
        yield value


def test_it_parses_and_fetches_nothing(page: Page) -> None:
    source = page[0]["verdict.html"]
    assert len(source.encode()) < 1_000_000
    for element in tree(source).iter():
        assert element.tag not in ("script", "img", "iframe", "object", "embed", "base", "form"), element.tag
        for name, value in element.attrib.items():
            assert name not in ("src", "srcset", "action", "style", "xlink:href"), name
            assert not name.startswith("on")
            assert name != "href" or value == "data:,"
    assert not re.search(r"https?:|//|url\(|@import", source)
    assert "default-src 'none'" in source
    assert '<html lang="en">' in source


def test_every_number_of_the_verdict_is_on_it(page: Page) -> None:
    files, *_ = page
    told = json.loads(files["verdict.json"])
    for name in ("verdict.html", "verdict.md"):
        seen = {*re.findall(r"(?<![\w.])-?[\d.]+(?:e[+-]\d+)?", html.unescape(files[name]).replace("\\", ""))}
        for value in numbers(told):
            assert {f"{value:.4g}", f"{value:.6g}"} & seen or value == 0, (name, value)


# Where each number of a contrast stands.
LABELS = {
    "look": "look",
    "mean of {plus}": "plus_mean",
    "mean of {minus}": "minus_mean",
    "difference": "difference",
    "interval at 95 %": "interval_95",
    "its true coverage where differences are skewed": "coverage_skewed",
    "spread of a pair's difference": "spread",
    "correlation of pairs": "correlation",
    "p of the paired t test": "p_t",
    "p of the sign flip": "p_flip",
    "p": "p",
    "p by Holm": "p_holm",
    "level it is compared with": "level",
    "p of equivalence (TOST)": "p_tost",
    "the same by Holm": "p_tost_holm",
    "detectable effect (80 %)": "detectable",
    "the same in spreads": "detectable_spreads",
    "seeds needed for D": "seeds_needed",
}


def test_every_number_stands_beside_its_name(page: Page) -> None:
    files, _, verdict, _ = page
    rows = {words_of(row[0]): [words_of(cell) for cell in row[1:]] for row in tree(files["verdict.html"]).iter("tr")}
    pairs = all(len(row.contrast.cells) == 2 for row in verdict.rows)
    sides = ("the arm", "the baseline") if pairs else ("what is added up", "what is taken away")
    for name, field in LABELS.items():
        own = rows[name.format(plus=sides[0], minus=sides[1])]
        for cell, row in zip(own, verdict.rows, strict=True):
            value = getattr(row, field)
            told = [] if value is None else [value] if not isinstance(value, tuple) else [*value]
            assert [float(one) for one in re.findall(r"[-\d.]+(?:e[+-]\d+)?", cell)] == pytest.approx(told, rel=1e-3)
    level = f"interval at {100 - 5 / len(verdict.rows):.6g} %"
    assert [cell == "(no interval)" for cell in rows[level]] == [row.interval is None for row in verdict.rows]


def test_every_part_is_on_it(page: Page) -> None:
    files, given, verdict, shown = page
    whole = " ".join(words_of(tree(files["verdict.html"])).split())
    marked = files["verdict.md"].replace("\\", "")
    for part in [
        *(row.word for row in verdict.rows),
        *(sentence for row in verdict.rows for sentence in row.sentences[bool(verdict.gates) :]),
        *("36,913", "3.142e+05", "parameters is matched", "17", "19", "because of <this>", "sameness of the code"),
        *("longer runs", "the order is shared", "val/accuracy", "nobody declared", "12,345", "0.01235"),
        *(gate for gate in verdict.gates),
        f"Exit status {verdict.status}.",
        "correlation of pairs",
    ]:
        assert part in whole, part
        assert part in html.unescape(marked), part
    titles = [words_of(title) for title in tree(files["verdict.html"]).iter("title")]
    for of in given.values():
        for seed, value in of.items():
            assert any(title.startswith(f"seed {seed}: ") for title in titles)
            assert not math.isfinite(value) or f"seed {seed}: {value:.6g}" in titles


def test_tables_have_headers_and_figures_words(page: Page) -> None:
    root = tree(page[0]["verdict.html"])
    for table in root.iter("table"):
        columns = table.findall("thead/tr/th")
        assert all(head.get("scope") == "col" for head in columns)
        assert len(words_of(table.find("caption"))) > 10
        for row in table.findall("tbody/tr"):
            assert len(row) == len(columns)
            assert row[0].get("scope") == "row"
    figures = [svg for svg in root.iter("svg") if svg.get("class") == "figure"]
    assert len(figures) >= 2 + len(page[2].rows)
    assert all(svg.get("role") == "img" and len(svg.get("aria-label", "")) > 40 for svg in figures)


def test_the_sheets_are_of_the_results_alone(page: Page, tmp_path: Path) -> None:
    files, given, verdict, shown = page
    for name in ("verdict.csv", "seeds.csv"):
        assert socket.gethostname() not in files[name]
        assert str(tmp_path.parent) not in files[name]
        assert not re.search(r"20\d\d-\d\d|\d\d:\d\d:\d\d", files[name])
    (head, *lines) = csv.reader(io.StringIO(files["seeds.csv"], newline=""))
    assert head == ["arm", "seed", "value"]
    found = {(arm, int(seed)): float(value) for arm, seed, value in lines}
    assert found == {(arm, seed): value for arm, of in given.items() for seed, value in of.items()}
    rows = list(csv.DictReader(io.StringIO(files["verdict.csv"], newline="")))
    assert [row["contrast"] for row in rows] == [row.contrast.name for row in verdict.rows]
    for told, row in zip(rows, verdict.rows, strict=True):
        assert told["word"] == row.word
        assert float(told["p_holm"]) == row.p_holm
        assert (told["difference"] == "") == (row.difference is None)
        assert row.interval is None or float(told["interval_low"]) == row.interval[0]
    # The same results in another order, another folder, with nothing beside them.
    shuffled = dict(random.Random(1).sample([*given.items()], len(given)))
    turned = {arm: dict(random.Random(2).sample([*of.items()], len(of))) for arm, of in shuffled.items()}
    turned = {arm: {seed: np.float64(value) for seed, value in of.items()} for arm, of in turned.items()}
    again = write_page(tmp_path, decide(verdict.declared, turned, verdict.gates), turned)
    assert {name: again[name].read_text() for name in ("verdict.csv", "seeds.csv")} == {
        name: files[name] for name in ("verdict.csv", "seeds.csv")
    }


def test_names_mean_nothing_but_themselves(tmp_path: Path) -> None:
    given, verdict, shown = case("hostile")
    paths = write_page(tmp_path, verdict, given, shown)
    heads = [words_of(head) for head in tree(paths["verdict.html"].read_text()).iter("th")]
    seen = [name.replace("\u202e", "<U+202E>").replace("\n", "<U+000A>") for name in NAMES]
    assert {*seen} <= {*heads}
    assert "\u202e" not in paths["verdict.html"].read_text() + paths["verdict.md"].read_text() + text(verdict)
    for line in paths["verdict.md"].read_text().splitlines():
        assert line.startswith("    ") or not re.search(r"(?<!\\)(<|`|\*(?!\*)(?<!\*\*)|\[)", line), line
    tables = re.findall(r"(?:^\|.*\n)+", paths["verdict.md"].read_text(), re.MULTILINE)
    for table in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert len(tables) >= 6
    assert {*read_table(paths["seeds.csv"]).values} == {*NAMES}


def test_all_failed_seeds_of_an_arm_are_listed_whichever_look_decided_a_row(tmp_path: Path) -> None:
    """The last row is decided by the first look, which knows of no later seed of the base."""
    given = results({"base": 0, "arm": 0.001, "clear": 0.5}, 12, failed={"base": (9, 11)})
    said = judged(given, looks=(8, 12))
    assert [row.look for row in said.rows] == [2, 1]
    page = write_page(tmp_path, said, given)["verdict.md"].read_text()
    assert "| base | 12, 14 |" in page


def percent(value: str) -> float:
    assert value.endswith("%")
    return float(value[:-1])


def test_what_is_drawn_stands_where_its_number_is(page: Page) -> None:
    """By the straight line through the places of -D and D, which are marked."""
    files, _, verdict, _ = page
    svg = next(svg for svg in tree(files["verdict.html"]).iter("svg") if svg.get("class") == "figure")
    lines = {kind: [one for one in svg.iter("line") if one.get("class") == kind] for kind in ("edge", "wide", "middle")}
    low, high = (percent(edge.get("x1", "")) for edge in lines["edge"])
    smallest = verdict.declared.smallest

    def value(place: str) -> float:
        return -smallest + (percent(place) - low) / (high - low) * 2 * smallest

    within = 0.002 / (high - low) * 2 * smallest  # places have three decimals
    drawn = [(value(one.get("x1", "")), value(one.get("x2", ""))) for one in lines["wide"]][::3]
    known = [row for row in verdict.rows if row.interval is not None]
    assert len(drawn) == len(known) == len(lines["middle"])
    for at, row in enumerate(known):
        np.testing.assert_allclose(drawn[at], row.interval, atol=within)
        np.testing.assert_allclose(value(lines["middle"][at].get("x1", "")), row.difference, atol=within)
    finite = [one for row in verdict.rows for one in row.differences if math.isfinite(one)]
    seeds = [value(circle.get("cx", "")) for circle in svg.iter("circle")]
    np.testing.assert_allclose(seeds, finite, atol=within)
    crosses = [one for one in svg.iter("text") if (one.text or "") == "✕"]
    failed = [one for row in verdict.rows for one in row.differences if math.isinf(one)]
    assert [percent(one.get("x", "")) > 50 for one in crosses] == [one > 0 for one in failed]
    assert all(0 <= percent(one.get("x", "")) <= 100 for one in svg.iter("text"))
    # A failed seed of an arm stands at the worse edge.
    arms = [svg for svg in tree(files["verdict.html"]).iter("svg") if svg.get("class") == "figure"][1]
    crosses = [percent(one.get("x", "")) for one in arms.iter("text") if (one.text or "") == "✕"]
    assert len(crosses) == sum(not math.isfinite(value) for of in page[1].values() for value in of.values())
    assert all((place > 50) == (verdict.declared.direction == "lower") for place in crosses)


@pytest.mark.parametrize("direction", ["lower", "higher"])
@pytest.mark.parametrize("success", [3.52, 5.0])
def test_the_threshold_of_success_is_drawn_where_it_is(direction: str, success: float, tmp_path: Path) -> None:
    """Among the values of the seeds, by whose places it is measured, and with D among the differences of rates."""
    given = results({"base": 0, "arm": 0.03}, 8)
    verdict = judged(given, success=success, direction=direction, smallest=0.25)
    source = write_page(tmp_path, verdict, given)["verdict.html"].read_text()
    rates, values = (svg for svg in tree(source).iter("svg") if svg.get("class") == "figure")
    assert {"-D", "0", "D"} <= {one.text for one in rates.iter("text")}
    (edge,) = (line for line in values.iter("line") if line.get("class") == "edge")
    seeds = [value for arm in given.values() for value in arm.values()]
    dots = [percent(one.get("cx", "")) for one in values.iter("circle")]
    place = np.polyval(np.polyfit(seeds, dots, 1), success)
    assert percent(edge.get("x1", "")) == pytest.approx(place, abs=0.01)
    side = "at most" if direction == "lower" else "at least"
    assert f"success: {side} {success:g}" in [one.text for one in values.iter("text")]
    (band,) = (one for one in values.iter("rect"))
    left = percent(band.get("x", ""))
    ends = left, left + percent(band.get("width", ""))
    assert ends[direction == "lower"] == pytest.approx(place, abs=0.01)
    assert [ends[0] <= one <= ends[1] for one in dots] == [
        value <= success if direction == "lower" else value >= success for value in seeds
    ]


def test_what_a_picture_cannot_tell_is_said() -> None:
    """Seeds at one place are counted, and where seeds failed the pairs that are worse are, too."""
    given = results({"base": 0, "arm": 0.1}, 9, failed={"arm": (2, 5, 6), "base": (4, 5)})
    verdict = judged(given)
    assert "worse in 7 pairs and better in 1; 6 of 9" in text(verdict)
    assert "worse in 2 pairs and better in 6" in text(judged(given, direction="higher"))
    words = [one.text for one in tree(notebook_html_svg(verdict)).iter("text")]
    assert words.count("×2") == 1
    assert words.count("✕") == 3
    joined = text(judged(results({"base": 0, "a": 0, "b": 0, "both": 0}, 8), **CASES["interaction"][1]))
    assert "(both + base) minus (a + b), 8 seeds" in joined


def test_the_better_side_is_named_by_the_direction() -> None:
    given = results({"base": 0, "arm": 0.1}, 8)
    for direction, side in (("lower", "worse →"), ("higher", "better →")):
        shown = [one.text for one in tree(notebook_html_svg(judged(given, direction=direction))).iter("text")]
        assert side in shown


def notebook_html_svg(verdict: Verdict) -> str:
    (svg,) = re.findall(r"<svg.*</svg>", notebook_html(verdict), re.DOTALL)
    return svg


def test_a_curve_is_the_median_in_the_band_of_all_seeds() -> None:
    rng = np.random.default_rng(0)
    values_NS = rng.normal(size=(5, 7))
    values_NS[1, 2] = math.inf
    values_NS[:, 4] = math.nan  # where no seed has a number
    svg = tree(curves([("base", Curve([0, 1, 2, 3, 4, 5, 10], values_NS.tolist()))], "words", 200))
    (line,), (band,) = (list(svg.iter(kind)) for kind in ("polyline", "polygon"))
    points = [np.array([pair.split(",") for pair in one.get("points", "").split()], float) for one in (line, band)]
    kept = np.where(np.isfinite(values_NS), values_NS, np.nan)[:, [0, 1, 2, 3, 5, 6]]
    low, high = np.nanmin(kept), np.nanmax(kept)
    np.testing.assert_allclose(points[0][:, 0], [0, 100, 200, 300, 500, 1000], atol=0.06)
    np.testing.assert_allclose(points[0][:, 1], 1000 * (high - np.nanmedian(kept, 0)) / (high - low), atol=0.06)
    edges = np.concatenate([np.nanmin(kept, 0), np.nanmax(kept, 0)[::-1]])
    np.testing.assert_allclose(points[1][:, 1], 1000 * (high - edges) / (high - low), atol=0.06)


def test_fifty_arms_of_forty_seeds_with_all_that_can_be_shown_keep_the_page_small(tmp_path: Path) -> None:
    names = [f"a_longer_arm_name_{at:02}" for at in range(50)]
    given = results({"base": 0.0} | dict.fromkeys(names, 0.01), 40, failed={names[7]: (0, 3)})
    _, verdict, _ = case("many_failing")
    rows = []
    for name in names:
        apart = {seed: value - given["base"][seed] for seed, value in given[name].items()}
        own = {"differences": tuple(apart.values()), "seeds": (*apart,), "failed": {name: (), "base": ()}}
        rows.append(replace(verdict.rows[1], contrast=Contrast(name, (name,), ("base",)), **own))
    curve = Curve([*range(5000)], np.random.default_rng(0).normal(size=(6, 5000)).tolist())
    others = {f"val/loss/quarter_{at}": given for at in range(12)}
    shown = replace(all_shown(given), curves=dict.fromkeys(given, curve), exploratory=others)
    page = write_page(tmp_path, replace(verdict, rows=tuple(rows)), given, shown)["verdict.html"].read_text()
    assert page.count("<polyline") == 2 * 50
    assert page.count("<circle") == 50 * 40 + 51 * 40 - 4
    assert len(page.encode()) < 900_000
    once = Shown(curves=dict.fromkeys(given, Curve([9], [[1.0]])))  # which is no curve
    assert "<polyline" not in write_page(tmp_path, verdict, case("many_failing")[0], once)["verdict.html"].read_text()


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-30, 2e-30], [-1e150, 1e150], [1e9, 1e9 + 1], [math.inf]])
def test_any_numbers_have_a_scale(values: list[float]) -> None:
    scale = scale_of(values)
    assert all(4 <= percent(scale(value)) <= 96 for value in values if math.isfinite(value))
    ticks, told = zip(*scale.ticks(), strict=True)
    assert 2 <= len(ticks) <= 8
    assert all(4 <= percent(scale(tick)) <= 96 for tick in ticks)
    assert len({*told}) == len(told)
    np.testing.assert_allclose([float(one) for one in told], ticks, rtol=1e-4)
    tree(dots([], "words", 1.0, "lower"))


def luminance(color: str) -> float:
    """Relative luminance of sRGB, by WCAG 2.2."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colors", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_what_is_behind_it(colors: dict[str, str]) -> None:
    assert LIGHT.keys() == DARK.keys()
    for name in colors.keys() - {"paper", "band", "rule"}:
        for behind in ("paper", "band"):
            low, high = sorted([luminance(colors[name]), luminance(colors[behind])])
            assert (high + 0.05) / (low + 0.05) >= 4.5, (name, behind)


def test_a_notebook_and_a_terminal_say_the_same(page: Page) -> None:
    _, _, verdict, _ = page
    assert repr(verdict) == text(verdict)
    root = tree(f"<div>{verdict._repr_html_()}</div>")
    for row in verdict.rows:
        told = next(line for line in text(verdict).splitlines() if line.strip().endswith(row.word) or row.word in line)
        assert told.strip() in words_of(root)
