"""What a plan may say, and the sentence for what it may not."""

from pathlib import Path
from typing import Any

import pytest

from eval.verdict.declared import least_seeds
from launch.ablation.plan import config_of, load_plan, make_plan, packs
from model.errors import UserError
from tests.conftest import ROOT

PLAN: dict[str, Any] = {
    "question": "Does the scale of the scores matter?",
    "factor": "model.scale",
    "arms": {"scaled": {}, "bare": {"model.scale": 1.0}},
    "smallest": 0.01,
    "seeds": range(8),
    "pilot_seeds": [100, 101],
    "tune_seeds": [200],
    "learning_rates": [1e-3, 3e-3, 1e-2],
}


def test_a_file_is_a_plan(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def get_plan():\n    return {PLAN!r}\n")
    plan = load_plan(tmp_path / "mine.py", **{"train.steps": 7})
    assert (plan.name, plan.baseline, plan.looks) == ("mine", "scaled", (8,))
    assert plan.learning_rates == dict.fromkeys(("scaled", "bare"), (1e-3, 3e-3, 1e-2))
    config = config_of(plan, "bare", 3e-3, seeds=8, first_seed=24)
    wanted = (1.0, 3e-3, 8, 24, 24, 7)
    found = (config.model.scale, config.optimizer.learning_rate, config.train.seeds, config.train.seed)
    assert (*found, config.data.seed, config.train.steps) == wanted
    shared = make_plan("mine", PLAN | {"shared": {"data.order": "shared", "data.seed": 5}})
    assert config_of(shared, "bare", None, seeds=8, first_seed=24).data.seed == 5


def test_a_file_that_is_edited_is_read_anew(tmp_path: Path) -> None:
    """Also within a second, and with as many letters, by which Python knows its compiled copy."""
    for smallest in (0.01, 0.02, 0.03):
        (tmp_path / "mine.py").write_text(f"def get_plan():\n    return { ({**PLAN, 'smallest': smallest})!r}\n")
        assert load_plan(tmp_path / "mine.py").smallest == smallest
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.py"]


def test_the_hash_is_of_all_that_is_declared() -> None:
    first = make_plan("mine", PLAN)
    for key, value in {"data.path": "here/*.txt", "train.checkpoint_every": 9, "train.keep_last": 1}.items():
        assert first.hash == make_plan("other", PLAN | {"shared": {key: value}}).hash
    changes: list[dict[str, Any]] = [
        {"smallest": 0.02},
        {"seeds": range(1, 9)},
        {"arms": PLAN["arms"] | {"double": {"model.scale": 2.0}}},
        {"shared": {"train.steps": 9}},
        {"shared": {"train.log_every": 9}},  # of which the curves are
        {"shared": {"train.evaluate_every": 9}},
        {"waived": {"edge": "so"}},
        {"question": "Does it?"},
    ]
    assert len({first.hash, *(make_plan("mine", PLAN | change).hash for change in changes)}) == len(changes) + 1


def test_an_interaction_is_what_both_changes_do_beyond_each() -> None:
    """(both - b) - (a - base), by the numbers that it adds up."""
    values = {"base": 1.0, "a": 10.0, "b": 100.0, "both": 1000.0}
    arms = {arm: {"model.scale": one} for arm, one in values.items()}
    (contrast,) = make_plan("mine", PLAN | {"arms": arms, "contrast": "interaction"}).contrasts
    found = sum(values[arm] for arm in contrast.plus) - sum(values[arm] for arm in contrast.minus)
    assert found == (1000.0 - 100.0) - (10.0 - 1.0)


def test_programs_end_where_seeds_or_looks_do() -> None:
    plan = make_plan("mine", PLAN | {"seeds": [*range(5), 7, 8, 9, 10], "looks": [4, 9], "pack": 2})
    assert packs(plan, plan.seeds) == [(0, 1), (2, 3), (4,), (7, 8), (9, 10)]
    assert packs(plan, plan.pilot_seeds) == [(100, 101)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"questoin": "?"}, "questoin is no key of a plan; the nearest is question"),
        ({"smallest": ...}, "smallest is missing"),
        ({"question": " "}, "question is empty"),
        ({"arms": {"scaled": {}}}, "must be two or more"),
        ({"arms": {"scaled": {}, "same": {}}}, "scaled and same are the same config"),
        ({"arms": {"scaled": {}, "a/b": {}}}, "'a/b' must be a name"),
        ({"arms": {"scaled": {}, "bare": {"optimizer.learning_rate": 1.0}}}, "learning_rates sets"),
        ({"arms": {"scaled": {}, "bare": {"model.scael": 1.0}}}, "model.scael: there is no such key"),
        ({"factor": "model.scael"}, "model.scael is no key"),
        ({"factor": []}, "factor is empty"),
        ({"contrast": "interaction"}, "an interaction has four arms"),
        ({"contrast": "sensitivity", "learning_rates": []}, "a sensitivity is over learning_rates"),
        ({"contrast": "sensitivity", "endpoint": "val/perplexity"}, "a sensitivity is of val/loss"),
        ({"direction": "lowest"}, "the nearest is lower"),
        ({"endpoint": "val/los"}, "val/los' is not measured; the nearest is val/loss"),
        ({"smallest": "one"}, "or a share such as"),
        ({"smallest": -1.0}, "above 0"),
        ({"smallest": "1 %", "pilot_seeds": []}, "give pilot_seeds"),
        ({"learning_rates": [1e-3]}, "one alone is no grid"),
        ({"learning_rates": {"scaled": [1, 2]}}, "has none for bare"),
        ({"learning_rates": {"scaled": [1, 2], "baer": [1, 2]}}, "baer is no arm; the nearest is bare"),
        ({"tune_seeds": []}, "give tune_seeds"),
        ({"seeds": [1, 1]}, "must be different numbers"),
        ({"seeds": "1, 2"}, "must be of type list"),
        ({"looks": [2, 8]}, "two ascending ones from 4"),
        ({"success": 0.5, "smallest": "1 %"}, "a difference of rates"),
        ({"looks": [4, 7]}, "rising from 2 to all 8"),
        ({"looks": [2, 4, 8]}, "one or two numbers"),
        ({"alpha": 1.5}, "between 0 and 1"),
        ({"pack": 0}, "at least 1"),
        ({"waived": {"edge": ""}}, "edge has no reason"),
        ({"seeds": [*range(4, 8), *range(4)], "looks": [4, 8]}, "rising: looks take the first"),
        ({"smallest": "1.2.3 %"}, "or a share such as"),
        ({"smallest": ". %"}, "or a share such as"),
        ({"learning_rates": [1e-3, float("nan"), 1e-2]}, "numbers above 0"),
        ({"learning_rates": [1e-3, float("inf")]}, "numbers above 0"),
        ({"learning_rates": {"scaled": 1e-3, "bare": 1e-3}}, "learning_rates=0.001 of scaled"),
        ({"learning_rates": {"scaled": ["a", "b"], "bare": [1, 2]}}, "learning_rates=['a', 'b'] of scaled"),
        ({"shared": 3}, "shared=3 must be of type dict"),
        ({"shared": {"model.width": [48]}}, "shared: 'model.width'=[48] must be"),
        ({"shared": {3: 4}}, "shared: 3=4 must be"),
        ({"shared": {"optimizer.learning_rate": 1e-3}}, "shared sets optimizer.learning_rate, which learning_rates"),
        ({"shared": {"train.seeds": 8}}, "shared sets train.seeds, which pack sets"),
        (
            {"arms": {"scaled": {}, "bare": {"model.scale": 1.0, "train.seed": 5}}},
            "arm bare sets train.seed, which seeds",
        ),
        ({"shared": {"data.seed": 5}}, "data.seed of scaled is that of each seed"),
        ({"base": "gptt"}, "there is no such config file"),
    ],
)
def test_what_is_no_plan_is_refused(change: dict[str, Any], words: str) -> None:
    values = {key: value for key, value in (PLAN | change).items() if value is not ...}
    with pytest.raises(UserError, match=".") as refused:
        make_plan("mine", values)
    assert words in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no such Python file"),
        ("x = 1", "this file does not"),
        ("def get_plan():\n    return []", "must return a dict"),
        ("x = (1\ny = 2", "mine.py, line 1: this is no Python: "),
        ("def get_plan():\n    return PLAN | {'shared': 3}", "shared=3 must be of type dict"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "mine.py").write_text(f"PLAN = {PLAN!r}\n" * ("PLAN" in text) + text)
    with pytest.raises(UserError, match=words):
        load_plan(tmp_path / "mine.py", **{"train.steps": 9})


def test_the_runs_of_an_arm_are_those_of_all_phases() -> None:
    """A sensitivity has no tune phase, and trains every seed at every rate."""
    assert make_plan("mine", PLAN).runs("bare") == 1 * 3 + 2 + 8
    assert make_plan("mine", PLAN | {"learning_rates": [], "tune_seeds": []}).runs("bare") == 2 + 8
    plan = make_plan("mine", PLAN | {"contrast": "sensitivity"})
    assert plan.runs("bare") == 3 * (2 + 8)
    assert plan.declared(0.1).endpoint == "the sensitivity of val/loss"


PLANS = sorted((ROOT / "configs" / "ablations").glob("[a-z]*.py"))


@pytest.mark.parametrize("file", PLANS, ids=lambda file: file.stem)
def test_a_committed_plan_tells_its_story_and_can_be_read(file: Path) -> None:
    plan = load_plan(file)
    text = file.read_text()
    assert f"launch.ablate --plan=configs/ablations/{file.name} " in text
    assert "Expected: " in text
    assert least_seeds(len(plan.contrasts), plan.alpha) <= len(plan.seeds)
    assert f"`{file.name}`" in (file.parent / "README.md").read_text()


def test_four_plans_are_committed() -> None:
    assert {"scale", "heads", "cycle", "gate"} <= {file.stem for file in PLANS}
