"""launch.power, launch.ablate and launch.verify as they are typed, one after the other, on grids that are trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.verdict.detectable import seeds_needed
from eval.verdict.planning import spread_upper
from launch import ablate, power, verify
from launch.ablation.plan import config_of, make_plan
from launch.ablation.power import equal_arms
from launch.ablation.programs import Record, Store, address
from tests.tiny import Outcome, call, write_text
from train.run.files.json_files import loads, write

pytestmark = pytest.mark.rest
TINY = {
    "train.steps": 4,
    "train.evaluate_every": 4,
    "train.checkpoint_every": 4,
    "train.accumulate": 1,
    "train.prompt": "",
    "model.core": "dense",
    "model.dropout": 0.0,
}
DECAY: dict[str, Any] = {
    "question": "Does decay matter?",
    "factor": "optimizer.weight_decay",
    "arms": {"decayed": {}, "free": {"optimizer.weight_decay": 0.0}},
    "smallest": 0.01,
    "seeds": [0, 1],
    "waived": {"seeds": "two are quick"},
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_text(tmp_path_factory.mktemp("text")) | TINY


class Typed:
    """A plan in a file, and a folder, for commands."""

    def __init__(self, folder: Path, values: dict[str, Any]):
        self.folder, self.values, self._file = folder / "grid", values, folder / "mine.py"
        self._file.write_text(f"def get_plan():\n    return {values!r}\n")
        self.words = [f"--plan={self._file}", f"--workdir={self.folder}"]

    def file(self, name: str) -> Path:
        (found,) = self.folder.glob(f"plans/*/{name}")
        return found

    def json(self, name: str) -> Any:
        return loads(self.file(name).read_bytes())

    def record(self, arm: str, rate: float | None, seeds: int, first: int) -> Record:
        program = address(config_of(make_plan("mine", self.values), arm, rate, seeds, first))
        return Store(self.folder / "store").ended(program)

    def losses(
        self, arm: str, rate: float | None, seeds: int, first: int, metric: str = "val/loss", step: str = "4"
    ) -> np.ndarray:
        """(N,) at a step; nan where a seed failed."""
        curves = self.record(arm, rate, seeds, first).curves
        return np.array(curves.get(metric, {}).get(step, [None] * seeds), float)


def said(outcome: Outcome, status: int = 0) -> str:
    assert outcome.status == status, outcome.err
    return outcome.out


def test_power_then_a_verdict_then_its_rows_again(shared: dict[str, Any], tmp_path: Path) -> None:
    """The pilot runs once; what it says stands in `--dry-run`; a row has the same bits, or is said not to."""
    keys = shared | {"optimizer.learning_rate": 0.1}
    typed = Typed(tmp_path, DECAY | {"shared": keys, "pilot_seeds": range(9, 12)})
    told = said(call(power.main, typed.words))
    d = typed.losses("free", None, 3, 9) - typed.losses("decayed", None, 3, 9)
    spread = np.std(d, ddof=1)
    limit = spread_upper(float(spread), 3)
    line = f"  val/loss (endpoint): mean {d.mean():.4g}, spread {spread:.4g} (80 % upper limit {limit:.4g}), "
    assert line in told
    assert "<svg" in typed.file("power.svg").read_text()
    times = {file: file.stat().st_mtime_ns for file in typed.folder.glob("store/*/record.json")}
    assert f"at the pilot's spread of {spread:.4g}" in said(call(ablate.main, [*typed.words, "--dry-run"]))

    judged = call(ablate.main, typed.words)
    assert judged.status == typed.json("verdict.json")["status"]
    assert judged.out.endswith(f"\npage: {typed.file('verdict.html')}\n")
    assert times == {file: file.stat().st_mtime_ns for file in times}

    run, (key, _) = str(typed.folder), typed.json("programs.json")["free"][0]
    assert said(call(verify.main, [run, "free"])) == f"{key}: the same bits\n"
    assert said(call(verify.main, [run, "free:1"])) == f"{key}: the same bits\n"
    record = typed.folder / "store" / key / "record.json"
    record.write_text(record.read_text().replace('"bits": "', '"bits": "0'))
    assert said(call(verify.main, [run, "free"]), 1) == f"{key}: not the same: bits\n"
    assert "takes two words, the folder of a grid and a row of it" in call(verify.main, [run]).err
    assert "none: the verdict has no such row; there are: decayed, free" in call(verify.main, [run, "none"]).err
    said(call(ablate.main, [*typed.words, "--config.train.log_every=3"]), judged.status)
    assert f"{run}: it holds several plans: give one of {run}/plans/mine-" in call(verify.main, [run, "free"]).err


def test_power_of_a_sensitivity(shared: dict[str, Any], tmp_path: Path) -> None:
    """Of pairs of sensitivities, each over the whole grid of learning rates, at whose largest all runs fail."""
    rates, arms = [1e-2, 1e-1, 1e30], ("decayed", "free")
    change = {"contrast": "sensitivity", "learning_rates": rates, "pilot_seeds": range(9, 12), "shared": shared}
    typed = Typed(tmp_path, DECAY | change)
    told = said(call(power.main, typed.words))
    by_hand = []
    for arm in arms:
        losses_RN = np.array([typed.losses(arm, rate, 3, 9) for rate in rates])
        assert np.isfinite(losses_RN).tolist() == 2 * [[True] * 3] + [[False] * 3]
        first_N = typed.losses(arm, rates[0], 3, 9, "train/loss", "1")
        by_hand.append(np.where(losses_RN < first_N, losses_RN, first_N).mean(0) - np.nanmin(losses_RN, 0))
    d = by_hand[1] - by_hand[0]
    found = typed.json("power.json")
    metrics = {line["metric"]: line for line in found["contrasts"]["free"]["metrics"]}
    # Beside it the losses of which it is made, but where they failed.
    at = {f"val/loss at the learning rate {rate:g}" for rate in rates[:2]}
    assert metrics.keys() == {"the sensitivity of val/loss", "least val/loss of all learning rates", *at}
    own = metrics["the sensitivity of val/loss"]
    assert (own["mean"], own["spread"]) == pytest.approx((d.mean(), np.std(d, ddof=1)), rel=1e-9)
    assert f"  the sensitivity of val/loss (endpoint): mean {own['mean']:.4g}, " in told
    # What a seed of an arm takes is all rates.
    seconds = [typed.record(arm, rate, 3, 9).seconds for arm in arms for rate in rates]
    assert found["hours_of_a_seed"] == pytest.approx(sum(seconds) / 3 / 2 / 3600, rel=1e-9)
    needed = {line["effect"]: line for line in found["contrasts"]["free"]["effect_to_seeds"]}
    assert needed[0.01]["seeds"] == seeds_needed(0.01 / own["upper"], (2,), 1, 0.05)
    assert needed[0.01]["hours"] == pytest.approx(2 * needed[0.01]["seeds"] * found["hours_of_a_seed"])
    assert f"an effect of 0.01 needs {needed[0.01]['seeds']} seeds, " in told
    assert "of the sensitivity of val/loss at the pilot's spread of" in said(
        call(ablate.main, [*typed.words, "--dry-run"])
    )


def test_sources_and_equal_arms(shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is 1 where the grid tells equal arms apart: here, one of the two ways to train a seed does."""
    keys = shared | {"optimizer.learning_rate": 0.1}
    typed = Typed(tmp_path, DECAY | {"shared": keys, "pilot_seeds": range(9, 12)})
    told = said(call(power.main, [*typed.words, "--variance"]))
    assert "val/loss of 9 runs, 3 levels of each source crossed with all others" in told
    assert "initial values drawn anew: " in told
    monkeypatch.setattr(equal_arms, "PATHS", 8)
    monkeypatch.setattr(power, "PATHS", 8)
    same = said(call(power.main, [*typed.words, "--aa"]))
    assert "two trainings of 8 seeds: every difference is exactly 0; the verdict: EQUIVALENT WITHIN D" in same
    assert "8 seeds as populations against 8 others alone: p = " in same
    for record in typed.folder.glob("store/*/record.json"):
        values = loads(record.read_bytes())
        if len(values["seeds"]) == 1:
            write(record, values | {"values": {"val/loss": [9.0]}})
    assert "8 others alone: p = 0.000155 (Mann-Whitney, exact)" in said(call(power.main, [*typed.words, "--aa"]), 1)


def test_a_notebook_s_grid_stops_when_the_first_look_has_decided(
    shared: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In runs/ beside the notebook; the seeds of the second look are not trained."""
    monkeypatch.chdir(tmp_path)
    arms = {"slow": {"optimizer.learning_rate": 1e-6}, "fast": {"optimizer.learning_rate": 0.03}}
    change = {"factor": "optimizer.learning_rate", "arms": arms, "seeds": range(8), "looks": [4, 8], "waived": {}}
    found = ablate.ablate(DECAY | change | {"shared": shared})
    (row,) = found.rows
    assert (row.word, row.look, row.seeds, found.open) == ("BETTER", 1, (0, 1, 2, 3), ())
    assert "Decided at the first look" in found._repr_html_()
    assert len([*Path("runs/notebook/store").glob("*/record.json")]) == 2
    assert len([*Path("runs/notebook/plans").glob("notebook-*/verdict.html")]) == 1


def test_a_grid_is_extended_three_times_and_then_refused(shared: dict[str, Any], tmp_path: Path) -> None:
    """Where every rate is too low the largest is the best of both arms; a waiver lets it be."""
    change = {"learning_rates": [1e-7, 2e-7], "tune_seeds": [5], "shared": shared}
    typed = Typed(tmp_path, DECAY | change)
    done = call(ablate.main, typed.words)
    assert done.status == 2
    assert "gate edge: the best learning rate of decayed, 1.6e-06, is at the edge of its grid, which was" in done.err
    assert (
        "extended 3 times: set learning_rates to 1e-07, 2e-07, 4e-07, 8e-07, 1.6e-06, 3.2e-06 in all arms" in done.err
    )
    assert len([*typed.folder.glob("store/*/record.json")]) == 2 * 5
    waived = Typed(tmp_path, DECAY | change | {"waived": DECAY["waived"] | {"edge": "it is asked"}})
    assert call(ablate.main, waived.words).status in (4, 5, 6)
    page = waived.file("verdict.md")  # the other plan of the folder has none
    assert loads((page.parent / "tuning.json").read_bytes())["best"] == {"decayed": 2e-7, "free": 2e-7}
    assert "| edge | it is asked |" in page.read_text()
