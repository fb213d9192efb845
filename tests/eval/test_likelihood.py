import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.likelihood import Likelihood
from model import GPT, GPTConfig
from train.data import Windows
from train.tasks.language_model import LanguageModel

V, END, LENGTH = 7, 6, 11
DOCUMENTS = [[0, 3, 1], [5], [], [2, 2, 4, 1, 0, 0, 3, 5, 1, 2, 4, 1, 3], [1, 1, 0, 5, 2, 4, 3, 3]]
STREAM = np.array([END] + [token for document in DOCUMENTS for token in [*document, END]])
NUM_BYTES = 41  # as if tokens were longer than bytes


def models() -> tuple[nnx.GraphDef, list[Any]]:
    config = GPTConfig(vocab_size=V, max_length=LENGTH, num_layers=1, width=6, num_heads=1, dropout=0.5, tied=False)
    both = [nnx.split(GPT(config, rngs=nnx.Rngs(seed))) for seed in (2, 3)]
    return both[0][0], [jax.tree.map(lambda x: 3 * x, params) for _, params in both]


def reference(graphdef: nnx.GraphDef, params: Any) -> list[list[float]]:
    """Nats of the targets at each position: each stretch of a document inside of a window is run alone, in float64."""
    forward = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens))
    nats: list[list[float]] = [[] for _ in range(LENGTH)]
    for start in range(0, len(STREAM) - 1, LENGTH):
        window = STREAM[start : start + LENGTH + 1]
        opens = [at for at in range(len(window) - 1) if at == 0 or window[at] == END] + [len(window) - 1]
        for first, last in zip(opens, opens[1:], strict=False):
            inputs, targets = window[first:last], window[first + 1 : last + 1]
            padded = np.pad(inputs, (0, LENGTH - len(inputs)))[None]
            logits = np.asarray(forward(padded)[0, : len(inputs)], np.float64)
            for position, target in enumerate(targets):
                nats[position].append(float(np.log(np.sum(np.exp(logits[position]))) - logits[position, target]))
    return nats


def test_counts_every_target_once_and_divides_by_bytes() -> None:
    graphdef, params = models()
    windows = Windows(STREAM, END, LENGTH, NUM_BYTES)
    sums = jax.jit(LanguageModel().sums(graphdef))
    # Three windows in batches of two: the last batch has a row of padding, the last window a padded end.
    found = dict(Likelihood(sums, windows, 2)(params[0]))
    by_position = reference(graphdef, params[0])
    nats, targets = sum(map(sum, by_position)), len(STREAM) - 1
    quarters = [
        np.mean(sum((by_position[at] for at in some), [])) for some in ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10))
    ]
    expected = {
        "val/loss": nats / targets,
        "val/perplexity": math.exp(nats / targets),
        "val/bits_per_byte": nats / math.log(2) / NUM_BYTES,
        **{f"val/loss/quarter_{number}": loss for number, loss in enumerate(quarters, 1)},
        "val/loss/last_less_first": quarters[3] - quarters[0],
    }
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(type(value) is float for value in found.values())
    assert nats / targets > math.log(V) + 0.1  # far from uniform


def test_seeds_are_measured_apart() -> None:
    graphdef, params = models()
    windows, sums = Windows(STREAM, END, LENGTH, NUM_BYTES), LanguageModel().sums(graphdef)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    found = dict(Likelihood(jax.jit(jax.vmap(sums, (0, None))), windows, 2)(both))
    singles = [dict(Likelihood(jax.jit(sums), windows, 3)(one)) for one in params]
    assert found.keys() == set(Likelihood.NAMES)
    for name, value in found.items():
        np.testing.assert_allclose(value, [single[name] for single in singles], rtol=1e-5)


def test_places_each_batch_and_stops_between_two() -> None:
    windows = Windows(STREAM, END, LENGTH, NUM_BYTES)
    placed: list[int] = []

    def place(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        placed.append(len(batch["tokens"]))
        return batch

    def sums(params: float, batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        targets_Q = np.array([batch["weights"].sum(), 0, 0, 0])
        return params * targets_Q, targets_Q

    likelihood = Likelihood(sums, windows, 1, place)
    found = dict(likelihood(1.5))
    assert found["val/loss"] == found["val/loss/quarter_1"] == pytest.approx(1.5)
    assert not {"val/loss/quarter_2", "val/loss/last_less_first"} & found.keys()  # without a target
    assert placed == [1, 1, 1]
    assert list(likelihood(1.5, should_stop=lambda: len(placed) == 5)) == []
    assert len(placed) == 5
