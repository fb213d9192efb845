"""Padding: a batch in which it stands gives what its documents give one by one, whatever it holds."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from model import GPT, GPTConfig, UserError
from tests.model import reference
from train.tasks.language_model import language_model

V, T, LENGTH, PAD = 29, 131, 61, 7  # no document has the token 7
# Mask, positions and bias ask where a token stands in its document.
CONFIG: dict[str, Any] = {
    "vocab_size": V,
    "max_length": T,
    "num_layers": 2,
    "width": 12,
    "num_heads": 3,
    "norm": "layer",
    "use_bias": True,
    "tied": False,
    "mask": "causal & (window(20) | chunked(32))",
    "bias": "t5_causal(8, 30)",
    "position": "learned",
}
# Row, first place and document; padding is before, between and behind them.
PLACES = [(0, 0), (0, 70), (1, 0), (2, 70)]


@functools.cache
def case() -> tuple[Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Parameters, four documents as a batch, and the same in three padded rows."""
    rng = np.random.default_rng(0)
    abstract = nnx.eval_shape(lambda: GPT(GPTConfig(**CONFIG), rngs=nnx.Rngs(0)))
    params = reference.random_params(nnx.to_pure_dict(nnx.state(abstract, nnx.Param)), rng)
    params["embed"]["embedding"][PAD] = np.nan
    shape = (len(PLACES), LENGTH)
    documents = {
        "tokens": rng.integers(PAD + 1, V, shape),
        "targets": rng.integers(0, V, shape),
        "segment_ids": np.ones(shape, int),
        "positions": np.tile(np.arange(LENGTH), (len(PLACES), 1)),
        "weights": rng.integers(0, 2, shape).astype(np.float32),
    }
    # Padding is of the next document's segment, has weights, and ids and positions that no table has.
    junk = {"tokens": PAD, "targets": -100, "segment_ids": 2, "positions": 10**6, "weights": 1.0}
    padded = {name: np.full((3, T), junk[name], x.dtype) for name, x in documents.items()}
    padded["tokens"][:, ::2] = -1
    padded["valid"] = np.zeros((3, T), np.int32)
    for number, (row, start) in enumerate(PLACES):
        there = row, slice(start, start + LENGTH)
        for name, x in documents.items():
            padded[name][there] = x[number]
        padded["valid"][there], padded["segment_ids"][there] = 1, 1 + (start > 0)
    return params, documents, padded


def answer(core: str, batch: dict[str, np.ndarray], params: Any) -> Any:
    """The sums of the loss, and the gradients of all parameters."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: GPT(GPTConfig(**CONFIG, core=core), rngs=nnx.Rngs(0))))
    loss = language_model(graphdef, label_smoothing=0.1, z_loss=0.01)

    def total(params: Any, batch: Any) -> Any:
        sums = loss(params, batch, None)
        return sums["loss"][0], sums

    return jax.jit(jax.grad(total, has_aux=True))(params, batch)


@functools.cache
def one_by_one() -> Any:
    params, documents, _ = case()
    return answer("dense", documents, params)


@pytest.mark.parametrize("core", [pytest.param("dense", marks=pytest.mark.rest), "blockwise"])
def test_a_padded_batch_is_its_documents_one_by_one(core: str) -> None:
    params, _, padded = case()
    gradients, sums = answer(core, padded, params)
    wanted_gradients, wanted = one_by_one()
    for name, (total, count) in wanted.items():
        assert sums[name][1] == count
        np.testing.assert_allclose(sums[name][0], total, rtol=1e-5)
    for (path, got), want in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted_gradients), strict=True
    ):
        # That of a key's bias is 0 but for rounding, and none of the others is below 1.
        assert np.abs(got - want).max() < 1e-5 * max(np.abs(want).max(), 1), path


def test_padding_is_all_that_may_be_outside_of_its_tables() -> None:
    """Known beforehand, a document's own ids and positions are refused as always."""
    params, _, padded = case()
    model = nnx.eval_shape(lambda: GPT(GPTConfig(**CONFIG), rngs=nnx.Rngs(0)))
    nnx.update(model, params)
    arrays, valid_BT = [padded[name] for name in ("tokens", "segment_ids", "positions")], padded["valid"]
    logits_BTV = np.asarray(model(*arrays, valid_BT=valid_BT))
    assert np.isfinite(logits_BTV).all()
    with pytest.raises(UserError, match=r"^token -1 at \(0, 62\)"):
        model(*arrays)
    arrays[0] = np.where(valid_BT, arrays[0], 0)
    with pytest.raises(UserError, match=r"^position 1000000 at \(0, 61\)"):
        model(*arrays)
    arrays[2] = np.where(valid_BT, arrays[2] - 1, arrays[2])
    with pytest.raises(UserError, match=r"^position -1 at \(0, 0\)"):
        model(*arrays, valid_BT=valid_BT)
    with pytest.raises(UserError, match=r"^valid places of shape \(3, 7\) do not fit tokens of shape \(3, 131\)"):
        model(*arrays, valid_BT=valid_BT[:, :7])
