"""What a pilot says of a plan's power, where noise comes from, and that equal arms are told to be equal."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import power
from launch.ablate import opened
from launch.ablation.phases import Grid
from launch.ablation.plan import config_of, make_plan
from model.errors import UserError
from tests.launch.ablation.small_plan import VALUES
from tests.tiny import write_text

pytestmark = pytest.mark.rest
TINY = {"train.steps": 4, "train.evaluate_every": 4, "train.checkpoint_every": 4, "train.accumulate": 1}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    shared = write_text(tmp_path_factory.mktemp("text")) | TINY
    change: dict[str, Any] = {"shared": shared, "learning_rates": [], "tune_seeds": [], "pilot_seeds": range(100, 104)}
    with opened(make_plan("power", VALUES | change), tmp_path_factory.mktemp("grid")) as made:
        yield made


def test_the_pilot_says_what_could_be_found(grid: Grid) -> None:
    found = power.power(grid)
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
    assert "needs" in power._table(found, grid.plan)


def test_noise_is_split_by_its_sources(grid: Grid) -> None:
    found = power.variance(grid)
    assert [*found] == [
        "first values and dropout",
        "order of the data",
        "first values and dropout and order of the data",
    ]
    assert all(spread > 0 for spread in found.values())


def test_equal_arms_are_equal(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer seeds by each path than the command tries; two trainings of the same seeds give the same bits."""
    monkeypatch.setattr(power, "PATHS", 8)
    same, p = power.equal_arms(grid)
    assert same
    assert p > 0.01
    config = config_of(grid.plan, "scaled", None, 8, 0)
    keys = {file.parent.name for file in grid.store.folder.glob("*/record.json")}
    assert power.address(config).key not in keys  # neither arm was taken from what has run


def test_a_plan_without_a_pilot_has_no_power(grid: Grid, tmp_path: Path) -> None:
    plan = make_plan("power", VALUES | {"pilot_seeds": [], "shared": grid.plan.shared})
    with opened(plan, tmp_path) as made, pytest.raises(UserError, match="must be two or more to tell a spread"):
        power.power(made)
