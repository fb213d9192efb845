"""Attention flow beside a linear program, closed forms, and what must hold for any capacities."""

import numpy as np
import pytest
from scipy.optimize import linprog

from eval.explain.methods.flow import attention_flow, flow, lower_bounds, pair_flow, upper_bounds
from eval.explain.methods.rollout import rollout
from model import UserError
from tests.eval.explain.test_capture import made

RNG = np.random.default_rng(0)


def maps(L: int, n: int, sharpness: float, causal: bool, residual: float = 0.5, seed: int = 0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).standard_normal((L, n, n))
    weights = np.exp(logits) * (np.tril(np.ones((n, n))) if causal else 1)
    return (1 - residual) * weights / weights.sum(-1, keepdims=True) + residual * np.eye(n)


def program(maps_Lnn: np.ndarray, i: int, j: int) -> float:
    """The maximum flow as a linear program over all edges."""
    L, n, _ = maps_Lnn.shape
    edge = np.arange(L * n * n).reshape(L, n, n)
    kept = []
    for layer in range(1, L):
        for k in range(n):
            row = np.zeros(L * n * n)
            row[edge[layer, :, k]], row[edge[layer - 1, k]] = 1, -1
            kept.append(row)
    for k in range(n):
        if k != i:
            row = np.zeros(L * n * n)
            row[edge[L - 1, k]] = 1
            kept.append(row)
    for k in range(n):
        if k != j:
            row = np.zeros(L * n * n)
            row[edge[0, :, k]] = 1
            kept.append(row)
    gain = np.zeros(L * n * n)
    gain[edge[L - 1, i]] = -1
    bounds = np.stack([np.zeros(L * n * n), maps_Lnn.ravel()], axis=1)
    return float(-linprog(gain, A_eq=np.array(kept), b_eq=np.zeros(len(kept)), bounds=bounds).fun)


CASES = [(2, 5, 1.0), (3, 5, 3.0), (4, 4, 6.0), (6, 3, 2.0)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("L", "n", "sharpness"), CASES)
def test_it_is_the_linear_programs_optimum(L: int, n: int, sharpness: float, causal: bool) -> None:
    A = maps(L, n, sharpness, causal)
    want = np.array([[program(A, i, j) for j in range(n)] for i in range(n)])
    found = flow(A)
    np.testing.assert_allclose(found.values_Rn, want, atol=1e-6)
    i_P, j_P = (x.ravel() for x in np.indices((n, n)))
    for last, first in ((1, 1), (1, 2), (2, 3), (2, 4)):
        if last + first <= L:
            assert (lower_bounds(A, i_P, j_P, last, first, causal) <= want.ravel() + 1e-6).all()
    assert (upper_bounds(A, np.arange(n)) >= want - 1e-6).all()
    np.testing.assert_allclose(flow(A, [n - 1, 0]).values_Rn, want[[n - 1, 0]], atol=1e-6)
    if causal:
        assert not np.triu(found.values_Rn, 1).any()
    for i, j in ((n - 1, 0), (n - 1, n - 1)):
        one = pair_flow(A, i, j)
        assert one.value == pytest.approx(want[i, j], abs=1e-6)
        assert (A * one.cut_Lnn).sum() == pytest.approx(one.value, abs=1e-6)  # so there is no larger one
        assert (one.flow_Lnn <= A + 1e-7).all()
        np.testing.assert_allclose(one.flow_Lnn[1:].sum(1), one.flow_Lnn[:-1].sum(2), atol=1e-7)
        np.testing.assert_allclose(one.flow_Lnn[-1].sum(1), np.eye(n)[i] * one.value, atol=1e-7)
        np.testing.assert_allclose(one.flow_Lnn[0].sum(0), np.eye(n)[j] * one.value, atol=1e-7)


def test_closed_forms_and_laws() -> None:
    A = maps(5, 7, 2.0, causal=False)
    np.testing.assert_allclose(flow(A[:1]).values_Rn, A[0])
    two = np.minimum(A[1][:, :, None], A[0][None]).sum(1)
    np.testing.assert_allclose(flow(A[:2]).values_Rn, two, atol=1e-6)
    all_of_it = flow(A).values_Rn
    np.testing.assert_allclose(flow(0.3 * A).values_Rn, 0.3 * all_of_it, atol=1e-6)
    order = RNG.permutation(7)
    np.testing.assert_allclose(flow(A[:, order][:, :, order]).values_Rn, all_of_it[order][:, order], atol=1e-6)
    more = A.copy()
    more[2, 3, 4] += 0.5
    assert (flow(more).values_Rn >= all_of_it - 1e-6).all()
    rolled = np.linalg.multi_dot(A[::-1])
    assert (all_of_it >= rolled - 1e-6).all()
    assert (all_of_it <= 1 + 1e-6).all()
    np.testing.assert_allclose(flow(np.stack([np.eye(4)] * 3)).values_Rn, np.eye(4))


def test_most_pairs_need_no_search_and_deep_ones_are_saturated() -> None:
    found = flow(maps(12, 24, 1.0, causal=False))
    assert found.bounded > 0.95
    assert found.saturated == 1.0
    assert flow(maps(3, 24, 6.0, causal=False)).saturated < 1


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_that_of_a_model_is_never_below_its_rollout(family: str) -> None:
    model, one, _ = made(family)
    found = attention_flow(model, **one)
    for row, rolled in zip(found, np.asarray(rollout(model, **one)["stack"]), strict=True):
        assert (row.values_Rn >= rolled - 1e-5).all()
    last = attention_flow(model, places=[6], **one)[1]
    np.testing.assert_allclose(last.values_Rn[0], found[1].values_Rn[6], atol=1e-6)


def test_what_it_cannot_do_is_refused() -> None:
    sentence = (
        r"^attention flow of 64 places and 64 tokens takes 25,165,824 bytes and up to 1 s, and the budget is "
        r"1,000,000 bytes; ask for 2 places at a time"
    )
    with pytest.raises(UserError, match=sentence):
        flow(np.zeros((2, 64, 64)), budget=1_000_000)
    with pytest.raises(UserError, match=r"1,610,612,736 bytes and up to 1,134 s, .*; ask for 170 places"):
        flow(np.zeros((12, 256, 256)))
    model, one, _ = made("encoder_decoder")
    with pytest.raises(UserError, match="^attention_flow: it is defined for one stack of attention"):
        attention_flow(model, **one)
