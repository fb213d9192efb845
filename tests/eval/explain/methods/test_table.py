"""What the table makes of maps of weights: the row that answers, by the vectors that it speaks of."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain.methods.rollout import rollout
from eval.explain.methods.table import METHODS, Asked
from model.families.encoder_decoder import Pairs
from model.inspection import attention_weights
from tests.eval.explain.cases import B, T, V, case

S = 5  # tokens of a source, which are not as many as those that are written


def asked(kind: str) -> Asked:
    """Rows whose sides are of two sizes, where there are two."""
    model, inputs, target = case(kind)
    if "pairs" in inputs:
        sources_BS = jnp.asarray(np.random.default_rng(1).integers(0, V, (B, S)))
        ids_BS = jnp.asarray(np.arange(S) < np.array([[S], [S], [S - 2]]), jnp.int32)
        inputs = {"pairs": Pairs(sources_BS, inputs["pairs"].tokens_BT, ids_BS, inputs["pairs"].segment_ids_BT)}
    return Asked.of(model, inputs, target)


@pytest.mark.rest
@pytest.mark.parametrize("method", ["raw_weights", "rollout"])
@pytest.mark.parametrize("kind", ["gpt-language_model", "encoder_decoder-translation"])
def test_the_row_that_answers_is_read_of_each_side(kind: str, method: str) -> None:
    """Of raw weights the mean over layers and heads."""
    one = asked(kind)
    maps: dict[str, Any] = dict(rollout(one.model, **one.inputs))
    if method == "raw_weights":
        weights = attention_weights(one.model, **one.inputs)
        maps = {name.removesuffix(".attention"): np.mean(x, axis=(0, 2)) for name, x in weights.items()}
        maps["cross"] = maps.pop("decoder.cross", None)
    sides = {"embedding": ("stack", T)}
    if "pairs" in one.inputs:
        sides = {"decoder.embedding": ("decoder", T), "encoder.embedding": ("cross", S)}
    found = METHODS[method].call(one)
    assert found.keys() == sides.keys()
    for site, (name, size) in sides.items():
        want_Bn = np.stack([maps[name][row, place] for row, place in enumerate(one.target.places_BP[:, 0])])
        assert want_Bn.shape == (B, size)
        np.testing.assert_allclose(found[site], want_Bn, rtol=1e-4, atol=1e-6)
