"""Whose heads are scored, and that each seed is scored by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from eval.explain import specialised as module
from eval.explain.faithfulness.judging import drawn_anew
from eval.explain.specialised import Specialised
from launch.configs import load
from launch.train import fit
from model.errors import UserError
from tests.eval.explain.cases import case
from tests.tiny import write_text
from train.tasks.heads import CONTROLS, Heads


def told_by(control: str, models: dict[int, Any]) -> dict[str, Any]:
    return dict(Specialised(None, None, 8, models=lambda params: models, task=Heads(control=control))(None))


def test_the_heads_are_those_of_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    def scored(model: Any, seed: int, *, shuffled: bool) -> dict[str, float]:
        first = float(np.ravel(model.embed.embedding[...])[0])
        return {"previous": first, "prefix": seed + shuffled / 2}

    monkeypatch.setattr(module, "specialised", scored)
    model, _, _ = case("gpt-language_model")
    models = {4: model, 5: drawn_anew(model, 99)}
    own = [scored(one, 0, shuffled=False)["previous"] for one in models.values()]
    found = {control: told_by(control, models) for control in CONTROLS}
    for control in ("none", "shuffled"):
        np.testing.assert_allclose(found[control]["val/previous_token"], own)
    np.testing.assert_allclose(found["none"]["val/prefix_matching"], [4, 5])
    np.testing.assert_allclose(found["shuffled"]["val/prefix_matching"], [4.5, 5.5])
    fresh = [scored(model.config.build(nnx.Rngs(1 + seed)), 0, shuffled=False)["previous"] for seed in models]
    np.testing.assert_allclose(found["untrained"]["val/previous_token"], fresh)
    alone = told_by("none", {5: models[5]})
    assert alone == {"val/previous_token": pytest.approx(own[1]), "val/prefix_matching": 5.0}


def test_what_has_no_heads_is_refused_before_a_step(tmp_path: Path) -> None:
    keys = write_text(tmp_path) | {"family": "recurrent", "task": "heads"}
    keys = {key: value for key, value in keys.items() if key != "model.num_heads"}
    with pytest.raises(UserError, match="--config.task=heads is of heads of attention, and this family has none"):
        fit(load("base", **keys))
    with pytest.raises(UserError, match="--config.objective.control='no' is not one of: none, untrained, shuffled."):
        Heads(control="no")


@pytest.mark.rest
def test_a_run_tells_of_its_heads(tmp_path: Path) -> None:
    keys = write_text(tmp_path) | {"task": "heads", "train.steps": 2, "train.seeds": 2}
    last = fit(load("base", **keys))[1][-1]
    for name in Specialised.NAMES:
        assert np.shape(last[name]) == (2,)
        assert (np.asarray(last[name]) > 0).all()
        assert (np.asarray(last[name]) < 1).all()
