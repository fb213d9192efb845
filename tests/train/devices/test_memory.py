"""What cannot fit is refused before it is made, with both numbers; what may fit is not."""

import re
from typing import Any

import pytest

from model.errors import UserError
from tests.small import VOCAB, small_experiment
from train.devices.machine import host_memory
from train.devices.memory import check_memory


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        check_memory(small_experiment(**changes))
    return str(error.value)


def test_a_state_beyond_the_memory_is_refused_with_its_size() -> None:
    D, L, F = 2**16, 64, 40
    parameters = L * (4 * D * D + 2 * D * F + 2 * D) + D + VOCAB * D
    sentence = refusal(**{"model.width": D, "model.num_layers": L})
    found = re.match(r"the run needs (\S+) GiB for parameters, optimizer and gradients", sentence)
    assert found
    assert float(found[1]) == pytest.approx(16 * parameters / 2**30, rel=1e-2)  # AdamW's moments and the gradient
    assert f"is {host_memory() / 2**30:.3g} GiB" in sentence
    assert "--config.model.width" in sentence


def test_activations_beyond_the_memory_are_refused_and_smaller_ones_are_not() -> None:
    T, L, D = 4096, 2, 48
    rows = host_memory() // (4 * T * L * D)
    most = {"data.length": T, "data.prefetch": 0}
    check_memory(small_experiment(**most, **{"data.batch_size": int(0.9 * rows)}))
    assert "--config.data.batch_size" in refusal(**most, **{"data.batch_size": int(1.1 * rows)})
    parts = {"data.batch_size": 2 * int(0.9 * rows), "train.accumulate": 2}
    check_memory(small_experiment(**most, **parts))
    ahead = {"data.batch_size": rows // 8, "data.prefetch": 1000}
    assert "--config.data.prefetch" in refusal(**most | ahead)
