"""The judge on trained seeds: 64 runs of one config, paired at random, with planted shifts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from eval.verdict.detectable import declared_alike, detectable_effect
from eval.verdict.rule import Findings, judge
from launch.ablation.programs import Store, address
from launch.configs import load
from tests.tiny import write_text

pytestmark = pytest.mark.rest
RUNS, SEEDS = 64, 8
TINY = {"train.steps": 40, "train.evaluate_every": 40, "train.checkpoint_every": 40, "train.prompt": ""}


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The validation losses of 64 seeds, which differ in initial values, order and dropout."""
    folder = tmp_path_factory.mktemp("real")
    keys = write_text(folder) | TINY | {"train.seeds": RUNS, "data.order": "own"}
    record = Store(Path(folder) / "store").run(address(load("base", **keys)))
    return np.array([*record.of("val/loss").values()])


def paired(losses: np.ndarray, pairings: int, shift: float, smallest: float) -> Findings:
    """What the judge finds in random pairings of 8 seeds with 8 others, an arm shifted."""
    random = np.random.default_rng(0)
    drawn = np.stack([random.permutation(losses)[: 2 * SEEDS] for _ in range(pairings)])
    cells = {"0": drawn[:, :SEEDS], "1": drawn[:, SEEDS:] + shift}
    return judge(dataclasses.replace(declared_alike((SEEDS,), 1, 0.05), smallest=smallest), cells)


def test_seeds_of_one_config_differ_and_are_rarely_told_apart(losses: np.ndarray) -> None:
    assert np.isfinite(losses).all()
    assert len(set(losses.tolist())) == RUNS
    assert paired(losses, 200, 0.0, 1.0).different.sum() <= 19


@pytest.mark.parametrize("share", [0.1, 1.0, 10.0])
def test_planted_shifts_are_named_whatever_d_is(losses: np.ndarray, share: float) -> None:
    """The effect is the printed one at the spread of the runs: two independent runs differ by sqrt(2) of it."""
    effect = detectable_effect((SEEDS,), 1, 0.05) * float(losses.std(ddof=1)) * 2**0.5
    assert paired(losses, 1000, 0.0, share * effect).different.sum() <= 63
    for shifts, least in ((1, 760), (-1, 760), (2, 990), (-2, 990)):
        found = paired(losses, 1000, shifts * effect, share * effect)
        right = found.different & (np.sign(found.sign) == np.sign(shifts))
        assert right.sum() >= least, shifts
        assert np.isin(found.words("higher")[right], ["BETTER", "WORSE", "DIFFERENT BUT BELOW D"]).all()
