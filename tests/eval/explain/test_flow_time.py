"""Attention flow beside SciPy's maximum flow of each pair, on the attention of trained models of 12 layers."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.mark.rest
@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_flow_takes_half_of_scipys_time(name: str) -> None:
    """Medians over examples, in one process of one thread; `pytest -s` shows them. The aim is 0.2."""
    command = [sys.executable, "-m", "tests.eval.explain.flow_time", name]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=alone)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, scipy = np.median(json.loads(done.stdout), axis=0)
    print(f"\n{name}: {ours:.2f} s, {ours / scipy:.2f} of SciPy's time")
    assert ours <= 0.5 * scipy
