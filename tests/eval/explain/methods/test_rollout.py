"""Rollout beside NumPy, the paper's formula by hand, and what must hold for any attention."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain.methods.rollout import mixed, rollout
from model import UserError
from model.inspection import attention_weights
from tests.eval.explain.test_capture import B, L, T, made
from tests.tiers import tiered


def by_hand(maps: Any, residual: float = 0.5, first: int = 0) -> np.ndarray:
    """Of maps (L, n, n) of one example, layer by layer."""
    rolled = np.eye(maps.shape[1])
    for number, one in enumerate(np.float64(maps)):
        mix = (1 - residual) * one + residual * np.eye(len(one))
        rolled = mix / mix.sum(1, keepdims=True) @ rolled if number >= first else rolled
    return rolled


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("family", tiered([("gpt",), ("bert",)], lambda family: family == "bert"))
def test_it_is_the_product_of_what_each_layer_mixes(family: str, fusion: str) -> None:
    model, one, _ = made(family)
    (weights_LBHTS,) = attention_weights(model, **one).values()
    maps_LBTT = getattr(np, fusion)(np.asarray(weights_LBHTS), axis=2)
    for choices in ({}, {"residual": 0.3}, {"residual": 0.0}, {"start_layer": 1}):
        found_BTT = rollout(model, fusion=fusion, **choices, **one)["stack"]
        for b in range(B):
            want = by_hand(maps_LBTT[:, b], choices.get("residual", 0.5), int(choices.get("start_layer", 0)))
            np.testing.assert_allclose(found_BTT[b], want, atol=1e-6)
        np.testing.assert_allclose(found_BTT.sum(-1), 1, rtol=1e-5)
        if family == "gpt":
            assert not np.triu(found_BTT, 1).any()


def test_what_is_known_of_any_attention() -> None:
    rng = np.random.default_rng(0)
    maps = jnp.asarray(rng.dirichlet(np.ones(T), (B, T)), jnp.float32)
    np.testing.assert_allclose(mixed(jnp.eye(T)[None]), np.eye(T)[None])
    np.testing.assert_allclose(mixed(maps, 0.0), maps, rtol=1e-6)
    # Of even weights, r^L I + (1 - r^L) 1 1' / n.
    even, rolled = jnp.full((1, T, T), 1 / T), jnp.eye(T)[None]
    for _ in range(L):
        rolled = mixed(even, 0.3) @ rolled
    np.testing.assert_allclose(rolled[0], 0.3**L * np.eye(T) + (1 - 0.3**L) / T, rtol=1e-5)
    order = rng.permutation(T)
    np.testing.assert_allclose(
        mixed(maps[:, order][:, :, order], 0.4), mixed(maps, 0.4)[:, order][:, :, order], rtol=1e-6
    )


def test_the_smallest_weights_are_left_out_of_each_example_alone() -> None:
    maps = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(T), (B, T)), jnp.float32)
    found = mixed(maps, 0.5, 0.6)
    for b in range(B):
        np.testing.assert_allclose(found[b], mixed(maps[b : b + 1], 0.5, 0.6)[0])
        # Those that stay: the largest of the others, and the diagonal and first column whole.
        left = np.asarray(maps[b]).copy()
        guarded = np.eye(T, dtype=bool) | (np.arange(T) == 0)
        order = sorted((left[at], at) for at in zip(*np.nonzero(~guarded), strict=True))
        for _, at in order[: int(0.6 * T * T)]:
            left[at] = 0
        want = 0.5 * left + 0.5 * np.eye(T)
        np.testing.assert_allclose(found[b], want / want.sum(1, keepdims=True), rtol=1e-5)
        # What is hidden is no weight, and is not counted.
        causal = np.tril(np.asarray(maps[b]))
        some = np.asarray(mixed(jnp.asarray(causal)[None], 0.5, 0.3)[0])
        assert (some[np.tril_indices(T)] == 0).sum() == int(0.3 * T * (T + 1) / 2)
    assert (np.asarray(found) == 0).mean() > 0.5


def test_padding_and_neighbours_change_nothing() -> None:
    model, one, _ = made("bert")
    tokens_BT, real = one["tokens_BT"], T - 2
    valid_BT = jnp.arange(T)[None] < jnp.array([[real], [T]])
    found = rollout(model, tokens_BT=tokens_BT, valid_BT=valid_BT)["stack"]
    alone = rollout(model, tokens_BT=tokens_BT[:1, :real])["stack"]
    np.testing.assert_allclose(found[0, :real, :real], alone[0], atol=1e-6)
    assert not found[0, :real, real:].any()
    np.testing.assert_allclose(found[1], rollout(model, tokens_BT=tokens_BT[1:])["stack"][0], atol=1e-6)


@pytest.mark.rest
def test_pairs_mix_what_both_sides_hold() -> None:
    model, one, _ = made("encoder_decoder")
    weights = {name: np.asarray(x).mean(2) for name, x in attention_weights(model, **one).items()}
    found = rollout(model, residual=0.4, **one)
    for b in range(B):
        encoder = by_hand(weights["encoder.attention"][:, b], 0.4)
        own, across = np.eye(T), np.zeros((T, T))
        for layer in range(L):
            mix = 0.6 * weights["decoder.attention"][layer, b] + 0.4 * np.eye(T)
            own, across = mix @ own, mix @ across
            own, across = 0.4 * own, 0.4 * across + 0.6 * weights["decoder.cross"][layer, b] @ encoder
        for name, want in {"encoder": encoder, "decoder": own, "cross": across}.items():
            np.testing.assert_allclose(found[name][b], want, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found["decoder"].sum(-1) + found["cross"].sum(-1), 1, rtol=1e-5)


@pytest.mark.rest
def test_a_target_without_a_source_keeps_what_it_has() -> None:
    model, one, _ = made("encoder_decoder")
    ids_BS = jnp.asarray([[0] * T, [1] * T])
    found = rollout(
        model, pairs=one["pairs"]._replace(source_segment_ids_BS=ids_BS, segment_ids_BT=jnp.ones((B, T), int))
    )
    np.testing.assert_allclose(found["decoder"][0].sum(-1), 1, rtol=1e-5)
    assert not found["cross"][0].any()
    np.testing.assert_allclose(found["decoder"][1].sum(-1) + found["cross"][1].sum(-1), 1, rtol=1e-5)
    assert (found["cross"][1].sum(-1) > 0.1).all()


def test_fair_shares_are_those_beside_even_weights() -> None:
    model, one, _ = made("gpt")
    found, fair = rollout(model, **one)["stack"], rollout(model, fair=True, **one)["stack"]
    even = by_hand(np.broadcast_to(np.tril(np.ones((T, T))) / np.arange(1, T + 1)[:, None], (L, T, T)))
    lower = np.tril(np.ones((T, T), bool))
    want = np.asarray(found) / np.where(lower, even, 1)
    np.testing.assert_allclose(np.where(lower, fair, 0), np.where(lower, want, 0), rtol=1e-4)


def test_what_it_cannot_do_is_refused() -> None:
    model, one, _ = made("gpt")
    for choices, sentence in (
        ({"residual": 1.5}, "--residual=1.5 must be at least 0 and at most 1."),
        ({"discard": 1.0}, "--discard=1.0 must be at least 0 and below 1."),
        ({"start_layer": 3}, "--start_layer=3 must be at least 0 and at most 2."),
        ({"fusion": "sum"}, "--fusion='sum' is not one of: mean, max, min."),
    ):
        with pytest.raises(UserError) as refused:
            rollout(model, **choices, **one)
        assert str(refused.value) == sentence
    model, one, _ = made("recurrent_encoder_decoder")
    with pytest.raises(UserError, match=r"^rollout: what a recurrent model has read comes to a place by its states"):
        rollout(model, **one)
