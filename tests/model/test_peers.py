"""Positions and biases beside those of `transformers`; whole models are in test_published.py."""

from typing import Any

import numpy as np
import pytest
from flax import nnx

from model.attention.biases.distance import bucket
from model.attention.biases.modules import alibi_slopes
from model.positions import Rotary, parse_position
from tests.model.asking import MARKS, ask

pytestmark = MARKS
DISTANCES = np.arange(-700, 701)
K, LENGTH = 64, 4096
# Ours, and what transformers calls it.
ROPES: dict[str, dict[str, Any]] = {
    "rope": {"rope_type": "default", "rope_theta": 10000.0},
    "rope_linear(4)": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "rope_yarn(4, 1024)": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    "rope_yarn(40, 4096, base=150000.0)": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
    },
    "rope_yarn(8, 32, beta_fast=16.0, beta_slow=2.0, fraction=0.5)": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "partial_rotary_factor": 0.5,
    },
    "rope_llama3(8)": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def questions() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    asked: dict[str, Any] = {}
    for text, rope in ROPES.items():
        if rope["rope_type"] != "default":
            theta = {"rope_theta": 10000.0} | rope
            asked[text] = {"kind": "frequencies", "width": 2 * K, "heads": 2, "length": LENGTH, "rope": theta}
    for both in (False, True):
        for number, most in ((32, 128), (10, 50)):
            asked[f"buckets {both} {number}"] = {
                "kind": "buckets",
                "bidirectional": both,
                "buckets": number,
                "max_distance": most,
            }
    asked |= {f"slopes {heads}": {"kind": "slopes", "heads": heads} for heads in (1, 3, 8, 12, 20)}
    arrays = {f"{name}/distances": DISTANCES for name, one in asked.items() if one["kind"] == "buckets"}
    return asked, arrays


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All of them at once: importing torch takes longest."""
    return ask(*questions(), tmp_path_factory.mktemp("peers"))


@pytest.mark.parametrize("text", [text for text in ROPES if text != "rope"])
def test_frequencies_and_gain(answers: dict[str, np.ndarray], text: str) -> None:
    ours = parse_position(text)(2 * K, K, LENGTH, nnx.Rngs(0))
    assert isinstance(ours, Rotary)
    *frequencies, gain = answers[text]
    np.testing.assert_allclose(ours.frequencies, frequencies, rtol=1e-6)
    np.testing.assert_allclose(ours.gain, gain, rtol=1e-6)


@pytest.mark.parametrize(("number", "most"), [(32, 128), (10, 50)])
@pytest.mark.parametrize("both", [False, True])
def test_buckets_of_t5(answers: dict[str, np.ndarray], both: bool, number: int, most: int) -> None:
    ours = [bucket(int(distance), number, most, causal=not both) for distance in DISTANCES]
    np.testing.assert_array_equal(ours, answers[f"buckets {both} {number}"])


@pytest.mark.parametrize("heads", [1, 3, 8, 12, 20])
def test_slopes_of_alibi(answers: dict[str, np.ndarray], heads: int) -> None:
    np.testing.assert_allclose(alibi_slopes(heads), answers[f"slopes {heads}"], rtol=1e-6)
