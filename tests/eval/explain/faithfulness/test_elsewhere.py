"""Maps that were made elsewhere: read for the inputs that they are of, and judged as far as is known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from eval.explain.faithfulness.elsewhere import ANEW, judged_elsewhere, read_maps, told
from eval.explain.faithfulness.judging import drawn_anew, verdicts
from eval.explain.files.result import Explained, Result, save
from eval.explain.methods.table import Asked
from model.errors import UserError
from tests.eval.explain.bag import shares
from tests.eval.explain.faithfulness.test_faithfulness import asked


def results(one: Asked, method: str, map_BT: np.ndarray) -> list[Result]:
    """As a file has them: without padding."""
    found = []
    targets = zip(*(np.asarray(x).tolist() for x in (one.target.places_BP, one.target.answers_BP)), strict=True)
    rows = zip(*map(np.asarray, one.inputs.values()), map_BT, targets, strict=True)
    for tokens_T, real_T, row_T, (places, answers) in rows:
        count = int(real_T.sum())
        pieces = {"embedding": tuple(map(str, tokens_T[:count].tolist()))}
        target = Explained("class", tuple(places), tuple(answers), ("x",), 0.0, 0.5)
        found.append(Result(method, True, {"embedding": row_T[:count]}, pieces, target))
    return found


def texts(one: Asked) -> dict[str, list[tuple[str, ...]]]:
    """Those of the tokens of each row."""
    return {"embedding": [r.pieces["embedding"] for r in results(one, "", np.zeros(one.inputs["tokens_BT"].shape))]}


def test_it_is_told_as_far_as_it_is_known(tmp_path: Path) -> None:
    """Exact maps are faithful with those of the model drawn anew, and otherwise nobody knows; noise is not."""
    one, each_BT = asked()
    other_BT = shares(drawn_anew(one.model, 0), one.inputs, one.target)
    noise_BT = np.random.default_rng(5).random(each_BT.shape)
    own = texts(one)
    given = [*results(one, "both", each_BT), *results(one, "both" + ANEW, other_BT)]
    save([*given, *results(one, "alone", each_BT), *results(one, "noise", noise_BT)], tmp_path / "maps.json")
    maps = read_maps(f"{tmp_path}/maps.json", one, own, "")
    np.testing.assert_array_equal(maps.maps["both"]["embedding"], np.where(one.inputs["valid_BT"], each_BT, 0))
    found = judged_elsewhere(one, maps)
    words = {"both": "faithful here", "alone": "not measured", "noise": "not faithful here"}
    assert {name: verdict.word for name, verdict in found.items()} == words
    whole = verdicts(one, maps.maps, maps.maps | maps.anew)
    assert found["both"][: len(whole["both"])] == whole["both"]
    exact, noise = found["both"], found["noise"]
    assert (exact.few, exact.sensitivity) == (8, None)
    assert exact.leave_one_out > 0.9 > noise.leave_one_out + 0.5  # the exact map is what leaving out one finds
    assert exact.infidelity < noise.infidelity
    assert exact.sufficiency < noise.sufficiency
    assert found["alone"].p == whole["alone"].p
    assert found["alone"].correlation is None
    assert [line.split()[0] for line in told(found).splitlines()] == [*words]
    few, few_BT = asked(12)
    save(results(few, "few", few_BT), tmp_path / "few.json")
    read = read_maps(f"{tmp_path}/few.json", few, texts(few), "")
    assert judged_elsewhere(few, read)["few"].word == "not measured"


def test_maps_of_other_inputs_are_refused(tmp_path: Path) -> None:
    one, each_BT = asked(4)
    own, file = results(one, "own", each_BT), tmp_path / "maps.json"
    save(own[:3], file)
    with pytest.raises(UserError, match="own is of 3 inputs, and 4 are given"):
        read_maps(str(file), one, texts(one), "")
    pieces = {"embedding": ("?", *own[2].pieces["embedding"][1:])}
    save([*own[:2], dataclasses.replace(own[2], pieces=pieces), own[3]], file)
    with pytest.raises(UserError, match="own of input 3 is of other tokens than this run's"):
        read_maps(str(file), one, texts(one), "")
    target = dataclasses.replace(own[1].target, answers=(own[1].target.answers[0] + 1,))
    place = dataclasses.replace(own[1].target, places=(1,))
    for changed, sentence in {
        dataclasses.replace(own[1], target=target): "own of input 2 explains 'x' at 0, and something else",
        dataclasses.replace(own[1], target=place): "own of input 2 explains 'x' at 1, and something else",
        dataclasses.replace(own[1], provenance={"parameters": "abc"}): "own is of other parameters than this run's",
        dataclasses.replace(own[1], method="b" + ANEW): "holds no maps of the model itself: 'b'",
    }.items():
        save([own[0], changed, *own[2:]], file)
        with pytest.raises(UserError, match=sentence):
            read_maps(str(file), one, texts(one), "")
    save([], file)
    with pytest.raises(UserError, match="holds no maps of the model itself"):
        read_maps(str(file), one, texts(one), "")
