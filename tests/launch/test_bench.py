"""The commands that time and explain: what they put side by side is the same, and what they print is of each layer."""

import re

import numpy as np
import pytest

from launch import attention
from launch.bench import contenders
from launch.configs import load
from model import UserError

TINY = {
    "model.num_layers": 2,
    "model.unroll": 2,
    "model.width": 24,
    "model.num_heads": 3,
    "data.length": 17,
    "data.batch_size": 8,
}


@pytest.mark.rest
def test_the_steps_that_are_timed_learn_the_same() -> None:
    """Whatever their optimizer's numbers: the third loss has seen an update whose rate is not 0."""
    changes = {"optimizer.epsilon": 0.01, "optimizer.weight_decay": 0.5, "optimizer.warmup_steps": 1}
    losses = {
        name: [run() for _ in range(3)] for name, run in contenders(load("gpt:bench", **TINY, **changes), 61).items()
    }
    for name in ("dense", "bare"):
        np.testing.assert_allclose(losses[name], losses["ours"], rtol=1e-5, err_msg=name)
    assert abs(losses["ours"][2] - losses["ours"][1]) > 1e-4


@pytest.mark.parametrize(
    ("key", "value"), [("optimizer.decayed", "all"), ("model.scale", 0.3), ("model.edits", "exclusive")]
)
def test_another_model_or_optimizer_is_not_raced(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"--config.{key}={value!r}: the bare function is written for"):
        contenders(load("gpt:bench", **TINY, **{key: value}), 61)


def test_another_family_is_not_raced() -> None:
    with pytest.raises(UserError, match=r"launch.bench measures --config.family=gpt; take configs/gpt.py:bench."):
        contenders(load("recurrent:lm"), 61)


def test_layers_that_keep_other_amounts_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Keys and values of 3 heads of 8 columns: of a window of 4 places and their positions, of all 17, or none."""
    cycle = ["--config.model.edits=2 * give_kv + 2 * take_kv", "--config.model.mask=causal & window(3)"]
    sizes = [
        f"--config.{key}={value}" for key, value in TINY.items() if key not in ("model.num_layers", "model.unroll")
    ]
    attention.main(["--config=configs/gpt.py:bench", "--config.model.num_layers=4", *sizes, *cycle])
    told = re.findall(
        r"^layers? ([0-9, ]+) of each 4 \(each keeps ([0-9,]+) bytes", capsys.readouterr().out, re.MULTILINE
    )
    one_place = 2 * 3 * 8 * 4
    assert told == [("1", f"{4 * one_place + 4 * 4:,}"), ("2", f"{17 * one_place:,}"), ("3, 4", "0")]
