"""What `--dry-run` prints, and a grid whose key was solved for."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from launch import ablate
from launch.ablation.gates.budget import Budget
from launch.ablation.gates.dry_run import table
from launch.ablation.gates.examine import Examined, examined_at, keep
from launch.ablation.gates.rules import Gate
from launch.ablation.plan import Plan
from tests.launch.ablation.small_plan import VALUES, small_plan
from tests.tiny import call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


def examined(plan: Plan, *gates: Gate, seconds: float | None = None) -> Examined:
    return Examined({arm: Budget(1234567, 1000, 2.5e6, 4000, 100, 2**29, seconds) for arm in plan.arms}, gates)


def test_the_table_says_what_a_plan_costs_and_could_find(folder: Path) -> None:
    """By hand: at a spread of 0.02 of four pairs, 1.20 spreads are 0.024, and at the upper limit 1.73 times as much."""
    plan = small_plan(folder, waived={"init": "it is asked"})
    gates = Gate("keys", True, "so"), Gate("init", False, "others"), Gate("budget", False, "off")
    lines = table(plan, examined(plan, *gates)).splitlines()
    assert ["scaled", "1,234,567", "1,000", "2.5e+06", "4,000", "0.5", "-", "16"] in [line.split() for line in lines]
    assert "bare: model.scale: 0.0 -> 1.0" in lines
    assert "smallest n that can reach alpha=0.05 with 1 contrast: 6; declared: 8" in lines
    assert "found in 80 % of cases: 1.20 spreads of a pair's difference" in lines
    assert "gate keys: holds: so" in lines
    assert "gate init: waived: others (it is asked)" in lines
    assert "gate budget: refused: off" in lines
    pilot = {"seeds": [1, 2, 3, 4], "contrasts": {"bare": {"spread": 0.02}, "none": {"spread": None}}}
    after = table(plan, examined(plan, seconds=0.6), pilot)
    found = re.search(
        r"bare: (\S+) of val/loss at the pilot's spread of 0.02, (\S+) at its 80 % upper limit of (\S+)", after
    )
    assert found
    assert [float(one) for one in found.groups()] == pytest.approx([0.024, 0.024 * 1.73, 0.02 * 1.73], rel=0.01)
    assert "all runs one after the other: 32 minutes" in after  # 2 arms of 16 seeds, each 100 steps of 0.6 s


def test_what_could_be_found_is_that_of_the_test_that_decides(folder: Path) -> None:
    """Of successes by McNemar's test, six of eight at least: at a rate of .8014 in .8 of cases; no spread of losses."""
    plan = small_plan(folder, success=3.0, smallest=0.3)
    told = table(plan, examined(plan), {"seeds": [1, 2, 3, 4], "contrasts": {"bare": {"spread": 0.02}}})
    assert "found in 80 % of cases, where no seed speaks against it: 0.80 of the seeds more or less" in told
    assert "spread" not in told
    plan = small_plan(folder, contrast="sensitivity")
    told = table(plan, examined(plan, seconds=0.6), {"seeds": [1, 2], "contrasts": {"bare": {"spread": 0.02}}})
    assert "all runs one after the other: 60 minutes" in told  # 2 arms of 10 seeds at 3 rates
    assert "of the sensitivity of val/loss at the pilot's spread" in told


def test_what_was_cut_short_is_found_anew(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = small_plan(folder)
    known = dataclasses.replace(examined(plan), gates=[Gate("keys", True, "so")])
    keep(plan, known, tmp_path)
    assert examined_at(plan, tmp_path) == known
    whole = (tmp_path / "gates.json").read_text()
    for text in (whole[:-9], "[]", '{"found_by": 1}'):
        (tmp_path / "gates.json").write_text(text)
        assert examined_at(plan, tmp_path) is None
    assert "gates.json is damaged" in caplog.text


@pytest.mark.rest
def test_a_dry_run_solves_times_and_tries_all_gates(folder: Path, tmp_path: Path) -> None:
    plan = small_plan(folder)
    shared: dict[str, Any] = {**plan.shared, "model.width": 48, "model.core": "dense"}
    change = {"factor": "model.edits", "arms": {"plain": {}, "gated": {"model.edits": "output_gate"}}, "shared": shared}
    (tmp_path / "mine.py").write_text(f"def get_plan():\n    return { ({**VALUES, **change})!r}\n")
    words = [f"--plan={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'grid'}", "--dry-run"]
    refused = call(ablate.main, words)
    assert refused.status == 2
    assert "gate budget: refused: parameters of the arms differ by more than 1 %" in refused.out
    assert "plan mine: gate budget: " in refused.err
    matched = call(ablate.main, [*words, "--match=mlp_width"])
    assert matched.status == 0, matched.err
    assert re.search(r"gated: model.edits: 'none' -> 'output_gate', model.mlp_width: 0 -> 1\d\d", matched.out)
    assert matched.out.count(": holds: ") == 11
    assert "plain and gated: 8 shared parameters" in matched.out
    assert not (tmp_path / "grid").exists()
    assert "the nearest is mlp_width" in call(ablate.main, [*words, "--match=mlpwidth"]).err
