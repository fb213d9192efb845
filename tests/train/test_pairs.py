"""What stands around a core, beside what computes it: sixteen pairs learn the same on eight devices as on one."""

from typing import Any

import numpy as np
import pytest

from model.attention import CORES
from tests.model.test_gpt import CHOICES, EDITED
from tests.small import compiled_step, losses, random_batches, small_experiment

STEPS = 3
ON_CPUS = [name for name, core in CORES.items() if core.platform == "cpu"]
# Edits, and the shapes of a model; what is an entry of their tables is drawn from the reference's expressions.
SHAPES = {key: CHOICES[key] for key in ("norm", "norm_place", "mlp", "position", "bias", "use_bias", "embedding")}
CHANGES = [[("edits", text) for text in EDITED[1:]], [(key, one) for key, ones in SHAPES.items() for one in ones]]
SIZES = {"model.num_layers": 3, "model.head_width": 8, "model.num_kv_heads": 4}


def drawn() -> list[tuple[str, Any, str]]:
    """Eight of each kind, no change twice before all have been, and each core as often."""
    rng, pairs = np.random.default_rng(8), list[tuple[str, Any, str]]()
    for changes in CHANGES:
        numbers = [int(n) for _ in range(-(-8 // len(changes))) for n in rng.permutation(len(changes))][:8]
        cores = [ON_CPUS[n % len(ON_CPUS)] for n in rng.permutation(8)]
        pairs += [(*changes[n], core) for n, core in zip(numbers, cores, strict=True)]
    return pairs


def test_each_kind_of_pair_is_drawn() -> None:
    pairs = drawn()
    assert len(pairs) == 16
    assert {core for *_, core in pairs} == set(ON_CPUS)
    assert {value for key, value, _ in pairs if key == "edits"} == set(EDITED[1:])


@pytest.mark.rest
@pytest.mark.parametrize(("key", "value", "core"), drawn(), ids=str)
def test_a_pair_learns_the_same_on_eight_devices(key: str, value: Any, core: str) -> None:
    """As on one device, where `dense` stands for a core that shares the sequence among several."""
    split = CORES[core].context
    mesh = {"mesh.replica": 2, "mesh.fsdp": 2 // split, "mesh.tensor": 2, "mesh.context": split}
    alone = "dense" if split > 1 else core

    def learned(core: str, **mesh: int) -> np.ndarray:
        experiment = small_experiment(**{**SIZES, f"model.{key}": value, "model.core": core, **mesh})
        return losses(experiment, compiled_step(experiment), random_batches(experiment, STEPS))

    found, wanted = learned(core, **mesh), learned(alone)
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
