"""What maps of long texts need of a TPU that is not here: a few arrays of places x places, however deep and wide."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.train.test_tpu import needs_compiler

SIZES = "2x2", "6x2", "2x6"  # layers x heads


@pytest.mark.rest
@needs_compiler
@pytest.mark.parametrize("method", ["rollout", "attention_gradient"])
def test_maps_of_4096_places_need_few_arrays(method: str) -> None:
    """Beyond parameters and inputs of layers, in arrays of (1, 4096, 4096) float32; `pytest -s` shows them."""
    command = [sys.executable, "-m", "tests.eval.explain.tpu_memory", method, *SIZES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [float(line) for line in done.stdout.splitlines()]
    print(f"\n{method}: {dict(zip(SIZES, found, strict=True))}")
    assert max(found) <= 8
    assert max(found) - min(found) < 1  # four heads more have 0.75 in queries, keys, values and what is taken
