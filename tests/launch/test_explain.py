"""What a run's answers are due to, told by the command, and the table of faithfulness that its folder keeps."""

import html
import json
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from eval.explain import explaining
from eval.explain.faithfulness import kept
from eval.explain.faithfulness.judging import judged
from eval.explain.faithfulness.validation import _last_of_longest, validation
from eval.explain.files.reading import examples
from eval.explain.files.result import Result, load
from eval.explain.methods.table import METHODS
from eval.runs import open_run
from launch import cli, explain, train
from tests.tiny import Outcome, call, words, write_text

FEW = {name: METHODS[name] for name in ("gradient_x_input", "leave_one_out")}
SHORT = {"data.length": 12, "train.steps": 2, "train.evaluate_every": 2, "train.evaluate_windows": 2}


@pytest.fixture(scope="module", autouse=True)
def _few_methods() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (kept, explaining):
            patch.setattr(module, "METHODS", FEW)
        yield


def made(folder: Path, **keys: Any) -> Path:
    """A run of two steps."""
    outcome = call(train.main, words(folder / "run", write_text(folder) | SHORT | keys))
    assert outcome.status == 0, outcome.err
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("explained"))


@pytest.fixture(scope="module")
def told(run: Path) -> Outcome:
    """The first report of the run's checkpoint."""
    more = [f"--json={run}/own.json", f"--arrays={run}/own.safetensors", f"--out={run}/own.html", "--words"]
    more += ["--capture=stack.residual,stack.0.mlp.output"]
    return call(explain.main, ["--workdir", str(run), "--input=def main", "--input=x", *more])


@pytest.mark.rest
def test_each_input_is_told_by_each_method_with_its_word(run: Path, told: Outcome) -> None:
    assert told.status == 0, told.err
    lines = told.out.splitlines()
    heads = [line for line in lines if line.startswith("token ")]
    assert [re.search(r", told at (\d+): logit \S+, probability 0\.\d+$", line)[1] for line in heads] == ["8", "1"]
    row = r"  (gradient_x_input|leave_one_out) +(?:not faithful|faithful) here +(\S+) '(.+?)' ([+-]\S+)"
    strongest = [found.groups() for line in lines if (found := re.match(row, line))]
    assert len(strongest) == 4
    assert sum("4-7 'main'" in line or "5-8 'main'" in line for line in lines) == 2
    found, same = load(run / "own.json"), load(run / "own.safetensors")
    by_row = {name: [one.values["embedding"] for one in found if one.method == name] for name in FEW}
    for number, (method, where, text, value) in enumerate(strongest):
        values_n = by_row[method][number // 2]
        groups = [[0], [1, 2, 3], [4], [5, 6, 7, 8]] if number < 2 else [[0], [1]]  # (end), def, a blank, main
        sums = [values_n[group].sum() for group in groups]
        most = int(np.argmax(np.abs(sums)))
        assert float(value) == pytest.approx(sums[most], rel=1e-2)
        assert where == "-".join(str(at) for at in dict.fromkeys([groups[most][0], groups[most][-1]]))
        assert text == ("(end)", "def", " ", "main")[most] if number < 2 else ("(end)", "x")[most]
    assert [one.method for one in found] == ["gradient_x_input"] * 2 + ["leave_one_out"] * 2
    for one, other in zip(found, same, strict=True):
        assert (one.target, one.provenance) == (other.target, other.provenance)
        np.testing.assert_array_equal(one.values["embedding"], other.values["embedding"])
    assert found[0].pieces["embedding"] == ("(end)", *"def main")
    assert found[1].pieces["embedding"] == ("(end)", "x")
    assert found[0].provenance.keys() == {"step", "parameters", "heed", "commit", "dtype"}
    page = (run / "own.html").read_text()
    assert str(run.parent) not in page
    assert "python -m launch.explain --workdir=. &#39;--input=def main&#39; --input=x --out=own.html" in page
    assert re.search(r"faithful here", page)
    arrays = load_file(run / "own.safetensors")
    weights = arrays["0.stack.attention.weights"]
    assert (arrays["0.stack.residual"].shape, arrays["0.stack.0.mlp.output"].shape) == ((1, 2, 9, 16), (2, 9, 16))
    assert weights.shape == (1, 2, 2, 9, 9)
    np.testing.assert_allclose(weights[:, 0].sum(-1), 1, rtol=1e-5)


@pytest.mark.rest
def test_the_table_is_kept_until_something_else_is_measured(
    run: Path, told: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told.status == 0
    assert re.search(r"faithfulness: +\d+%, about \d+ s left \(map by gradient_x_input\)", told.out)
    opened, said = open_run(run), list[str]()
    first = kept.table(opened, said.append)
    assert not said
    assert {name: row.examples for name, row in first.rows.items()} == dict.fromkeys(FEW, len(opened.data.measured(0)))
    assert first.rows["leave_one_out"].leave_one_out == pytest.approx(1)
    for name, verdict in judged(validation(opened, "token"), FEW).items():
        assert first.rows[name].word == verdict.word
        assert first.rows[name][1 : len(verdict)] == pytest.approx(verdict[1:], rel=1e-4)
    assert json.loads((run / "own.json").read_text())["faithfulness"]["key"] == first.key
    monkeypatch.setattr(kept, "LEAST", 1000)
    monkeypatch.setattr(kept, "RADIUS", 0.03)
    again = kept.table(opened, said.append)
    assert again.key != first.key
    assert {row.word for row in again.rows.values()} == {"not measured"}
    file = run / "faithfulness-2.json"
    file.write_text("{")
    assert kept.table(opened) == again
    assert json.loads(file.read_text())["key"] == again.key


@pytest.mark.rest
def test_what_is_written_is_explained_token_by_token(run: Path, told: Outcome) -> None:
    assert told.status == 0
    outcome = call(explain.main, [f"--workdir={run}", "--input=de", "--generate=3", f"--json={run}/written.json"])
    assert outcome.status == 0, outcome.err
    found = [one for one in load(run / "written.json") if one.method == "leave_one_out"]
    assert [one.target.places[0] for one in found] == [2, 3, 4][: len(found)]
    for before, one in zip(found, found[1:], strict=False):
        assert one.pieces["embedding"] == before.pieces["embedding"] + before.target.texts
    alone = call(explain.main, [f"--workdir={run}", "--input=de", f"--json={run}/alone.json"])
    assert alone.status == 0, alone.err
    (same,) = (one for one in load(run / "alone.json") if one.method == "leave_one_out")
    assert same.target.answers == found[0].target.answers
    np.testing.assert_allclose(found[0].values["embedding"], same.values["embedding"], atol=1e-5)


@pytest.mark.rest
def test_maps_made_elsewhere_and_what_is_intended_are_told(run: Path, told: Outcome) -> None:
    assert told.status == 0
    file = run / "intended.txt"
    file.write_text("0:3\n0:1\n")
    words = [
        f"--workdir={run}",
        "--input=def main",
        "--input=x",
        f"--intended={file}",
        f"--attributions={run}/own.json",
    ]
    outcome = call(explain.main, words)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert (
        sum(
            bool(re.match(r"  (gradient_x_input|leave_one_out) +not measured, as that takes 20 inputs; loses ", line))
            for line in lines
        )
        == 2
    )
    meant = [line for line in lines if ", what is intended: probability" in line]
    probability, alone, without = (float(x) for x in re.findall(r"0\.\d+(?:e-\d+)?", meant[1]))
    assert alone == pytest.approx(probability, rel=1e-3)  # the one letter is all there is beside a mark
    assert without != pytest.approx(probability, rel=1e-3)
    refused = call(explain.main, [*words[:2], f"--attributions={run}/own.json"])
    assert (refused.status, refused.out) == (2, "")  # before anything is computed
    assert "is of 2 inputs, and 1 are given" in refused.err


@pytest.mark.rest
@pytest.mark.parametrize("flag", ["out=a.html", "json=a.json", "arrays=a.safetensors"])
def test_what_cannot_be_written_is_told_and_leaves_nothing(run: Path, told: Outcome, flag: str) -> None:
    name, _, file = flag.partition("=")
    folder = run / name
    (folder / file / "taken").mkdir(parents=True)  # where no file can be
    outcome = call(explain.main, [f"--workdir={run}", "--input=x", f"--{name}={folder}/{file}"])
    assert told.status == 0
    assert outcome.status == 2
    assert f"--{name}={folder}/{file} cannot be written (" in outcome.err
    assert "faithful here" in outcome.out
    assert [one.name for one in folder.iterdir()] == [file]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "there is no input; give --input=TEXT, or --inputs=FILE."),
        (["--input=de return return"], "--input: it has 17 tokens, marks included, and the model takes at most 12"),
        (["--input="], "text is missing, or empty: language_model needs text"),
        (["--input=de", "--methods=glow"], "--methods=glow is none of: gradient_x_input, leave_one_out."),
        (["--input=de", "--target=return"], "--target='return' is 6 tokens, and one is needed"),
        (["--input=de", "--at=3"], "--at=3: the input has 3 tokens, from 0 on"),
        (["--input=de", "--baseline=mask"], "--baseline=mask is none that this run has: zero, mean, end."),
        (["--input=de", "--spans=1:9"], "the span 1:9 is not within the text, which has 2 characters"),
        (["--input=de", "--spans=1-2"], "--spans: '1-2' must be as 0:5,9:12"),
        (["--input=de", "--generate=20"], "--generate=20: 3 tokens and 20 more"),
        (["--input=de", "--generate=2", "--target=x"], "--generate says what is explained: leave out --target."),
        (["--input=de", "--json=no/file.json"], "--json=no/file.json must be a .json file in a folder that exists."),
        (["--input=de", "--out=no/page.html"], "--out=no/page.html must be a .html file in a folder that exists."),
        (["--input=de", "--spans=0:2,1:2"], "--spans: in 0:2,1:2 two spans have characters together"),
        (
            ["--input=de", "--spans=0:1", "--words"],
            "--spans=0:1 says what is printed instead of tokens: leave out --words",
        ),
        (
            ["--input=de", "--target=d", "--against=d"],
            "--against=d is the answer itself that is explained; give another.",
        ),
        (["--input=de", "--against=return"], "--against='return' is 6 tokens, and one is needed; give its first, 'r'."),
        (["--input=de", "--heads=stack.attention.0.0"], "--heads is of a page; give --out=FILE.html, too."),
        (["--input=de", "--full-provenance"], "--full-provenance is of a page; give --out=FILE.html, too."),
        (["--input=de", f"--out={'a' * 250}.html"], "has 255 bytes between two slashes"),
        (["--input=de", "--json=.json"], "--json=.json must be a .json file in a folder that exists."),
        (["--input=de", "--out=a.html", "--budget=9999"], "--budget: of the overview of all heads "),
        (["--input=de", "--out=a.html", "--heads=stack.attention.9.0"], "--heads=stack.attention.9.0 is no head of"),
        (["--input=de", "--heads=stack", "--out=a.html"], "--heads=stack must be as stack.attention.3.1"),
        (["--input=de", "--intended=no.txt"], "--intended=no.txt cannot be read (No such file or directory)"),
        (["--input=de", "--attributions=x.json", "--generate=2"], "--generate explains each token by itself"),
        (["--input=de", "--capture=stack.residual"], "--capture=stack.residual is written nowhere"),
        (
            ["--input=de", "--capture=stack.residuals", "--arrays=a.safetensors"],
            "no site stack.residuals; the nearest",
        ),
        (["--input=de", "--config.train.seed=3"], "--config.train.seed: a run keeps the config it was trained with"),
        (["--inputs=no.txt"], "--inputs=no.txt cannot be read (No such file or directory)"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(run: Path, more: list[str], sentence: str) -> None:
    outcome = call(explain.main, [f"--workdir={run}", *more])
    assert outcome.status == 2
    assert sentence in outcome.err.splitlines()[-1]
    assert "faithfulness" not in outcome.out


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faithfulness has its own tests: here nobody measures it."""
    monkeypatch.setattr(kept, "table_or_why", lambda run, say, parameters, kind, _: kept.Table(kind, run.step, "", {}))


def told_of(run: Path, *more: str) -> tuple[str, list[Result]]:
    """What the command says, and the results that it writes."""
    outcome = call(explain.main, [f"--workdir={run}", f"--json={run}/told.json", *more])
    assert outcome.status == 0, outcome.err
    return outcome.out, load(run / "told.json")


@pytest.mark.rest
def test_spans_are_told_of_one_answer_and_not_another(run: Path, unmeasured: None) -> None:
    """What is asked is what is explained, and the numbers that are told are sums over the spans."""
    words = ["--input=def main", "--input=print", "--methods=gradient_x_input", "--target=x", "--against=y", "--at=2"]
    said, found = told_of(run, *words, "--spans=0:3,3:5")
    assert [(one.target.texts, one.target.against_texts, one.target.places) for one in found] == [
        (("x",), ("y",), (2,))
    ] * 2
    rows = re.findall(r"^  gradient_x_input  not measured +(.*)$", said, re.M)
    for row, one, texts in zip(rows, found, (("def", " m"), ("pri", "nt")), strict=True):
        sums = [one.values["embedding"][start:stop].sum() for start, stop in ((1, 4), (4, 6))]
        told = re.findall(r"(\d+-\d+) '([^']+)' ([+-]\S+)", row)
        assert {(where, text) for where, text, _ in told} == {("1-3", texts[0]), ("4-5", texts[1])}
        numbers = {text: float(number) for _, text, number in told}
        assert [numbers[text] for text in texts] == pytest.approx(sums, rel=1e-2)


@pytest.mark.rest
def test_the_page_of_what_is_written_is_of_its_last_token(run: Path, unmeasured: None) -> None:
    said, found = told_of(run, "--input=de", "--generate=3", f"--out={run}/written.html", "--methods=gradient_x_input")
    assert f"page: {run}/written.html" in said
    page = (run / "written.html").read_text()
    assert "what is written (down) by what is read (across)" in page
    last = found[-1]
    (data,) = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["inputs"]
    assert len(data["pieces"]["embedding"]) == len(last.pieces["embedding"]) == 2 + len(found)
    assert f"token {last.target.texts[0]!r}, told at {last.target.places[0]}" in html.unescape(page)


@pytest.mark.rest
def test_a_page_names_who_and_where_only_if_it_is_asked_to(run: Path, unmeasured: None) -> None:
    words = ["--input=de", "--methods=gradient_x_input", "--continuation=f x"]
    for more in ((), ("--full-provenance",)):
        _, (one,) = told_of(run, *words, f"--out={run}/who.html", *more)
        page = (run / "who.html").read_text()
        assert [name in page for name in (str(run.resolve()), f">{socket.gethostname()}<")] == [bool(more)] * 2
    assert (one.target.kind, one.target.texts, one.target.places) == ("continuation", tuple("f x"), (2, 3, 4))


def test_the_command_that_a_page_names_asks_for_the_same() -> None:
    words = ["--input=a b", "--input=-c", "--inputs=/x/in.txt", "--methods=rollout,flow", "--target= return", "--at=0"]
    words += ["--against='", "--continuation=d\n", "--baseline=end", "--spans=0:1", "--heads=stack.attention.0.1"]
    words += ["--generate=3", "--out=/y/page.html", "--budget=98765"]
    flags, _ = cli.parse(explain.parser(), ["--workdir=/z", *words])
    *module, first = (again := shlex.split(explain._again(flags)))[:4]
    assert (module, first) == (["python", "-m", "launch.explain"], "--workdir=.")
    same, _ = cli.parse(explain.parser(), again[3:])
    files = {"workdir": ".", "inputs": "in.txt", "out": "page.html"}
    assert vars(same) == vars(flags) | files
    plain, _ = cli.parse(explain.parser(), ["--workdir=/z", "--input=a"])
    assert explain._again(plain) == "python -m launch.explain --workdir=. --input=a"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"text": 5}', "text=5 is no text; give it in quotes, as a line of --inputs=FILE.jsonl."),
        ("b.jsonl", '{"text": ["a"]}', "text=['a'] is no text; give it in quotes"),
        ("c.jsonl", '{"text": "a"}\n[1]', 'c.jsonl: line 2 holds no columns; write them as {"text": "..."}.'),
        ("d.jsonl", '{"text": "a"}\n{', "d.jsonl: line 2 is no JSON ("),
        ("e.txt", "a\n\nb", "e.txt: line 2 is empty; give a line for each input."),
        ("f.txt", b"a\x00".decode() + "\udcff", "f.txt cannot be read (it is no text in UTF-8)"),
    ],
)
def test_inputs_that_are_none_are_refused_with_their_line(
    run: Path, tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    outcome = call(explain.main, [f"--workdir={run}", f"--inputs={tmp_path / name}"])
    assert outcome.status == 2
    assert sentence in outcome.err.splitlines()[-1]


def test_a_line_of_inputs_ends_with_a_line_feed_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("def a\x0cdef b\nc\u2028d\n")
    (tmp_path / "a.jsonl").write_text('{"text": "a\u2028b"}\n')
    assert examples([], str(tmp_path / "a.txt"), "text") == [{"text": "def a\x0cdef b"}, {"text": "c\u2028d"}]
    assert examples(["x"], str(tmp_path / "a.jsonl"), "text") == [{"text": "x"}, {"text": "a\u2028b"}]


def test_sites_are_listed_with_what_they_mean(run: Path) -> None:
    outcome = call(explain.main, [f"--workdir={run}", "--sites"])
    assert re.search(r"^stack\.0\.attention\.weights +how much each query takes of each key", outcome.out, re.M)


def test_the_document_of_which_most_is_there_is_asked_about() -> None:
    ids_BT = np.array([[1, 1, 1, 2, 2, 3], [1, 2, 2, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    assert _last_of_longest(ids_BT).tolist() == [2, 2, 5]
