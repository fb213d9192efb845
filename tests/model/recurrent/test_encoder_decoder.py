"""The recurrent encoder-decoder against a loop in float64, packed and padded, and its steps of decoding."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import UserError
from model.families.encoder_decoder import Pairs
from model.inspection import attention_weights
from model.recurrent.encoder_decoder import RecurrentEncoderDecoderConfig, RecurrentPairCache
from tests.model.recurrent import loops
from tests.model.recurrent.cases import Model, check_gradient, compiled, made, nll, products
from train.flops import flops_per_token

V, D, A, S, T = 23, 6, 5, 13, 11
# Row, then first place and length in the source, and in the target; the last row has neither.
PLACES = [(0, 0, 13, 0, 11), (1, 0, 4, 0, 5), (1, 4, 1, 5, 1), (1, 6, 5, 8, 2), (2, 3, 4, 2, 7)]


def config(**changes: Any) -> RecurrentEncoderDecoderConfig:
    sizes = {"vocab_size": V, "max_length": S, "num_layers": 2, "encoder_num_layers": 2, "width": D, "cross_width": A}
    return RecurrentEncoderDecoderConfig(**sizes | changes)


@functools.cache
def model(cell: str, **changes: Any) -> Model:
    return made(config(cell=cell, **changes))


@functools.cache
def batch() -> tuple[dict[str, np.ndarray], list[tuple[tuple[int, np.ndarray], tuple[int, np.ndarray]]]]:
    """Packed and padded rows, and where each pair is; padding has tokens that no table has, which are NaN."""
    rng, pairs = np.random.default_rng(0), []
    arrays = {"sources": np.full((4, S), V), "tokens": np.full((4, T), -1)}
    arrays |= {"source_segment_ids": np.zeros((4, S), int), "segment_ids": np.zeros((4, T), int)}
    for number, (row, start, length, begin, size) in enumerate(PLACES, 1):
        places = [(row, np.arange(start, start + length)), (row, np.arange(begin, begin + size))]
        for side, (tokens, ids) in zip(
            places, (("sources", "source_segment_ids"), ("tokens", "segment_ids")), strict=True
        ):
            arrays[tokens][side], arrays[ids][side] = rng.integers(0, V, len(side[1])), number
        pairs.append(tuple(places))
    arrays["targets"] = rng.integers(0, V, (4, T))
    return arrays, pairs


def given() -> Pairs:
    return Pairs.of({name: jnp.asarray(x) for name, x in batch()[0].items()})


def of_loop(m: Model, params: Any, source: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    arrays = batch()[0]
    return loops.encoder_decoder(params, m.config, arrays["sources"][source], arrays["tokens"][target])


@pytest.mark.parametrize(("cell", "num_layers", "tied"), [("lstm", 2, False), ("gru", 1, True)])
def test_packed_and_padded_pairs_are_the_loops_one_by_one(cell: str, num_layers: int, tied: bool) -> None:
    """Logits, attention weights, loss and gradients."""
    m, (arrays, pairs) = model(cell, num_layers=num_layers, tied=tied), batch()

    def loss(params: Any) -> Any:
        logits_BTV = m.merge(params)(given())
        total = nll(logits_BTV, arrays["targets"], arrays["segment_ids"] != 0)
        return total, (logits_BTV, attention_weights(m.merge(params), pairs=given())["decoder.cross"])

    run = compiled(jax.value_and_grad(loss, has_aux=True))
    (total, (logits_BTV, weights_LBHTS)), gradient = run(m.params)
    assert np.isfinite(logits_BTV).all()
    assert weights_LBHTS.shape == (1, 4, 1, T, S)
    params, seen_BTS = jax.tree.map(np.float64, m.params), np.zeros((4, T, S))
    for source, target in pairs:
        want_TV, want_TS = of_loop(m, params, source, target)
        np.testing.assert_allclose(logits_BTV[target], want_TV, rtol=1e-5, atol=1e-5)
        seen_BTS[np.ix_([source[0]], target[1], source[1])] = want_TS
    np.testing.assert_allclose(weights_LBHTS[0, :, 0], seen_BTS, rtol=1e-5, atol=1e-6)

    def expected(params: Any) -> float:
        found = ((of_loop(m, params, *pair)[0], arrays["targets"][pair[1]]) for pair in pairs)
        return sum(loops.cross_entropy(*one) for one in found)

    np.testing.assert_allclose(total, expected(params), rtol=1e-5)
    check_gradient(expected, m.params, gradient)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_decoding_token_by_token_is_teacher_forcing(cell: str) -> None:
    m = model(cell)
    rng = np.random.default_rng(3)
    sources_BS, tokens_BT, source_ids_BS = rng.integers(0, V, (3, S)), rng.integers(0, V, (3, T)), np.ones((3, S), int)
    source_ids_BS[1, 4:], source_ids_BS[2, :5] = 0, 0
    params = jax.tree.map(np.float64, m.params)
    expected_BTV = np.stack(
        [
            loops.encoder_decoder(params, m.config, row_S[ids_S != 0], row_T)[0]
            for row_S, ids_S, row_T in zip(sources_BS, source_ids_BS, tokens_BT, strict=True)
        ]
    )
    merged = m.merge()

    def start(sources_BS: jax.Array, ids_BS: jax.Array) -> RecurrentPairCache:
        return merged.init_cache(merged.encode(Pairs(sources_BS, sources_BS, ids_BS)), ids_BS, T)

    cache = compiled(start)(sources_BS, source_ids_BS)
    step = compiled(lambda *given: merged.decode(*given))
    for t in range(3):
        logits_B1V, cache = step(tokens_BT[:, t : t + 1], np.full((3, 1), t), cache)
        np.testing.assert_allclose(logits_B1V[:, 0], expected_BTV[:, t], rtol=1e-5, atol=1e-5)
    # Rows change places, as in a beam: everything that the cache keeps goes along. One waits, one goes back.
    order = np.array([2, 2, 0])
    cache = cache.taken(order)
    logits_B1V, cache = step(tokens_BT[order, 3:4], np.array([[3], [-1], [1]]), cache)
    np.testing.assert_allclose(logits_B1V[0, 0], expected_BTV[2, 3], rtol=1e-5, atol=1e-5)
    assert np.isnan(logits_B1V[1:]).all()
    logits_B1V, cache = step(tokens_BT[order, 3:4], np.array([[4], [3], [0]]), cache)
    np.testing.assert_allclose(logits_B1V[1, 0], expected_BTV[2, 3], rtol=1e-5, atol=1e-5)


def test_ids_of_one_row_are_those_of_all() -> None:
    m, rng = model("lstm"), np.random.default_rng(3)
    sources_BS, tokens_BT, source_ids_1S = rng.integers(0, V, (3, S)), rng.integers(0, V, (3, T)), np.ones((1, S), int)

    def run() -> Any:
        pairs = Pairs(sources_BS, tokens_BT, source_ids_1S, np.ones((1, T), int))
        merged = m.merge()
        cache = merged.init_cache(merged.encode(pairs), source_ids_1S, T)
        return merged(pairs), merged.decode(tokens_BT[:, :1], np.zeros((3, 1), int), cache)[0]

    assert jax.tree.map(jnp.shape, jax.eval_shape(run)) == ((3, T, V), (3, 1, V))


def test_the_formula_is_what_the_program_multiplies() -> None:
    m = made(config(width=24, num_layers=3, cross_width=10, tied=False))
    rng = np.random.default_rng(3)
    sources_BS, tokens_BT, targets_BT = rng.integers(0, V, (3, 2, S))  # as long as each other: the formula's tokens

    def loss(params: Any) -> jax.Array:
        return nll(m.merge(params)(Pairs(sources_BS, tokens_BT)), targets_BT, jnp.ones((2, S), bool))

    forward, both = (products(jax.make_jaxpr(one)(m.params).jaxpr) / 2 for one in (loss, jax.grad(loss)))
    assert 3 * forward == pytest.approx(S * flops_per_token(m.config), rel=1e-6)
    again = 2 * S * (24 * 10 + S * 10)  # the backward pass makes scores once more
    assert both == pytest.approx(3 * forward + again, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 7}, "--config.model.width=7 must be even: each direction of the encoder has half."),
        ({"cross_width": -1}, "--config.model.cross_width=-1 must be at least 1 and at most 1048576, or 0 for width."),
        (
            {"encoder_num_layers": -1},
            "--config.model.encoder_num_layers=-1 must be at least 1 and at most 10000, or 0 for as many as "
            "num_layers.",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        config(**changes)
