"""Norms at every size of activation that float32 holds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPTConfig
from model.norms import NORMS, parse_norm
from tests.model import reference

WIDTH = 13
KINDS = (*NORMS, "layer(1e-12)", "rms(epsilon=0.1)")  # what is promised of a norm holds for each epsilon
SIZES = (0.0, 1e-30, 1e-3, 1.0, 7.0, 1e10, 2.0**50, 1e18, 1e19, 1e25, 1e38)


def norm(kind: str) -> nnx.Module:
    module = parse_norm(kind)(WIDTH, bias=True, rngs=nnx.Rngs(0))
    return nnx.merge(nnx.graphdef(module), jax.tree.map(lambda x: x + 0.3 * jnp.arange(13.0), nnx.state(module)))


def formula(kind: str) -> reference.Norm:
    """In float64."""
    name, _, argument = kind.removesuffix(")").partition("(")
    return reference.NORM_KINDS[name](float(argument.removeprefix("epsilon=") or 1e-6))


def rows(dtype: str) -> jax.Array:
    """A row of each size, entries of both signs, and one whose entries are of very different sizes."""
    drawn = np.random.default_rng(0).standard_normal((len(SIZES), WIDTH)).clip(-2.5, 2.5)
    mixed = np.geomspace(1e-20, 3e38, WIDTH)[None]
    return jnp.asarray(np.concatenate([drawn * np.array(SIZES)[:, None], mixed]), jnp.float32).astype(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 0.01)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_finite_input_overflows_a_norm(kind: str, dtype: str, tolerance: float) -> None:
    module, x = norm(kind), rows(dtype)
    params = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(module)))
    got = np.asarray(jax.jit(lambda x: module(x))(x), np.float64)
    expected = formula(kind)(np.asarray(x, np.float64), params)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", NORMS)
def test_the_epsilon_is_the_one_that_is_written(name: str) -> None:
    """Of entries about as small as its root, where ten times as much is seen."""
    x, seen = 3e-3 * rows("float32")[3:4], []
    for kind in (name, f"{name}(1e-05)", f"{name}(epsilon=1e-06)", f"{name}(0.01)", f"{name}(1e-12)"):
        module = norm(kind)
        params = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(module)))
        seen.append(np.asarray(module(x)))
        np.testing.assert_allclose(seen[-1], formula(kind)(np.float64(x), params), rtol=1e-5, err_msg=kind)
    np.testing.assert_array_equal(seen[0], seen[2])
    for other in (seen[1], seen[3], seen[4]):
        assert np.abs(other / seen[0] - 1).max() > 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_norm_shrinks_as_its_input_grows(kind: str) -> None:
    """norm(c x) = norm(x) where epsilon is nothing, so its gradient at c x is that at x over c; never 0 or NaN."""
    module, x = norm(kind), 1000 * rows("float32")[3]
    weights = jnp.sin(jnp.arange(1.0, WIDTH + 1))

    @jax.jit
    def gradient(x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: jnp.sum(weights * module(x)))(x)

    at_one = np.asarray(gradient(x))
    assert np.abs(at_one).max() > 1e-4
    for size in (2.0**power for power in range(10, 110)):
        np.testing.assert_allclose(np.asarray(gradient(size * x)) * size, at_one, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_little_spread_have_values_and_gradients(kind: str) -> None:
    """Value against float64, and gradients that are numbers, for rows of one sign and for constant ones."""
    module, drawn = norm(kind), np.random.default_rng(1).standard_normal(WIDTH)
    params = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(module)))
    value = jax.jit(lambda x: module(x))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(jnp.arange(1.0, WIDTH + 1)) * module(x))))
    for power in (0, 19, 20, 21, 41, 45, 49, 51, 56, 100, 125):
        for spread in (0.0, 1e-6, 1e-4, 0.1):
            x = np.float32(2.0**power * (1 + spread * drawn))
            got, expected = np.asarray(value(x), np.float64), formula(kind)(np.float64(x), params)
            if spread in (0.0, 0.1):  # else the rounding of x itself is most of its spread
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4, err_msg=f"2^{power}, {spread}")
            assert np.isfinite(got).all(), (power, spread)
            assert np.isfinite(np.asarray(gradient(x))).all(), (power, spread)


def test_a_head_is_as_wide_as_the_sizes_of_now() -> None:
    config = GPTConfig(vocab_size=13, max_length=17, width=16, num_heads=4)
    assert (config.K, dataclasses.replace(config, width=64).K, dataclasses.replace(config, num_heads=2).K) == (4, 16, 8)
    assert dataclasses.replace(config, head_width=5, width=64).K == 5
