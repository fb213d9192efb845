"""What is told of explained inputs: which rows, which side of pairs, what the lens says where, and of how many."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain import reporting
from eval.explain.asking import Given, of_pairs, of_texts
from eval.explain.faithfulness import kept
from eval.explain.files.result import Explained, Result, pieces
from eval.explain.methods.table import Asked
from eval.explain.page.content import shown
from eval.explain.reporting import contents, heading
from eval.explain.targets import Target
from eval.runs import Run
from tests.eval.explain.runs import logits, made, shares

TABLE = kept.Table("token", 3, "", {"a": kept.Row("faithful here", 5, few=2), "b": kept.Row("not measured", 64, few=8)})


@pytest.fixture(autouse=True)
def _no_model_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page gathers of the model itself has its own tests: here is what it is given."""

    def content_of(asked: Asked, results: Any, row: int, heads: Any, **told: Any) -> SimpleNamespace:
        return SimpleNamespace(results=results, row=row, heads=heads, **told)

    monkeypatch.setattr(reporting, "content_of", content_of)


def reported(run: Run, given: Given, places: list[int], matrix: bool) -> tuple[list[Any], list[Result]]:
    """What the pages of rows are given, of maps by `glow` whose numbers are of their row and place."""
    answers = [ord("x") + row for row in range(len(places))]
    target = Target(jnp.array(places)[:, None], jnp.array(answers)[:, None])
    maps = []
    for row, (place, answer) in enumerate(zip(places, answers, strict=True)):
        own = {site: pieces(run.tokenizer, rows[row]) for site, rows in given.tokens.items()}
        values = {site: 10 * row + np.arange(len(some)) + 100 * ("encoder" in site) for site, some in own.items()}
        maps.append(
            Result("glow", True, values, own, Explained("token", (place,), (answer,), (chr(answer),), 0.0, 0.5))
        )
    asked = Asked(run.model, given.inputs, target, {})
    found: Any = contents(run, asked, given, {"glow": maps}, TABLE, matrix=matrix, facts={"a": "b"}, commands={})
    return found, maps


def check_lens(run: Run, given: Given, place: int, one: Any) -> None:
    """The last layer says what the model says there."""
    share_V = shares(logits(run, given.inputs)[one.row, place])
    best = np.argsort(-share_V)[:5]
    texts = map(shown, pieces(run.tokenizer, best))
    want = [f"{text} {share_V[number]:.3f}" for text, number in zip(texts, best, strict=True)]
    assert one.lens.rows[-1] == [f"layer {run.config.model.num_layers - 1}", *want]


@pytest.mark.rest
def test_each_input_has_its_own_page(tmp_path: Path) -> None:
    run = made(tmp_path, "gpt", "language_model")
    given = of_texts(run, [[run.tokenizer.end, *text.encode()] for text in ("ab", "cdefg")])
    found, maps = reported(run, given, [2, 3], matrix=False)
    assert [one.text for one in found] == ["ab", "cdefg"]
    assert [one.row for one in found] == [0, 1]
    assert [one.results for one in found] == [[maps[0]], [maps[1]]]
    assert [one.answer.split(":")[0] for one in found] == ["token 'x', told at 2", "token 'y', told at 3"]
    for one, place in zip(found, (2, 3), strict=True):
        check_lens(run, given, place, one)
        assert (one.tables, one.left_out, one.facts, one.verdicts) == ([], [], {"a": "b"}, TABLE.rows)
        assert len(one.notes) == 2
        assert [" 5 examples " in one.notes[0], " 64 examples " in one.notes[1]] == [True, True]


@pytest.mark.rest
def test_of_what_is_written_the_last_token_has_a_page_and_all_have_a_table(tmp_path: Path) -> None:
    """Of pairs it is across the source; and a method that is of one stack is said to be left out."""
    run = made(tmp_path, "encoder_decoder", "translation")
    given = of_pairs(run, [([*b"abc"], [*b"xyz"][:number]) for number in range(3)])
    (one,), maps = reported(run, given, [0, 1, 2], matrix=True)
    assert (one.row, one.results, one.text) == (2, [maps[2]], "abc → xy")
    assert one.answer.startswith("token 'z', told at 2")
    assert one.left_out == ["flow: it makes no sense for this model."]
    check_lens(run, given, 2, one)
    (table,) = one.tables
    assert table.columns == ["", "a", "b", "c", "(end)"]
    assert table.rows == [
        [letter, *(f"{100 + 10 * row + place:+}" for place in range(4))] for row, letter in enumerate("xyz")
    ]


@pytest.mark.rest
def test_of_a_text_what_is_written_is_by_all_that_came_before(tmp_path: Path) -> None:
    run = made(tmp_path, "gpt", "language_model")
    given = of_texts(run, [[run.tokenizer.end, *b"axy"][: 2 + number] for number in range(3)])
    (one,), _ = reported(run, given, [1, 2, 3], matrix=True)
    (table,) = one.tables
    assert (one.row, one.text, table.columns) == (2, "axy", ["", "(end)", "a", "x", "y"])
    assert table.rows == [["x", "+0", "+1", "", ""], ["y", "+10", "+11", "+12", ""], ["z", "+20", "+21", "+22", "+23"]]


def test_the_heading_says_of_which_run_and_by_how_many_examples_at_most() -> None:
    """One that was measured on fewer says so on the page."""
    train = SimpleNamespace(seeds=1, seed=7)
    run: Any = SimpleNamespace(config=SimpleNamespace(train=train), step=3)
    told = "runs/x, step 3; faithfulness is that of answers of this kind (token), by 64 examples of its validation set"
    assert heading(run, "runs/x", TABLE) == told
    train.seeds = 4
    noted = kept.Table("token", 3, "", {}, ("not measured: why",))
    assert heading(run, "runs/x", noted).splitlines() == [
        "of the 4 seeds, the first: 7",
        told.replace("64", "0"),
        "  not measured: why",
    ]
