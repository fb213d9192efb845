"""Whether a model looks at what it should, beside counting, and beside inputs of which something is gone."""

from pathlib import Path

import numpy as np
import pytest

from eval.explain.asking import asked_for, of_pairs, read
from eval.explain.faithfulness.validation import baseline
from eval.explain.files.result import Explained, Result
from eval.explain.intended import Intended, intended, meant, told
from eval.explain.methods.table import Asked
from tests.eval.explain.runs import logits, made, shares


@pytest.mark.rest
def test_what_is_intended_is_a_share_of_all_and_is_taken_out_by_itself(tmp_path: Path) -> None:
    """Of pairs the spans are of the source, and maps have numbers on both sides; marks and what is written stay."""
    run = made(tmp_path, "encoder_decoder", "translation")
    examples = [{"source": "ab cd", "target": "x"}, {"source": "efg", "target": "xyz"}]
    given, target, kind = asked_for(run, read(run, examples))
    end, rng = run.tokenizer.end, np.random.default_rng(0)
    maps = []
    for row in range(2):
        pieces = {site: tuple(map(str, rows[row])) for site, rows in given.tokens.items()}
        values = {site: rng.standard_normal(len(own)) for site, own in pieces.items()}
        maps.append(Result("glow", True, values, pieces, Explained(kind, (0,), (0,), ("",), 0.0, 0.5)))
    spans = [[(0, 2), (4, 5)], [(1, 3)]]
    asked = Asked(run.model, given.inputs, target, baseline(run, given.inputs, "end"))
    found = intended(asked, meant(run.tokenizer, given.tokens, spans), {"glow": maps})
    inside = [[0, 1, 4], [1, 2]]
    for row, one in enumerate(found):
        source_S, written_T = (np.abs(maps[row].values[f"{side}coder.embedding"]) for side in ("en", "de"))
        assert one.shares["glow"] == pytest.approx(source_S[inside[row]].sum() / (source_S.sum() + written_T.sum()))
        source = [*examples[row]["source"].encode()]
        alone = [token if place in inside[row] else end for place, token in enumerate(source)]
        without = [end if place in inside[row] else token for place, token in enumerate(source)]
        same = of_pairs(run, [(some, [*examples[row]["target"].encode()]) for some in (source, alone, without)])
        place, answer = (int(np.asarray(x)[row, 0]) for x in (target.places_BP, target.answers_BP))
        want = shares(logits(run, same.inputs)[:, place])[:, answer]
        np.testing.assert_allclose([one.probability, one.alone, one.without], want, rtol=1e-4)
        assert len({*np.round(want, 6)}) == 3


def test_only_maps_that_are_faithful_are_told_of_what_is_intended() -> None:
    one = Intended({"glow": 0.25, "gleam": 0.5}, 0.7, 0.6, 0.1)
    lines = told([one, one], ["gleam"]).splitlines()
    assert lines[:2] == [
        "input 1, what is intended: probability 0.7, with nothing else 0.6, without it 0.1",
        "  gleam  50% inside",
    ]
    assert lines[2].startswith("input 2, what is intended: ")
    assert told([one], []).splitlines()[1] == "  of no map that was asked for it is known that it is faithful here"
