"""What a pilot says of a plan's power, where noise comes from, and that equal arms are told to be equal."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.verdict.detectable import seeds_for_rate
from launch import ablate
from launch.ablation.grid import Grid
from launch.ablation.plan import make_plan
from launch.ablation.power import equal_arms, pilot, sources
from model.errors import UserError
from tests.launch.ablation.small_plan import VALUES
from tests.tiny import write_text
from train.run.files.json_files import loads

pytestmark = pytest.mark.rest
TINY = {"train.steps": 4, "train.evaluate_every": 4, "train.checkpoint_every": 4, "train.accumulate": 1}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    shared = write_text(tmp_path_factory.mktemp("text")) | TINY
    change: dict[str, Any] = {"shared": shared, "learning_rates": [], "tune_seeds": [], "pilot_seeds": range(100, 104)}
    with ablate.opened(make_plan("power", VALUES | change), tmp_path_factory.mktemp("grid")) as made:
        yield made


def test_the_pilot_says_what_could_be_found(grid: Grid) -> None:
    found = pilot.foresee(grid)
    (one,) = found["contrasts"].values()
    metrics = {line["metric"]: line for line in one["metrics"]}
    assert {"val/loss", "val/bits_per_byte", "train/loss"} <= metrics.keys()
    effects = [line["effect"] for line in one["metrics"]]
    assert effects == sorted(effects, reverse=True)
    records = grid.run("pilot", grid.cells({"scaled": None, "bare": None}), grid.plan.pilot_seeds)
    own = {arm: np.array([*made[0].of("val/loss").values()]) for (arm, _), made in records.items()}
    spread = np.std(own["bare"] - own["scaled"], ddof=1)
    assert metrics["val/loss"]["spread"] == pytest.approx(spread, rel=1e-12)
    by_seeds = {line["seeds"]: line["effect"] for line in one["seeds_to_effect"]}
    assert by_seeds[8] / spread == pytest.approx(1.20, abs=0.01)
    assert [line["effect"] for line in one["effect_to_seeds"]] == [0.005, 0.01, 0.02]
    needed = [line["seeds"] for line in one["effect_to_seeds"]]
    assert needed == sorted(needed, reverse=True)
    assert "<svg" in (grid.place / "power.svg").read_text()
    assert "needs" in pilot.table(found, grid.plan)


def test_where_success_decides_rates_are_foreseen(grid: Grid) -> None:
    """By McNemar's test, whatever losses spread; and a pilot counts the runs that reach the threshold."""
    losses = [*loads((grid.place / "pilot.json").read_bytes())["values"]["bare"].values()]
    plan = dataclasses.replace(grid.plan, success=float(np.median(losses)), smallest=0.3)
    with ablate.opened(plan, grid.folder) as own:
        found = pilot.foresee(own)
        (one,) = loads((own.place / "pilot.json").read_bytes())["contrasts"].values()
    values = loads((own.place / "pilot.json").read_bytes())["values"]
    reached = [value <= plan.success for arm in values.values() for value in arm.values()]
    assert one["success"] == pytest.approx(np.mean(reached))
    assert 0 < one["success"] < 1
    (one,) = found["contrasts"].values()
    assert [line["effect"] for line in one["effect_to_seeds"]] == [0.15, 0.3, 0.6]
    assert [line["seeds"] for line in one["effect_to_seeds"]] == [seeds_for_rate(d, 1, 0.05) for d in (0.15, 0.3, 0.6)]
    assert {line["seeds"]: line["effect"] for line in one["seeds_to_effect"]}[8] == pytest.approx(0.8014, abs=1e-4)
    assert "upper limit" not in pilot.table(found, plan).split("find")[1]


def test_noise_is_split_by_its_sources(grid: Grid) -> None:
    """Three, of which each draws by itself: all runs of the table are others; and two where nothing is dropped."""
    parts = sources.variance(grid)
    assert [part.sources for part in parts[:3]] == [("order of the data",), ("dropout",), ("initial values",)]
    assert len(parts) == 7
    assert all(part.spread > 0 for part in parts)
    assert parts[2].spread > parts[1].spread  # a tenth of the activations, for four steps, against all parameters
    assert "27 runs" in sources.told(parts, "val/loss")
    dry = dataclasses.replace(grid.plan, shared={**grid.plan.shared, "model.dropout": 0.0})
    other = dataclasses.replace(grid, plan=dry)
    other.place.mkdir(parents=True)
    fewer = sources.variance(other)
    assert [part.sources for part in fewer[:2]] == [("order of the data",), ("initial values",)]


def test_equal_arms_are_equal(grid: Grid, tmp_path: Path) -> None:
    """Through the whole grid; both are trained, and neither is taken from what has run."""
    plan = equal_arms.equal_plan(grid.plan)
    with ablate.opened(plan, tmp_path) as made:
        same, found = equal_arms.equal_arms(made)
    assert same
    assert found.rows[0].word == "EQUIVALENT WITHIN D"
    assert [*found.rows[0].differences] == [0.0] * 8
    rows = loads((made.place / "programs.json").read_bytes())
    ((one, _),), ((other, _),) = rows["a"], rows["b"]
    assert one != other
    assert all((made.store.place(key) / "run" / "metrics.jsonl").is_file() for key in (one, other))
    assert (made.place / "verdict.html").is_file()


def test_populations_and_single_runs_are_drawn_alike(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the seeds that the command takes by each path."""
    monkeypatch.setattr(equal_arms, "PATHS", 16)
    assert equal_arms.two_paths(grid) > 0.01
    keys = [loads(file.read_bytes()) for file in grid.store.folder.glob("*/record.json")]
    assert sum(len(one["seeds"]) == 1 for one in keys) == 16


def test_a_plan_without_a_pilot_has_no_power(grid: Grid, tmp_path: Path) -> None:
    plan = make_plan("power", VALUES | {"pilot_seeds": [], "shared": grid.plan.shared})
    with ablate.opened(plan, tmp_path) as made, pytest.raises(UserError, match="must be two or more to tell a spread"):
        pilot.foresee(made)
