"""What the methods say, as results: of each row its own; and of each token that a model writes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from eval.explain import explaining
from eval.explain.asking import asked_for, of_pairs, of_texts, read
from eval.explain.explaining import explained, written
from eval.explain.methods.table import METHODS, Asked
from eval.explain.targets import places
from tests.eval.explain.runs import logits, made, shares


@pytest.mark.rest
def test_each_result_is_of_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers, its error and passes, its answer, and what its tokens were compared with."""
    run = made(tmp_path, "gpt", "language_model")
    given, target, kind = asked_for(run, read(run, [{"text": "ab"}, {"text": "abcde"}]), target="x", against="y")
    maps_BT = np.arange(12.0).reshape(2, 6)
    whole = SimpleNamespace(values={"embedding": maps_BT}, error_B=np.array([0.25, 0.5]), passes_B=np.array([7, 11]))
    monkeypatch.setattr(explaining, "integrated_gradients", lambda *asked: whole)
    names = ("integrated_gradients", "leave_one_out", "gradient")
    fake = {name: METHODS[name]._replace(call=lambda asked: {"embedding": -maps_BT}) for name in names}
    monkeypatch.setattr(explaining, "METHODS", fake)
    asked = Asked(run.model, given.inputs, target, {})
    found = explained(run, asked, given, kind, names, "end", {"step": 3})
    said_BV = logits(run, given.inputs)[[0, 1], [2, 5]]
    want: dict[str, Any] = {
        "integrated_gradients": ((0.25, 0.5), (7, 11), "end"),
        "leave_one_out": ((None, None), (1 + 3, 1 + 6), "end"),
        "gradient": ((None, None), (1, 1), ""),
    }
    assert [*found] == [*want]
    for name, (errors, passes, compared) in want.items():
        for row, one in enumerate(found[name]):
            size, sign = (3, 6)[row], 1 if name == "integrated_gradients" else -1
            assert one.pieces == {"embedding": ("(end)", *"abcde"[: size - 1])}
            np.testing.assert_array_equal(one.values["embedding"], sign * maps_BT[row, :size])
            assert (one.method, one.signed) == (name, name != "gradient")
            assert (one.error, one.passes, one.baseline) == (errors[row], passes[row], compared)
            assert (one.target.places, one.target.texts, one.target.against_texts) == ((size - 1,), ("x",), ("y",))
            less = said_BV[row, ord("x")] - said_BV[row, ord("y")]
            assert one.target.value == pytest.approx(less, rel=1e-4)
            assert one.target.probability == pytest.approx(1 / (1 + np.exp(-less)), rel=1e-4)
            assert one.provenance == {"step": 3}


@pytest.mark.parametrize("family", ["gpt", pytest.param("encoder_decoder", marks=pytest.mark.rest)])
def test_of_what_is_written_no_row_sees_more_than_came_before(tmp_path: Path, family: str) -> None:
    """Each token is the likeliest behind those before, and its row is as if nothing else had been written."""
    run = made(tmp_path, family, "language_model" if family == "gpt" else "translation")
    columns = {"text": "ab"} if family == "gpt" else {"source": "abc", "target": "x"}
    given, target, kind = written(run, read(run, [columns]), 3)
    new, first = np.asarray(target.answers_BP)[:, 0].tolist(), 3 if family == "gpt" else 2
    assert (kind, len(new)) == ("token", 3)
    assert np.asarray(target.places_BP)[:, 0].tolist() == [first - 1, first, first + 1]
    if family == "gpt":
        alone = of_texts(run, [[run.tokenizer.end, *b"ab", *new[:number]] for number in range(3)])
    else:
        alone = of_pairs(run, [([*b"abc"], [*b"x", *new[:number]]) for number in range(3)])
    assert given.tokens == alone.tokens
    real = places(alone.inputs)
    for site, real_Nn in places(given.inputs).items():
        np.testing.assert_array_equal(real_Nn, real[site], err_msg=site)
    at = np.arange(3), np.asarray(target.places_BP)[:, 0]
    want_NV, said_NV = (shares(logits(run, one.inputs)[at]) for one in (alone, given))
    assert want_NV.argmax(-1).tolist() == new
    np.testing.assert_allclose(said_NV, want_NV, rtol=1e-4, atol=1e-6)
