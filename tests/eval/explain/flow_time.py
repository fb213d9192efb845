"""A process of its own: attention flow beside SciPy's maximum flow of each pair, in turn, on attention of a trained
model. Prints the seconds of both for each example.

Run as `python -m tests.eval.explain.flow_time gpt` or `bert`: the time is the processor's, of one thread where the
environment says so (OPENBLAS_NUM_THREADS=1), so that others on the machine are no part of it.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from eval.explain.methods.flow import UNITS, flow
from eval.explain.methods.rollout import mixed

MAPS = Path(__file__).parent / "data/maps.npz"


def by_scipy(maps_Lnn: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """One graph, and a maximum flow for each pair."""
    L, n, _ = maps_Lnn.shape
    layers, i_E, k_E = np.nonzero(maps_Lnn)
    units_E = np.round(maps_Lnn[layers, i_E, k_E] * UNITS).astype(np.int32)
    graph = csr_matrix((units_E, ((layers + 1) * n + i_E, layers * n + k_E)), shape=((L + 1) * n,) * 2)
    return np.array([maximum_flow(graph, L * n + i, j).flow_value for i, j in pairs]) / UNITS


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the seconds of the processor."""
    start = time.process_time()
    return call(), time.process_time() - start


def times(name: str) -> list[tuple[float, float]]:
    """Of each example, ours and SciPy's, whose values are equal."""
    found = []
    with np.load(MAPS) as stored:
        examples = [np.asarray(mixed(maps_Lnn.astype(np.float32)), np.float64) for maps_Lnn in stored[name]]
    n = examples[0].shape[-1]
    pairs = [(i, j) for i in range(n) for j in range(i + 1 if name == "gpt" else n)]
    assert len(pairs) == {"gpt": 2080, "bert": 4096}[name]
    i_P, j_P = np.array(pairs).T
    for maps_Lnn in examples:
        (ours, one), (wanted, other) = timed(lambda m=maps_Lnn: flow(m)), timed(lambda m=maps_Lnn: by_scipy(m, pairs))
        np.testing.assert_allclose(ours.values_Rn[i_P, j_P], wanted, atol=1e-6)
        found.append((one, other))
    return found


if __name__ == "__main__":
    print(json.dumps(times(sys.argv[1])))
