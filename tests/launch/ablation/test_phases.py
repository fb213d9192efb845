"""From a rate to a page, on numbers that are made up: what each phase takes from the one before, and hands on."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launch import ablate
from launch.ablation.gates.budget import Budget
from launch.ablation.gates.examine import Examined, _leaks, admitted, keep
from launch.ablation.gates.rules import Gate
from launch.ablation.grid import Cell, Grid
from launch.ablation.measures import by_arm
from launch.ablation.phases import pilot, verdict
from launch.ablation.plan import Plan, packs
from launch.ablation.programs import Record, Store
from launch.ablation.running import Bar
from launch.ablation.showing import shown
from launch.ablation.tuning import tune
from model.errors import UserError
from tests.launch.ablation.small_plan import VALUES, small_plan
from train.run.files.json_files import loads

RATES = (1e-3, 2e-3, 4e-3)
ARMS = {"scaled": {}, "bare": {"model.scale": 1.0}, "double": {"model.scale": 2.0}}


@dataclasses.dataclass
class Told(Grid):
    """A grid whose programs leave what `losses` says of (arm, rate, seed), and which remembers what it was asked."""

    losses: Any = None
    asked: list[tuple[str, list[Cell], tuple[int, ...]]] = dataclasses.field(default_factory=list)

    def run(self, phase: str, cells: Sequence[Cell], seeds: tuple[int, ...]) -> dict[Cell, list[Record]]:
        self.asked.append((phase, [*cells], seeds))
        return {
            (arm, rate): [
                record(arm, pack, [self.losses(arm, rate, seed) for seed in pack]) for pack in packs(self.plan, seeds)
            ]
            for arm, rate in cells
        }


def record(arm: str, seeds: tuple[int, ...], losses: list[float]) -> Record:
    """What a program leaves: its loss falls by 1 from step 6 to the last one; a failed seed says so."""
    kept = [loss if math.isfinite(loss) else None for loss in losses]
    before = [None if loss is None else loss + 1 for loss in kept]
    values = {"val/loss": kept, "val/accuracy": [None if loss is None else loss / 10 for loss in kept]}
    failed = {str(seed): "it diverged." for seed, loss in zip(seeds, kept, strict=True) if loss is None}
    curves = {"val/loss": {"6": before, "12": kept}}
    made, where = {"code": "c", "packages": {}, "data": "d"}, {"device": "cpu", "prng": "p", "windows": "3 of 9"}
    return Record(f"{arm}{seeds[0]}", seeds, values, curves, failed, "b", (), made, where, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(autouse=True)
def no_simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could have been seen is not asked here, and takes seconds to find."""
    monkeypatch.setattr("eval.verdict.detectable.detectable_effect", lambda *_: 1.0)
    monkeypatch.setattr("eval.verdict.detectable.skewed_coverage", lambda _: 0.9)


@pytest.fixture
def plan(folder: Path) -> Plan:
    return small_plan(folder, arms=ARMS, learning_rates=RATES, seeds=range(9), pilot_seeds=range(100, 104))


def told(plan: Plan, folder: Path, losses: Any) -> Told:
    made = Told(plan, folder, Bar(Store(folder / "store")), losses=losses)
    made.place.mkdir(parents=True)
    return made


def of_table(table: Mapping[float, tuple[float, float]], **others: Mapping[float, tuple[float, float]]) -> Any:
    """The losses of the two tuning seeds at each rate; `others` are those of single arms."""
    return lambda arm, rate, seed: {**table, **others.get(arm, {})}[rate][seed - 200]


INNER = {1e-3: (5.0, 5.0), 2e-3: (4.0, 4.5), 4e-3: (7.0, 3.5)}


def test_each_arm_has_the_rate_of_the_best_mean(plan: Plan, tmp_path: Path) -> None:
    """In either direction; the best single seed is at another rate."""
    grid = told(plan, tmp_path, of_table(INNER))
    assert tune(grid) == dict.fromkeys(ARMS, 2e-3)
    ((phase, cells, seeds),) = grid.asked
    assert (phase, seeds) == ("tune", plan.tune_seeds)
    assert {*cells} == {(arm, rate) for arm in ARMS for rate in RATES}
    written = loads((grid.place / "tuning.json").read_bytes())
    assert written["means"]["bare"] == {"0.001": 5.0, "0.002": 4.25, "0.004": 5.25}
    higher = dataclasses.replace(plan, direction="higher")
    grid = told(higher, tmp_path, of_table({rate: (-one, -other) for rate, (one, other) in INNER.items()}))
    assert tune(grid) == dict.fromkeys(ARMS, 2e-3)
    assert loads((grid.place / "tuning.json").read_bytes())["means"]["bare"]["0.002"] == -4.25


def test_a_rate_at_which_a_seed_fails_is_worse_than_all_others(plan: Plan, tmp_path: Path) -> None:
    """Whichever values are better."""
    for direction, sign in (("lower", 1.0), ("higher", -1.0)):
        own = dataclasses.replace(plan, direction=direction, waived={"edge": "it is asked"})
        grid = told(own, tmp_path / direction, of_table({**INNER, 2e-3: (sign * 1e-9, math.inf)}))
        assert tune(grid)["scaled"] == (1e-3 if sign > 0 else 4e-3)
        assert len(grid.asked) == 1  # the edge is waived
    failing = of_table(INNER, bare=dict.fromkeys(RATES, (1.0, math.inf)))
    with pytest.raises(UserError, match="a seed fails at every learning rate of bare"):
        tune(told(dataclasses.replace(plan, waived={"edge": "so"}), tmp_path / "all", failing))


def test_where_one_arm_is_best_at_an_edge_all_arms_go_beyond_it(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the disk is to hold that, too."""
    checked: list[Plan] = []
    monkeypatch.setattr("launch.ablation.tuning.check_disk", lambda wider, _: checked.append(wider))
    beyond = {8e-3: (9.0, 9.0)}
    grid = told(plan, tmp_path, of_table({**INNER, **beyond}, bare={4e-3: (1.0, 1.0)}))
    assert tune(grid) == dict.fromkeys(ARMS, 2e-3) | {"bare": 4e-3}
    assert {*grid.asked[1][1]} == {(arm, rate) for arm in ARMS for rate in (*RATES, 8e-3)}
    assert [one.runs("scaled") - plan.runs("scaled") for one in checked] == [2]
    ((noted,),) = ([line for line in grid.ledger.lines(plan.question) if line["event"] == "grid"],)
    assert noted["learning_rates"] == {arm: [*RATES, 8e-3] for arm in ARMS}
    falling = told(plan, tmp_path / "falling", lambda arm, rate, seed: 1 / rate)
    with pytest.raises(
        UserError, match="gate edge: the best learning rate of scaled, 0.032, is at the edge .* 3 times"
    ):
        tune(falling)
    assert len(falling.asked) == 4


def test_d_is_a_share_of_the_size_of_the_baselines_mean(folder: Path, tmp_path: Path) -> None:
    """And the spread and correlation are those of pairs, by NumPy."""
    for number, mean in enumerate((3.0, -3.0)):
        plan = small_plan(folder, arms=ARMS, smallest="2 %", pilot_seeds=range(100, 104), learning_rates=())
        noise = {"scaled": [0.1, -0.3, 0.4, -0.2], "bare": [0.5, -0.1, 0.3, 0.2], "double": [3.0, 1.0, 4.0, 1.5]}
        losses = {arm: mean + np.array(own) for arm, own in noise.items()}
        grid = told(plan, tmp_path / str(number), lambda arm, rate, seed, own=losses: own[arm][seed - 100])
        smallest, found = pilot(grid, dict.fromkeys(ARMS))
        assert smallest == found["smallest"] == pytest.approx(0.02 * 3.0)
        assert loads((grid.place / "pilot.json").read_bytes())["smallest"] == smallest
        for arm in ("bare", "double"):
            one = found["contrasts"][arm]
            assert one["spread"] == pytest.approx(np.std(losses[arm] - losses["scaled"], ddof=1))
            assert one["correlation"] == pytest.approx(np.corrcoef(losses[arm], losses["scaled"])[0, 1])
        assert [(phase, seeds) for phase, _, seeds in grid.asked] == [("pilot", (100, 101, 102, 103))]


SHIFTS = {"scaled": 0.0, "bare": -0.5, "double": 0.0}


def loss(arm: str, rate: float | None, seed: int) -> float:
    """`bare` is clearly better, `double` is not told apart, and each seed is another."""
    return 3 + 0.1 * seed + SHIFTS[arm] + 0.07 * math.sin(1 + 9 * seed + 5 * ord(arm[0])) + 1000 * (rate or 0)


def test_a_look_that_leaves_an_arm_open_is_followed_by_the_other(folder: Path, tmp_path: Path) -> None:
    """Each is noted, of its own seeds, by its words; and none follows one that leaves nothing open."""
    plan = small_plan(folder, arms=ARMS, seeds=range(12), looks=(9, 12), learning_rates=())
    grid = told(plan, tmp_path, loss)
    found = verdict(grid, dict.fromkeys(ARMS), 0.01)
    assert [row.word for row in found.rows] == ["BETTER", "NOT DISTINGUISHABLE"]
    assert [(len(seeds), [arm for arm, _ in cells]) for _, cells, seeds in grid.asked] == [(9, [*ARMS]), (12, [*ARMS])]
    looks = grid.ledger.looks(plan.question)
    assert [(one["look"], len(one["seeds"]), one["smallest"]) for one in looks] == [(1, 9, "0.01"), (2, 12, "0.01")]
    assert looks[0]["words"] == looks[1]["words"] == {"bare": "BETTER", "double": "NOT DISTINGUISHABLE"}
    clear = dataclasses.replace(plan, arms={arm: ARMS[arm] for arm in ("scaled", "bare")})
    grid = told(clear, tmp_path / "clear", loss)
    assert verdict(grid, dict.fromkeys(clear.arms), 0.01).rows[0].look == 1
    assert len(grid.asked) == len(grid.ledger.looks(plan.question)) == 1


def test_the_page_is_told_of_each_arm_what_is_its_own(folder: Path, tmp_path: Path) -> None:
    """Curves, metrics, costs, commands and failures; what was waived, and what was looked at."""
    plan = small_plan(folder, arms=ARMS, learning_rates=RATES, waived={"init": "it is asked"}, pack=3)
    grid = told(
        plan, tmp_path, lambda arm, rate, seed: math.inf if (arm, seed) == ("double", 4) else loss(arm, rate, seed)
    )
    budgets = {arm: Budget(1000 + at, 500, 10.0, 4000, 100, 1) for at, arm in enumerate(ARMS)}
    keep(plan, Examined(budgets, []), grid.place)
    rates = dict(zip(ARMS, RATES, strict=True))
    grid.ledger.begin(plan)
    grid.ledger.begin(dataclasses.replace(plan, smallest=0.5))
    verdict(grid, rates, 0.01)
    records = grid.run("again", grid.cells(rates), plan.seeds)
    found = shown(plan, rates, records, grid.ledger, grid.place)
    for arm, rate in rates.items():
        losses = [grid.losses(arm, rate, seed) for seed in plan.seeds]
        assert found.curves[arm].steps == [6, 12]
        assert [*map(list, found.curves[arm].values)] == [[loss + 1, loss] for loss in losses]
        accuracy = {seed: loss / 10 for seed, loss in zip(plan.seeds, losses, strict=True)}
        assert found.exploratory["val/accuracy"][arm] == accuracy
        assert found.budgets[arm]["parameters"] == budgets[arm].parameters
        assert found.commands[arm].endswith(f"-m launch.verify {grid.place} {arm}")
        assert found.plan[f"learning rate of {arm}"] == rate
    assert found.exploratory.keys() == {"val/accuracy"}
    assert (found.waived, found.matched, found.plan["hash"]) == (plan.waived, "parameters", plan.hash)
    assert found.looked == {"plans": 2, "arms": 3, "looks": 1}
    assert "double, seed 4, failed: it diverged." in found.notes
    page = (grid.place / "verdict.md").read_text().replace("\\", "")
    for part in (
        "| init | it is asked |",
        "double, seed 4, failed: it diverged.",
        "1 other plan asks the same",
        "1,002",
    ):
        assert part in page
    for arm, own in by_arm(records).items():
        sheet = [line.split(",") for line in (grid.place / "seeds.csv").read_text().splitlines()]
        values = {int(seed): float(value) for name, seed, value in sheet[1:] if name == arm}
        assert values == {seed: value for one in own for seed, value in one.of("val/loss").items()}
        keys = loads((grid.place / "programs.json").read_bytes())[arm]
        assert keys == [[one.key, [*one.seeds]] for one in own]


def test_a_gate_that_was_found_closed_stays_closed(folder: Path, tmp_path: Path) -> None:
    """Also where it is read from the plan's folder; a waiver lets it through."""
    gates = [Gate("keys", True, "so"), Gate("budget", False, "off")]
    for waived in ({}, {"budget": "it is asked"}):
        plan = small_plan(folder, waived=waived)
        known = Examined({arm: Budget(1, 1, 1.0, 1, 1, 1) for arm in plan.arms}, gates)
        keep(plan, known, tmp_path)
        if waived:
            assert admitted(plan, tmp_path) == known
        else:
            with pytest.raises(UserError, match="gate budget: off"):
                admitted(plan, tmp_path)


def test_each_arm_is_asked_whether_it_leaks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose models are equal are asked once."""
    asked = []

    def leak(experiment: Any) -> int:
        asked.append(experiment.model_config.num_layers)
        return asked[-1]

    monkeypatch.setattr("launch.ablation.gates.examine.leak", leak)
    arms = {"one": {}, "same": {"optimizer.weight_decay": 0.0}, "two": {"model.num_layers": 2}}
    factor = ("optimizer.weight_decay", "model.num_layers")
    assert _leaks(small_plan(folder, arms=arms, factor=factor)) == {"one": 1, "same": 1, "two": 2}
    assert sorted(asked) == [1, 2]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[Told]:
    """Grids of `ablate` leave the losses above."""
    grids: list[Told] = []

    def grid(*given: Any) -> Told:
        grids.append(Told(*given, losses=lambda arm, rate, seed: loss(arm, None, seed) + (rate != 2e-3)))
        return grids[-1]

    monkeypatch.setattr(ablate, "Grid", grid)
    monkeypatch.setattr(ablate, "admitted", lambda plan, place: Examined({}, []))
    return grids


def test_a_plan_goes_from_its_rates_to_its_verdict(folder: Path, tmp_path: Path, made_up: list[Told]) -> None:
    """The same rates in pilot and verdict; the plan and its arms count from the beginning, its look at the end."""
    plan = small_plan(folder, arms=ARMS, smallest="1 %", learning_rates=RATES)
    found = ablate.ablate(plan, tmp_path / "grid")
    (grid,) = made_up
    assert [phase for phase, _, _ in grid.asked] == ["tune", "pilot", "verdict, look 1"]
    assert [seeds for _, _, seeds in grid.asked] == [plan.tune_seeds, plan.pilot_seeds, plan.seeds]
    assert grid.asked[1][1] == grid.asked[2][1] == [(arm, 2e-3) for arm in ARMS]
    mean = np.mean([loss("scaled", None, seed) for seed in plan.pilot_seeds])
    assert found.declared.smallest == pytest.approx(0.01 * mean)
    assert grid.ledger.counts(plan.question) == {"plans": 1, "arms": 3, "looks": 1}
    assert json.loads((grid.place / "plan.json").read_text())["smallest"] == "1 %"
    assert found.declared.question == VALUES["question"]
