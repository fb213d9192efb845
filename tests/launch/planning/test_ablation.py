"""An ablation planned whole: which programs it has, how often they run, and what they take together."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch import plan as command
from launch.ablation.plan import Plan, make_plan
from launch.planning import running
from launch.planning.ablation import programs
from tests.launch.planning.test_plan import needs_compiler
from tests.tiny import call

PLAN: dict[str, Any] = {
    "question": "Does the scale of the scores matter?",
    "factor": "model.scale",
    "arms": {"scaled": {}, "bare": {"model.scale": 1.0}},
    "base": "gpt:ablation",
    "smallest": 0.01,
    "seeds": range(11),
    "pilot_seeds": [100, 101, 105],
    "tune_seeds": [200, 201],
    "learning_rates": {"scaled": [1e-3, 3e-3, 1e-2], "bare": [1e-3, 3e-3]},
    "pack": 5,
}


def counted(plan: Plan) -> dict[tuple[str, ...], dict[int, int]]:
    """How often each population runs, by its arms and its size."""
    found: dict[tuple[str, ...], dict[int, int]] = {}
    for one in programs(plan):
        found.setdefault(tuple(one.arms), {})[one.config.train.seeds] = one.runs
    return found


def test_each_population_is_counted_as_often_as_it_runs() -> None:
    """Tuned at each rate, then at one; seeds 0 to 10 are packs of 5, 5 and 1, the pilot's 2 and 1."""
    plan = make_plan("mine", PLAN)
    assert counted(plan) == {("scaled",): {2: 3 + 1, 1: 1 + 1, 5: 2}, ("bare",): {2: 2 + 1, 1: 1 + 1, 5: 2}}
    every = programs(plan)
    assert sum(one.runs * one.config.train.seeds for one in every) == sum(plan.runs(arm) for arm in plan.arms)
    rates = {"base": {"optimizer.warmup_steps": 3}, "slow": {"optimizer.warmup_steps": 7}}
    sensitive = {"contrast": "sensitivity", "arms": rates, "factor": "optimizer.warmup_steps"}
    plan = make_plan("mine", PLAN | sensitive | {"learning_rates": [1e-3, 3e-3]})
    assert counted(plan) == {(arm,): {2: 2, 1: 4, 5: 4} for arm in rates}


RATES = {
    "arms": {"low": {"optimizer.learning_rate": 1e-3}, "high": {"optimizer.learning_rate": 1e-2}},
    "factor": "optimizer.learning_rate",
    "learning_rates": {},
    "tune_seeds": [],
}


def test_arms_that_differ_in_their_rate_alone_are_one_program() -> None:
    assert counted(make_plan("mine", PLAN | RATES)) == {("low", "high"): {2: 2, 1: 4, 5: 4}}


def told(folder: Path, *words: str, **changes: Any) -> tuple[dict[str, Any], str, int | None]:
    (folder / "mine.py").write_text(f"def get_plan():\n    return {PLAN | changes!r}\n")
    flags = [f"--plan={folder / 'mine.py'}", "--topology=v5e:2x2", f"--json={folder / 'plan.json'}"]
    outcome = call(command.main, [*flags, *words])
    assert outcome.status in (0, 1), outcome.err
    return json.loads((folder / "plan.json").read_text()), outcome.out, outcome.status


def test_all_runs_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what a compiler says of each program, asked once for each: the population of 5 does not fit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []

    def compiled(job: dict[str, Any], _: float | None) -> dict[str, Any]:
        seeds = job["config"]["train"]["seeds"]
        asked.append(seeds)
        known = {"peak_bytes": 1, "needed_bytes": seeds * 2**30, "hbm_bytes": 4 * 2**30, "fits": seeds < 5}
        flops = {"flops_per_token": 1.97e14, "attention_flops_per_token": 0.0}
        return known | flops | {"devices": 4, "tokens_per_step": 4 * seeds, "steps": 0}

    monkeypatch.setattr(running, "_compiled", compiled)
    found, out, status = told(tmp_path, "--price=3", "--watts=100", "--config.train.steps=36")
    assert (found["runs"], found["fits"], status, asked) == (4 + 2 + 2 + 3 + 2 + 2, False, 1, [2, 1, 5, 2, 1, 5])
    # A step of n seeds takes n seconds, on four chips, and 36 of them a hundredth of an hour.
    assert found["chip_hours"] == pytest.approx(0.01 * 4 * (2 * 4 + 1 * 2 + 5 * 2 + 2 * 3 + 1 * 2 + 5 * 2))
    assert found["cost"] == pytest.approx(3 * found["chip_hours"])
    assert found["energy_kwh"] == pytest.approx(0.1 * found["chip_hours"])
    assert [(one["arms"], one["seeds"], one["runs"], one["steps"]) for one in found["programs"][:2]] == [
        (["scaled"], 2, 4, 36), (["scaled"], 1, 2, 36),
    ]  # fmt: skip
    assert out.count(" NO ") == 2
    assert "15 runs: 1.52 chip-hours at least; cost 4.56 USD, energy 0.152 kWh" in out
    assert told(tmp_path)[0]["cost"] is None


@pytest.mark.rest
@needs_compiler
def test_an_ablation_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds of a population lie on all devices, each with its own parameters and its own tokens."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    changes = RATES | {"pilot_seeds": [100], "seeds": range(2)}
    found, out, status = told(tmp_path, "--config.mesh.fsdp=1", "--config.mesh.context=4", **changes)
    assert (status, found["fits"], len(found["programs"])) == (0, True, 2), out
    one, two = found["programs"]
    for name in ("parameters", "optimizer"):
        assert two["classes"][name] == pytest.approx(2 * one["classes"][name], rel=0.2), name
    assert (two["seeds"], two["tokens_per_step"]) == (2, 2 * one["tokens_per_step"])
    assert found["chip_hours"] == pytest.approx(2 * (one["chip_hours"] + two["chip_hours"]))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give one of --config, of which a run is planned, and --plan, of which an ablation is."),
        (
            ["--plan=configs/ablations/scale.py", "--shardings"],
            "--plan and --shardings do not go together: leave one of them out.",
        ),
        (["--plan=configs/none.py"], "--plan=configs/none.py: there is no such Python file; "),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], sentence: str) -> None:
    outcome = call(command.main, ["--topology=v5e:2x2", *words])
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith(sentence)
