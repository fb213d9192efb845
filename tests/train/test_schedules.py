"""Learning rates against their formulas in NumPy."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from model.errors import UserError
from train.limits import check_config, doubts
from train.schedules import SCHEDULES, decay_start, make_schedule


def optimizer_config(**changes: object) -> ConfigDict:
    config = base.get_config().optimizer
    config.update(changes)
    return config


def expected(name: str, step: int, steps: int, warmup: int, peak: float, final: float, decay: int) -> float:
    """The formula of each schedule, one step at a time."""
    if step < warmup:
        return peak * step / warmup
    done, rest = step - warmup, steps - warmup
    share = min(done / rest, 1)
    return {
        "constant": peak,
        "linear": peak * (1 - share * (1 - final)),
        "cosine": peak * (final + (1 - final) * (1 + math.cos(math.pi * share)) / 2),
        "wsd": peak if step < steps - decay else peak * (1 - (1 - final) * min(step - steps + decay, decay) / decay),
        "inverse_sqrt": peak * math.sqrt(max(warmup, 1) / (max(warmup, 1) + done)),
    }[name]


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_equals_its_formula(name: str, warmup: int) -> None:
    config = optimizer_config(
        schedule=name, warmup_steps=warmup, learning_rate=0.3, final_fraction=0.1, decay_fraction=0.2
    )
    schedule = make_schedule(config, 53)
    steps = [0, 1, 6, 7, 8, 23, 41, 42, 43, 44, 52, 53, 59]
    wanted = [expected(name, step, 53, warmup, 0.3, 0.1, 11) for step in steps]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "warmup", "fraction"), [(53, 7, 0.2), (53, 0, 1.0), (10, 7, 0.9), (5, 7, 0.2), (9, 0, 0.0)]
)
def test_a_longer_wsd_run_begins_alike_until_the_decay(steps: int, warmup: int, fraction: float) -> None:
    config = optimizer_config(schedule="wsd", warmup_steps=warmup, learning_rate=0.3, decay_fraction=fraction)
    start = decay_start(config, steps)
    assert start is not None
    schedule, longer = make_schedule(config, steps), make_schedule(config, 3 * steps + 20)
    assert [float(schedule(step)) for step in range(start)] == [float(longer(step)) for step in range(start)]
    assert float(schedule(start + 1)) < float(longer(start + 1))
    assert decay_start(optimizer_config(schedule="cosine"), steps) is None


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_shorter_than_its_warmup_ends_inside_it(name: str) -> None:
    config = optimizer_config(schedule=name, warmup_steps=20, learning_rate=1.0)
    np.testing.assert_allclose(float(make_schedule(config, 9)(8)), 8 / 20, rtol=1e-6)
    for steps, told in ((21, 0), (20, 1), (9, 1)):
        asked = ConfigDict({"optimizer": config, "train": {"steps": steps}})
        assert [line.endswith("ends in its warm-up.") for line in doubts(asked, 8, 8)] == told * [True]


@pytest.mark.parametrize(
    ("changes", "steps", "flag"),
    [
        ({"schedule": "cosin"}, 9, "optimizer.schedule='cosin'"),
        ({}, 0, "train.steps=0"),
        ({"warmup_steps": -1}, 9, "warmup_steps=-1"),
        ({"learning_rate": -0.1}, 9, "learning_rate=-0.1"),
        ({"decay_fraction": 1.5}, 9, "decay_fraction=1.5"),
        ({"final_fraction": -0.5}, 9, "final_fraction=-0.5"),
    ],
)
def test_impossible_numbers_are_refused_by_flag(changes: dict[str, object], steps: int, flag: str) -> None:
    config = base.get_config()
    config.optimizer.update(changes)
    config.train.steps = steps
    with pytest.raises(UserError, match=flag):
        check_config(config)
