"""Integrated gradients: closed forms, completeness, symmetry, and a plain rule of many nodes."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.explain.methods.gradients import value_and_gradient
from eval.explain.methods.integrated import NODES, PARTS, baselines, integrated_gradients
from eval.explain.targets import Target, embedded
from model import UserError
from model.parameters import Module
from tests.eval.explain.cases import KIND, B, T, V, case


@dataclasses.dataclass(frozen=True)
class Sizes:
    vocab_size: int = V
    HEADS: ClassVar = ("class",)


class Polynomial(Module):
    """sum over tokens of (w . x)^power + the last one alone, in a `unit`: a model in all that is asked of one."""

    def __init__(self, power: int, unit: float = 1.0):
        self.power, self.unit, self.config = power, unit, Sizes()
        self.table = nnx.Param(jax.random.normal(jax.random.key(0), (V, 5)))

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        return self.table[...][tokens_BT]

    def vectors(self, tokens_BT: jax.Array, taps: Any = None) -> jax.Array:
        return taps("embedding", self.embed(tokens_BT))

    def __call__(self, tokens_BT: jax.Array, taps: Any = None) -> jax.Array:
        x_BTD = self.vectors(tokens_BT, taps)
        each_BT = jnp.sum(x_BTD[:, :-1], axis=-1) ** self.power
        return self.unit * jnp.stack([jnp.sum(each_BT, axis=1), 3 * x_BTD[:, -1, 0]], axis=1)


@pytest.mark.parametrize("power", [1, 3, 2 * NODES])
def test_polynomials_are_exact_with_one_panel(power: int) -> None:
    """Of degree up to twice the nodes: x -> (sum x)^p has (x - b)(s^p - t^p) / (s - t)."""
    model, inputs = Polynomial(power), {"tokens_BT": jnp.asarray([[1, 2, 3, 4], [5, 6, 7, 8]])}
    x = np.asarray(embedded(model, inputs)["embedding"], np.float64)
    b = 0.3 * np.ones_like(x)
    for label in (0, 1):
        target = Target(jnp.zeros((2, 1), jnp.int32), jnp.full((2, 1), label))
        found = integrated_gradients(model, inputs, target, {"embedding": jnp.asarray(b, jnp.float32)})
        s, t = x.sum(-1), b.sum(-1)
        want = s**power - t**power if label == 0 else np.zeros_like(s)
        want[:, -1] = 0 if label == 0 else 3 * (x - b)[:, -1, 0]
        np.testing.assert_allclose(found.values["embedding"], want, rtol=2e-4, atol=1e-4 * np.abs(want).max())
        assert found.passes_B.tolist() == found.last_B.tolist() == [2 + NODES] * 2


@pytest.mark.parametrize("kind", KIND)
def test_attributions_sum_to_what_is_explained(kind: str) -> None:
    """Within the tolerance, and near a plain rule of 300 nodes; nothing at padding; turned round, the other sign."""
    model, inputs, target = case(kind)
    x, base = embedded(model, inputs), baselines(model, inputs, {"end": 3})
    assert base.keys() == {"zero", "mean", "end"}
    found = integrated_gradients(model, inputs, target, base["mean"], tolerance=1e-3, most=500)
    assert found.error_B.max() <= 1e-3
    total = sum(one.sum(1) for one in found.values.values())
    np.testing.assert_allclose(total, found.value_B - found.baseline_B, atol=1e-3 * np.abs(total).max() + 1e-5)
    np.testing.assert_allclose(found.value_B, target.value(model, inputs), rtol=1e-5, atol=1e-5)
    plain = midpoint(model, inputs, target, x, base["mean"])
    for site, one in found.values.items():
        scale = np.abs(plain[site]).max()
        np.testing.assert_allclose(one, plain[site], atol=5e-3 * scale)
        assert not one[1, T - 2 :].any()
    assert (found.last_B <= found.passes_B).all()


def test_errors_are_relative_be_values_large_or_small() -> None:
    """Whatever the unit of an answer is, it takes as many passes to the same error, up to what rounding does."""
    inputs = {"tokens_BT": jnp.asarray([[1, 2, 3, 4], [5, 6, 7, 8]])}
    target = Target(jnp.zeros((2, 1), jnp.int32), jnp.zeros((2, 1), jnp.int32))
    units = (1.0, 2.0**-12, 2.0**12)
    found = []
    for unit in units:
        model = Polynomial(4 * NODES, unit)
        model.table[...] += 0.2 - jnp.mean(model.table[...], axis=1, keepdims=True)  # each token says 1 unit
        found.append(integrated_gradients(model, inputs, target, baselines(model, inputs, {})["zero"], tolerance=1e-4))
    assert (found[0].passes_B > 2 + NODES).all()
    for unit, one in zip(units, found, strict=True):
        missed_B = np.abs(one.values["embedding"].sum(1) - (one.value_B - one.baseline_B))
        np.testing.assert_allclose(one.error_B, missed_B / np.abs(one.value_B - one.baseline_B), rtol=1e-3)
        assert one.error_B.max() <= 1e-4
        np.testing.assert_array_equal(one.passes_B, found[0].passes_B)
        np.testing.assert_allclose(one.values["embedding"], unit * found[0].values["embedding"], rtol=1e-5)


def midpoint(model: Any, inputs: Any, target: Target, x: Any, b: Any, nodes: int = 300) -> dict[str, np.ndarray]:
    @jax.jit
    def slope(at: jax.Array) -> Any:
        return value_and_gradient(model, inputs, target, jax.tree.map(lambda b, x: b + at * (x - b), b, x))[1]

    sums = jax.tree.map(np.zeros_like, x)
    for node in range(nodes):
        sums = jax.tree.map(np.add, sums, slope(jnp.float32((node + 0.5) / nodes)))
    return {site: np.sum(sums[site] / nodes * (x[site] - b[site]), axis=-1) for site in x}


def test_hard_paths_are_cut_where_they_are_hard() -> None:
    """From zeros, where norms turn any vector into one of length one at once, with all passes counted."""
    model, inputs, target = case("gpt-language_model")
    zero = baselines(model, inputs, {})["zero"]
    found = integrated_gradients(model, inputs, target, zero, most=400)
    assert found.error_B.max() <= 1e-2
    assert found.passes_B.max() > 2 + NODES + PARTS * NODES
    assert found.passes_B.max() <= 400
    for passes, last in zip(found.passes_B, found.last_B, strict=True):  # borders and nodes of what was cut, too
        cuts, rest = divmod(passes - 2 - NODES, PARTS * NODES + PARTS - 1)
        assert (rest, last) == (0, (NODES + 1) * (1 + cuts * (PARTS - 1)) + 1)
    few = integrated_gradients(model, inputs, target, zero, most=40, tolerance=1e-5)
    assert few.passes_B.max() <= 40
    assert few.error_B.max() > 1e-5  # told, and not hidden
    alone = jax.tree.map(lambda x: x[1:2], (inputs, target, zero))
    one = integrated_gradients(model, *alone, most=400)
    np.testing.assert_allclose(one.values["embedding"][0], found.values["embedding"][1], rtol=1e-3, atol=1e-4)


def test_of_nothing_comes_nothing() -> None:
    model, inputs, target = case("gpt-language_model")
    x = embedded(model, inputs)
    found = integrated_gradients(model, inputs, target, x)
    assert not found.values["embedding"].any()
    assert not found.error_B.any()
    base = baselines(model, inputs, {"end": 3})
    real = np.asarray(inputs["valid_BT"])
    np.testing.assert_array_equal(base["end"]["embedding"][real], model.embed(jnp.full((B, T), 3))[real])
    mean_D = np.asarray(model.embed(jnp.arange(V)[None]))[0].mean(0)
    np.testing.assert_allclose(base["mean"]["embedding"][real], np.tile(mean_D, (real.sum(), 1)), rtol=1e-5, atol=1e-6)
    assert not any(base[name]["embedding"][~real].any() for name in base)
    for choices in ({"tolerance": 0.0}, {"most": 3}):
        with pytest.raises(UserError, match="must be at least"):
            integrated_gradients(model, inputs, target, x, **choices)


def test_padding_and_half_precision_are_no_part_of_the_path() -> None:
    model, inputs, target = case("bert-classification")
    strange = inputs | {"tokens_BT": inputs["tokens_BT"].at[1, T - 2 :].set(-1)}
    one, other = (integrated_gradients(model, x, target, baselines(model, x, {})["mean"]) for x in (inputs, strange))
    np.testing.assert_allclose(other.values["embedding"], one.values["embedding"], atol=1e-4)
    half = case("bert-classification", **{"model.dtype": "bfloat16"})[0]
    found = integrated_gradients(half, inputs, target, baselines(half, inputs, {})["mean"])
    assert found.error_B.max() <= 1e-2
    np.testing.assert_allclose(found.values["embedding"], one.values["embedding"], atol=1e-3)
