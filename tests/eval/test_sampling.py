import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.sampling import Sampling, min_p, top_k, top_p
from model.errors import UserError

V = 7
LOGITS = st.lists(st.integers(-12, 12).map(lambda n: n / 4), min_size=V, max_size=V)  # quarters, so that ties happen


def softmax(logits: list[float]) -> np.ndarray:
    powers = np.exp(np.array(logits, np.float64))
    return powers / powers.sum()


def kept(filtered: jax.Array) -> set[int]:
    return {int(token) for token in np.flatnonzero(np.asarray(filtered) > -np.inf)}


@given(LOGITS, st.integers(1, V + 2))
def test_top_k_keeps_what_fewer_than_k_others_beat(logits: list[float], k: int) -> None:
    expected = {token for token in range(V) if sum(other > logits[token] for other in logits) < k}
    filtered = top_k(jnp.array([logits]), k)[0]
    assert kept(filtered) == expected
    assert all(float(filtered[token]) == logits[token] for token in expected)


@given(LOGITS, st.sampled_from([0.11, 0.37, 0.61, 0.93]))
def test_top_p_keeps_the_smallest_set_with_that_mass(logits: list[float], p: float) -> None:
    probabilities = softmax(logits)
    order = sorted(range(V), key=lambda token: -logits[token])
    mass = np.cumsum(probabilities[order])
    if np.min(np.abs(mass - p)) < 1e-5:
        return  # rounding decides
    size = int(np.argmax(mass >= p)) + 1
    least = logits[order[size - 1]]
    assert kept(top_p(jnp.array([logits]), p)[0]) == {token for token in range(V) if logits[token] >= least}


@given(LOGITS, st.sampled_from([0.013, 0.17, 0.53, 1.0]))
def test_min_p_keeps_what_is_near_the_likeliest(logits: list[float], p: float) -> None:
    probabilities = softmax(logits)
    expected = {token for token in range(V) if probabilities[token] >= p * probabilities.max() * (1 - 1e-9)}
    assert kept(min_p(jnp.array([logits]), p)[0]) == expected


def test_temperature_comes_first_and_filters_follow_in_order() -> None:
    logits_BV = jnp.array([[3.0, 2.0, 1.5, 1.0, 0.0, -1.0, -2.0]])
    filtered_BV = Sampling(temperature=2.0, top_k=5, top_p=0.9, min_p=0.4).filtered(logits_BV)
    # At temperature 2 the five likeliest hold 0.365, 0.221, 0.172, 0.134, 0.081 (sum 0.974): 0.9 of that needs four,
    # and 0.4 of the likeliest leaves exp((x - 3) / 2) >= 0.4, three.
    np.testing.assert_allclose(filtered_BV[0], [0.0, -0.5, -0.75, *[-np.inf] * 4])


def test_draws_have_the_filtered_distribution() -> None:
    logits, draws = [0.0, 1.0, 2.0, 0.5, -1.0, 1.5, -3.0], 4001
    sampling = Sampling(temperature=0.7, top_k=5)
    tokens = sampling.draw(jnp.tile(jnp.array([logits]), (draws, 1)), jax.random.split(jax.random.key(3), draws))
    expected = softmax([x / 0.7 for x in logits])
    expected[[4, 6]] = 0
    expected /= expected.sum()
    observed = np.bincount(tokens, minlength=V) / draws
    # Four standard deviations.
    assert np.all(np.abs(observed - expected) <= 4 * np.sqrt(expected * (1 - expected) / draws))


def test_temperature_0_takes_the_likeliest() -> None:
    logits_BV = jnp.array([[0.0, 5.0, 1.0], [2.0, 1.0, 0.0]])
    assert Sampling(temperature=0).draw(logits_BV, jax.random.split(jax.random.key(0), 2)).tolist() == [1, 0]


inf = np.inf
EDGES = np.array(
    [
        [0.0, 1.0, 2.0, 0.5, -1.0, 1.5, -3.0],
        [1.0, 2.0, 2.0, 0.0, -1.0, 2.0, 1.0],  # several are likeliest
        [5.0, 5.0 + 2**-21, 5.0, 4.0, 3.0, 2.0, 1.0],  # neighbours in float32
        [1e-30, 2e-30, 0.0, -1e-30, 0.0, 0.0, 0.0],
        [-inf, 3.0, -inf, 1.0, -inf, 2.5, -inf],
        [-inf, -inf, -inf, -1e30, -inf, -inf, -inf],
        [0.0, inf, 1e30, -inf, 3.0, 1.0, -1e30],
        [0.0, inf, 1e30, inf, -inf, 1.0, inf],
        [0.0, 1e30, -1e30, 1e30, 5.0, -inf, 9e29],
        [-1e30] * 7,
        [-inf] * 7,
        [3e38, -3e38, 0.0, 1.0, -inf, 3e38, 2e38],
    ],
    np.float32,
)
COLD = [1e-3, 1e-8, 1e-20, 1e-37, 1e-38, 1e-40, 5e-324]


def expected_probabilities(logits: np.ndarray, how: Sampling) -> np.ndarray:
    """Of one row, in float64: temperature, then the filters in order, each renormalised."""
    with np.errstate(all="ignore"):  # inf - inf, where the condition chooses the other
        x = np.where(logits == logits.max(), 0.0, np.float64(logits) - np.float64(logits.max())) / how.temperature
    x[np.abs(x) < np.finfo(np.float32).tiny] = 0  # for float32 a tie
    alive = np.ones(V, bool)
    if how.top_k:
        alive &= np.array([(x > one).sum() < how.top_k for one in x])
    for p in [how.top_p] if how.top_p < 1 else []:
        mass = np.exp(x) * alive / (np.exp(x) * alive).sum()
        order = np.argsort(-x, kind="stable")
        least = min(x[token] for at, token in enumerate(order) if at == 0 or mass[order[:at]].sum() < p)
        alive &= x >= least
    if how.min_p:
        alive &= np.exp(x) >= how.min_p * (1 - 1e-9)
    return np.exp(x) * alive / (np.exp(x) * alive).sum()


@pytest.mark.parametrize("temperature", [*COLD, 0.7, 1.0, 1e3, 1e37])
def test_every_combination_at_the_edges_is_what_float64_says(temperature: float) -> None:
    """With every top-k, top-p and min-p, logits of any size and infinite ones."""
    for k, p, least in itertools.product((0, 1, 3, 99), (1.0, 0.45, *COLD[:-1]), (0.0, 1e-40, 0.3)):
        how = Sampling(temperature, k, p, least)
        got_BV = jax.nn.softmax(how.filtered(jnp.array(EDGES)), axis=-1)
        expected_BV = np.array([expected_probabilities(row, how) for row in EDGES])
        np.testing.assert_allclose(got_BV, expected_BV, atol=1e-5, err_msg=str(how))


def test_no_temperature_is_too_hot() -> None:
    """Every finite logit becomes as likely as any other, and none becomes NaN."""
    got_BV = jax.nn.softmax(Sampling(temperature=1e300).filtered(jnp.array(EDGES[:6])), axis=-1)
    finite_BV = np.isfinite(EDGES[:6])
    np.testing.assert_allclose(got_BV, finite_BV / finite_BV.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cold_draws_and_narrow_ones_are_greedy_also_when_compiled(dtype: str) -> None:
    """XLA turns divisions into multiplications and drops numbers that are not normal: what is drawn is what is seen."""
    logits_BV = jnp.array(np.delete(EDGES, 3, axis=0)).astype(dtype)  # but for those that 1e-8 does not tell apart
    keys_B = jax.random.split(jax.random.key(7), len(logits_BV))
    best_BV = np.asarray(logits_BV == jnp.max(logits_BV, axis=-1, keepdims=True))
    for number in (1e-8, 1e-38, 1e-40) if dtype == "float32" else (1e-40,):
        for how in (Sampling(number), Sampling(top_p=number), Sampling(number, 3, number, 0.1)):
            tokens_B = jax.jit(how.draw)(logits_BV, keys_B)
            assert best_BV[np.arange(len(best_BV)), tokens_B].all(), how


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-0.1, float("nan"), float("inf"))],
        *[("top_k", value) for value in (-1, 2.5, 2.0, math.inf)],
        *[("top_p", value) for value in (0.0, -1.0, 1.01, float("nan"))],
        *[("min_p", value) for value in (-0.1, 1.1, float("nan"))],
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^--{name}={value} must be "):
        Sampling(**{name: value})
