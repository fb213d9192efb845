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
    np.testing.assert_allclose(filtered_BV[0], [1.5, 1.0, 0.75, *[-np.inf] * 4])


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-0.1, float("nan"), float("inf"))],
        *[("top_k", value) for value in (-1, 2.5)],
        *[("top_p", value) for value in (0.0, -1.0, 1.01, float("nan"))],
        *[("min_p", value) for value in (-0.1, 1.1, float("nan"))],
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^--{name}={value} must be "):
        Sampling(**{name: value})
