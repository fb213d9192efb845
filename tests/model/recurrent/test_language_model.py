"""The recurrent language model against a loop in float64: packed documents, windows, steps of decoding."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import UserError
from model.layers import row_bernoulli
from model.recurrent.language_model import Recurrent, RecurrentConfig
from tests.model.recurrent import loops
from tests.model.recurrent.cases import Model, check_gradient, compiled, made, nll, products
from train.flops import flops_per_token

V, D, L, T = 23, 6, 2, 17
# Row, first place and length of each document; padding is before, between and behind them, and inside of the fifth.
PLACES = [(0, 0, 17), (1, 0, 5), (1, 5, 1), (1, 6, 8), (2, 2, 7), (2, 11, 4)]
HOLE = (2, 5)


def config(**changes: Any) -> RecurrentConfig:
    return RecurrentConfig(**{"vocab_size": V, "max_length": T, "num_layers": L, "width": D} | changes)


@functools.cache
def model(cell: str, **changes: Any) -> Model:
    return made(config(cell=cell, **changes))


@functools.cache
def batch() -> tuple[dict[str, np.ndarray], list[tuple[int, np.ndarray]]]:
    """Packed and padded rows, and where each document is; padding has tokens that no table has, which are NaN."""
    rng = np.random.default_rng(0)
    arrays = {"tokens": np.full((3, T), -1), "segment_ids": np.full((3, T), 9), "valid": np.zeros((3, T), bool)}
    arrays["tokens"][:, ::2], documents = V, []
    for number, (row, start, length) in enumerate(PLACES):
        at_N = np.array([place for place in range(start, start + length) if (row, place) != HOLE])
        arrays["tokens"][row, at_N], arrays["segment_ids"][row, at_N] = rng.integers(0, V, len(at_N)), number
        arrays["valid"][row, at_N] = True
        documents.append((row, at_N))
    arrays["targets"] = rng.integers(0, V, (3, T))
    return arrays, documents


def of_loop(m: Model, params: Any, row: int, at_N: np.ndarray) -> np.ndarray:
    return loops.language_model(params, m.config, batch()[0]["tokens"][row, at_N])[0]


@functools.cache
def answer(cell: str, tied: bool) -> Any:
    """((loss, logits), gradients) of the batch."""
    m, (arrays, _) = model(cell, tied=tied), batch()

    def loss(params: Any) -> Any:
        logits_BTV = m.merge(params)(arrays["tokens"], arrays["segment_ids"], valid_BT=arrays["valid"])
        return nll(logits_BTV, arrays["targets"], arrays["valid"]), logits_BTV

    return compiled(jax.value_and_grad(loss, has_aux=True))(m.params)


@pytest.mark.parametrize(("cell", "tied"), [("lstm", True), ("gru", False)])
def test_packed_and_padded_documents_are_the_loops_one_by_one(cell: str, tied: bool) -> None:
    """Logits, loss and gradients."""
    m, (arrays, documents), ((loss, logits_BTV), gradient) = model(cell, tied=tied), batch(), answer(cell, tied)
    assert np.isfinite(logits_BTV).all()
    assert logits_BTV.dtype == np.float32
    params = jax.tree.map(np.float64, m.params)
    for row, at_N in documents:
        np.testing.assert_allclose(logits_BTV[row, at_N], of_loop(m, params, row, at_N), rtol=1e-5, atol=1e-5)

    def expected(params: Any) -> float:
        return sum(loops.cross_entropy(of_loop(m, params, *one), arrays["targets"][one]) for one in documents)

    np.testing.assert_allclose(loss, expected(params), rtol=1e-5)
    check_gradient(expected, m.params, gradient)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_windows_and_decoding_go_on_where_the_last_ended(cell: str) -> None:
    """A carry between windows that cut a document, and a cache, fed in pieces that differ from row to row."""
    m = model(cell)
    tokens_BT = np.random.default_rng(3).integers(0, V, (3, T))
    params = jax.tree.map(np.float64, m.params)
    expected_BTV = np.stack([loops.language_model(params, m.config, row_T)[0] for row_T in tokens_BT])
    merged = m.merge()
    carry, found = merged.empty_carry(3), []
    for part in (slice(0, 5), slice(5, 6), slice(6, T)):
        x_BTD, carry = merged.continued(tokens_BT[:, part], carry)
        found.append(merged.readout()(x_BTD))
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected_BTV, rtol=1e-5, atol=1e-5)
    # What comes out goes on in another document too: positions say where a row begins one, ids what follows in it.
    _, states = loops.language_model(params, m.config, tokens_BT[1])
    for layer, state in enumerate(states):
        for one, array_BLH in zip(state, carry, strict=True):
            np.testing.assert_allclose(array_BLH[1, layer], one, rtol=1e-5, atol=1e-5)
    ids_BT = np.where(np.arange(T)[None] < 9, 4, 5).repeat(3, axis=0)
    at_BT = np.arange(T)[None] + np.array([[0], [7], [7]])  # row 0 begins its document, whatever is carried to it
    logits_BTV = merged.readout()(merged.continued(tokens_BT, carry, ids_BT, at_BT)[0])
    first_TV = loops.language_model(params, m.config, tokens_BT[0, :9])[0]
    on_TV = loops.language_model(params, m.config, tokens_BT[1, :9], states)[0]
    new_TV = loops.language_model(params, m.config, tokens_BT[1, 9:])[0]
    for row, at, want_TV in ((0, slice(9), first_TV), (1, slice(9), on_TV), (1, slice(9, T), new_TV)):
        np.testing.assert_allclose(logits_BTV[row, at], want_TV, rtol=1e-5, atol=1e-5)

    step, cache, found = compiled(lambda *given: merged.decode(*given)), merged.init_cache(3, T), []
    # Row 0 has a prompt of 4 tokens, row 1 one of 1, behind which padding stands; row 2 is fed all at once.
    at_BT = np.stack([np.where(np.arange(T) < size, np.arange(T), -1) for size in (4, 1, T)])
    logits_BTV, cache = step(tokens_BT, at_BT, cache)
    for row, size in enumerate((4, 1, T)):
        np.testing.assert_allclose(logits_BTV[row, :size], expected_BTV[row, :size], rtol=1e-5, atol=1e-5)
        assert np.isnan(logits_BTV[row, size:]).all()
    at_B1 = np.array([[4], [1], [-1]])
    logits_B1V, cache = step(tokens_BT[np.arange(3)[:, None], at_B1], at_B1, cache)
    np.testing.assert_allclose(logits_B1V[:2, 0], expected_BTV[[0, 1], [4, 1]], rtol=1e-5, atol=1e-5)
    # Row 0 goes back, row 1 leaves one out, row 2 begins anew.
    at_B1 = np.array([[3], [3], [0]])
    logits_B1V, cache = step(tokens_BT[np.arange(3)[:, None], at_B1], at_B1, cache)
    assert np.isnan(logits_B1V[:2]).all()
    np.testing.assert_allclose(logits_B1V[2, 0], expected_BTV[2, 0], rtol=1e-5, atol=1e-5)


def test_an_unknown_token_spoils_its_document_alone_from_there_on() -> None:
    m = model("gru")
    tokens_BT, ids_BT = np.random.default_rng(3).integers(0, V, (2, T)), np.where(np.arange(T)[None] < 9, 1, 2)
    with pytest.raises(UserError, match=r"^token 23 at \(1, 4\) \(row, place\) is outside of the vocabulary of 23"):
        m.merge()(np.where((np.arange(2)[:, None] == 1) & (np.arange(T) == 4), V, tokens_BT))
    run = compiled(lambda tokens_BT: m.merge()(tokens_BT, ids_BT))
    spoilt_BT = np.isnan(run(jnp.asarray(tokens_BT).at[1, 4].set(V))).any(-1)
    np.testing.assert_array_equal(spoilt_BT, [[False] * T, [4 <= t < 9 for t in range(T)]])


def test_dropout_falls_on_what_goes_into_each_layer_and_out_of_the_last() -> None:
    """Each with a draw of its own, which depends on the row's key alone."""
    m, rate = model("lstm", dropout=0.4), 0.4
    tokens_BT, keys_B = np.random.default_rng(3).integers(0, V, (3, T)), jax.random.split(jax.random.key(0), 3)
    run = compiled(lambda tokens_BT, keys_B: m.merge().vectors(tokens_BT, dropout_keys_B=keys_B))
    x_BTD, other_BTD = run(tokens_BT, keys_B), run(tokens_BT[::-1], keys_B[::-1])
    np.testing.assert_allclose(x_BTD, other_BTD[::-1], rtol=1e-6)
    params = jax.tree.map(np.float64, m.params)

    def dropped(x_TD: np.ndarray, site: int) -> np.ndarray:
        keep_1TD = row_bernoulli(jax.random.fold_in(keys_B[1], site)[None], 0, 1 - rate, (T, D))
        return np.where(keep_1TD[0], x_TD / (1 - rate), 0)

    x_TD = loops.embedded(params, tokens_BT[1])
    for number in range(L):
        own = loops.row(params["stack"]["blocks"], number)
        x_TD, _ = loops.through("lstm", own, dropped(x_TD, number), m.config.forget_bias)
    np.testing.assert_allclose(x_BTD[1], dropped(x_TD, 2**31), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_half_precision_stays_close_and_keeps_float32_states(cell: str) -> None:
    m, (arrays, documents) = model(cell, dtype="bfloat16"), batch()
    params = jax.tree.map(np.float64, m.params)

    @compiled
    def run() -> Any:
        merged = m.merge()
        x_BTD, carry = merged.continued(
            arrays["tokens"], merged.empty_carry(3), arrays["segment_ids"], valid_BT=arrays["valid"]
        )
        return merged.readout()(x_BTD), carry

    logits_BTV, carry = run()
    assert {x.dtype for x in jax.tree.leaves((logits_BTV, carry, m.params))} == {np.dtype("float32")}
    expected = [of_loop(m, params, *one) for one in documents]
    errors = [np.abs(logits_BTV[one] - want).max() for one, want in zip(documents, expected, strict=True)]
    assert 1e-5 < max(errors) < 0.05 * max(np.abs(want).max() for want in expected)


def test_first_values_keep_lengths_and_know_their_layer() -> None:
    """Orthogonal matrices of all gates, no two alike; a deeper network keeps the layers that a flat one has."""
    (_, flat), (_, deep) = (
        nnx.split(Recurrent(config(cell="gru", num_layers=count, width=32), rngs=nnx.Rngs(0))) for count in (2, 3)
    )
    blocks, more = flat["stack"]["blocks"], deep["stack"]["blocks"]
    kernel_LHGH, input_LDGH = (np.asarray(blocks[name]["kernel"][...]) for name in ("hidden", "input"))
    matrices = kernel_LHGH.swapaxes(1, 2).reshape(6, 32, 32)
    np.testing.assert_allclose(matrices @ matrices.swapaxes(1, 2), np.tile(np.eye(32), (6, 1, 1)), atol=1e-5)
    assert all(np.abs(x - y).max() > 0.1 for x, y in itertools.combinations(matrices, 2))
    np.testing.assert_allclose(input_LDGH.std(), 32**-0.5, rtol=0.1)
    assert not np.asarray(blocks["input"]["bias"][...]).any()
    for path, param in flat_params_of(blocks):
        np.testing.assert_array_equal(param, dict(flat_params_of(more))[path][:2])


def flat_params_of(state: Any) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    return [(jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_formula_is_what_the_program_multiplies(cell: str) -> None:
    m, (arrays, _) = made(config(cell=cell, width=24, num_layers=3, tied=False)), batch()
    tokens_BT = jnp.asarray(np.maximum(arrays["tokens"] % V, 0))

    def loss(params: Any) -> jax.Array:
        return nll(m.merge(params)(tokens_BT), arrays["targets"], arrays["valid"])

    counted = products(jax.make_jaxpr(jax.grad(loss))(m.params).jaxpr)
    assert counted / tokens_BT.size == pytest.approx(flops_per_token(m.config), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cell": "rnn"}, "--config.model.cell='rnn' is not one of: lstm, gru."),
        ({"num_layers": 0}, "--config.model.num_layers=0 must be at least 1 and at most 10000."),
        ({"dropout": 1.0}, "--config.model.dropout=1.0 must be at least 0 and below 1."),
        ({"forget_bias": float("nan")}, "--config.model.forget_bias=nan must be at least -100 and at most 100."),
        ({"dtype": "int8"}, "--config.model.dtype='int8' is not one of: float32, bfloat16, float16."),
        ({"vocab_size": 0}, "--config.data.vocab_size=0 must be at least 1 and at most 16777216."),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        config(**changes)


def test_first_values_are_products_alone() -> None:
    """A decomposition by LAPACK waits for ever where a CPU is split into devices, on all of which a state is born."""
    made_anew = jax.jit(lambda: nnx.to_pure_dict(nnx.state(config(width=64).build(nnx.Rngs(0)))))
    assert "custom_call" not in made_anew.lower().as_text()
