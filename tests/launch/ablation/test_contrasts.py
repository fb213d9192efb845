"""An interaction and a sensitivity on real grids, their arithmetic done again from what the programs wrote."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from launch import ablate
from launch.ablation.plan import Plan, make_plan
from launch.verify import verify
from tests.tiny import metrics, write_text
from train.run.files.json_files import loads

pytestmark = pytest.mark.rest
TINY = {
    "train.steps": 6,
    "train.evaluate_every": 3,
    "train.checkpoint_every": 6,
    "train.log_every": 4,
    "train.accumulate": 1,
    "model.core": "dense",
}
SEEDS = range(2)


def plan_of(folder: Path, **changes: Any) -> Plan:
    rate = {} if "learning_rates" in changes else {"optimizer.learning_rate": 0.1}
    values = {
        "question": "Do the scale of the scores and decay matter?",
        "smallest": 0.01,
        "seeds": SEEDS,
        "waived": {"seeds": "two are quick"},
        "shared": write_text(folder) | TINY | rate,
    }
    return make_plan("tiny", values | changes)


def written(grid: Path) -> dict[tuple[str, float], dict[str, dict[int, Any]]]:
    """By arm and learning rate, each seed's last validation loss and first training loss; None where there is none."""
    found: dict[tuple[str, float], dict[str, dict[int, Any]]] = {}
    (place,) = grid.glob("plans/*")
    for arm, programs in loads((place / "programs.json").read_bytes()).items():
        for key, seeds in programs:
            config = loads((grid / "store" / key / "program.json").read_bytes())["config"]
            lines = metrics(grid / "store" / key / "run")
            cell = found.setdefault((arm, config["optimizer.learning_rate"]), {"val/loss": {}, "train/loss": {}})
            for name, step in (("val/loss", 6), ("train/loss", 1)):
                own = [line[name] for line in lines if line["step"] == step and name in line]
                cell[name] |= dict(zip(seeds, own[0] if own else [None] * len(seeds), strict=True))
    return found


def judged(grid: Path) -> dict[str, list[float]]:
    (file,) = grid.glob("plans/*/seeds.csv")
    found: dict[str, list[float]] = {}
    for row in csv.DictReader(file.read_text().splitlines()):
        found.setdefault(row["arm"], []).append(float(row["value"]))
    return found


def test_an_interaction_is_a_difference_of_two_differences(tmp_path: Path) -> None:
    scale, decay = {"model.scale": 1.0}, {"optimizer.weight_decay": 0.7}
    arms = {"base": {}, "scale": scale, "decay": decay, "both": scale | decay}
    factor = ("model.scale", "optimizer.weight_decay")
    plan = plan_of(tmp_path, arms=arms, factor=factor, contrast="interaction")
    (row,) = ablate.ablate(plan, tmp_path / "grid").rows
    cells = written(tmp_path / "grid").items()
    losses = {arm: np.array([own["val/loss"][seed] for seed in SEEDS]) for (arm, _), own in cells}
    assert judged(tmp_path / "grid") == {arm: own.tolist() for arm, own in losses.items()}
    d = (losses["both"] - losses["decay"]) - (losses["scale"] - losses["base"])
    assert row.differences == pytest.approx(d.tolist(), rel=1e-9)
    assert row.p_t == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=1e-9)
    assert np.all(d)
    (page,) = (tmp_path / "grid").glob("plans/*/verdict.md")
    assert "interaction: val/loss by step" in page.read_text()
    assert [*verify(tmp_path / "grid", "interaction").values()] == 4 * [[]]  # the programs of all of its arms


def test_a_sensitivity_is_of_every_learning_rate(tmp_path: Path) -> None:
    """At the largest rate every run fails, at the second it ends worse than it began: both count as the first loss."""
    change: dict[str, Any] = {"factor": "model.scale", "arms": {"scaled": {}, "bare": {"model.scale": 1.0}}}
    plan = plan_of(tmp_path, contrast="sensitivity", learning_rates=[1e-2, 30.0, 1e30], **change)
    (row,) = ablate.ablate(plan, tmp_path / "grid").rows
    cells, found = written(tmp_path / "grid"), judged(tmp_path / "grid")
    by_hand = {}
    for arm in plan.arms:
        own = [cell for (name, _), cell in sorted(cells.items()) if name == arm]
        assert len(own) == 3
        first_N = np.array([own[0]["train/loss"][seed] for seed in SEEDS])
        losses_RN = np.array([[cell["val/loss"][seed] for seed in SEEDS] for cell in own], float)
        assert np.isnan(losses_RN[2]).all()
        assert (losses_RN[1] > first_N).all()
        assert (losses_RN[0] < first_N).all()
        by_hand[arm] = np.where(losses_RN < first_N, losses_RN, first_N).mean(0) - np.nanmin(losses_RN, 0)
        assert found[arm] == pytest.approx(by_hand[arm].tolist(), rel=1e-9)
    assert row.differences == pytest.approx((by_hand["bare"] - by_hand["scaled"]).tolist(), rel=1e-9)
    assert row.failed == {"scaled": (), "bare": ()}
    (page,) = (tmp_path / "grid").glob("plans/*/verdict.md")
    text = page.read_text().replace("\\", "")
    for part in (
        "bare: val/loss by the logarithm of the learning rate, to base 10",
        "| least val/loss of all learning rates, bare |",
        "| val/loss at the learning rate 0.01, bare |",
        "bare, seed 0, failed: ",
    ):
        assert part in text
