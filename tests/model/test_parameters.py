"""First values are keyed by path and layer: one parameter more leaves all others as they are, bit for bit."""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from model import GPT, GPTConfig
from model.attention import AttentionConfig, MultiHeadAttention
from model.attention.biases.table import BIASES
from model.errors import UserError
from model.layers import ACTIVATIONS, Linear
from model.norms import NORMS
from model.parameters import Module, parameter, path_number
from model.positions import POSITIONS
from model.stack.residuals import NORM_PLACES
from model.use_bias import BIASED, UseBias

L = 3
SIZES = {"num_layers": L, "width": 26, "num_heads": 13, "mlp_width": 17, "vocab_size": 29, "max_length": 11}
Leaves = dict[tuple[Any, ...], np.ndarray]


@functools.cache
def leaves(seed: int = 0, **choices: Any) -> Leaves:
    """The parameters of a GPT by their paths."""
    state = nnx.state(GPT(GPTConfig(**{**SIZES, **choices}), rngs=nnx.Rngs(seed)), nnx.Param)
    return {path: np.asarray(param[...]) for path, param in nnx.to_flat_state(state)}


def expressions(table: dict[str, Any]) -> list[str]:
    """The entries of a table that can be written without parentheses."""
    return [name for name in table if not any(word in name for word in ("linear", "ntk", "yarn", "llama3"))]


MORE = [
    {"tied": False},
    {"use_bias": True},
    {"use_bias": True, "norm": "layer"},
    {"sinks": True},
    {"edits": "qk_norm & output_gate & value_residual"},
    {"mlp": "swiglu"},
    *({"norm_place": name} for name in NORM_PLACES if name != "pre"),
    {"embedding": "normed", "use_bias": "qkv & output & mlp & norm & head"},
    {"tied": False, "use_bias": True, "sinks": True, "edits": "qk_norm", "mlp": "geglu"},
    *({"bias": name} for name in BIASES if name != "none"),
    *({"position": name} for name in expressions(POSITIONS)),
]


@pytest.mark.parametrize("choices", MORE, ids=str)
def test_other_parameters_leave_those_that_both_models_have(choices: dict[str, Any]) -> None:
    plain, other = leaves(position="none"), leaves(**{"position": "none", **choices})
    both = plain.keys() & other.keys()
    gone = {"post": 1, "output": 2, "parallel_shared": 1}  # norms that there are not
    assert len(both) == len(plain) - gone.get(choices.get("norm_place", "pre"), 0)
    for path in both:
        np.testing.assert_array_equal(plain[path], other[path], err_msg=str(path))


# The last but one name of each bias's path.
BIASED_PARTS = {
    "qkv": {"query", "key", "value"},
    "output": {"output"},
    "mlp": {"up", "gate", "down"},
    "norm": {"attention_norm", "attention_output_norm", "mlp_norm", "mlp_output_norm", "norm", "embedding_norm"},
    "head": {"head"},
    "false": set(),
}
BIASED_PARTS["true"] = set().union(*(BIASED_PARTS[name] for name in ("qkv", "output", "mlp", "norm")))


def test_norms_and_biases_are_values_too() -> None:
    """Built from Python values as from their texts, in shapes and in what a norm computes."""
    texts: dict[str, Any] = {"norm": "layer(1e-3)", "use_bias": "norm & head"}
    values = {"norm": NORMS["layer"](1e-3), "use_bias": UseBias(norm=True) & UseBias(head=True)}
    one, two = (GPT(GPTConfig(**SIZES, **kinds), rngs=nnx.Rngs(0)) for kinds in (texts, values))
    assert nnx.to_flat_state(nnx.state(one)).paths == nnx.to_flat_state(nnx.state(two)).paths
    x_BD = np.float32([[0.01, -0.03, *[0.02] * 24]])
    np.testing.assert_array_equal(one.norm(x_BD), two.norm(x_BD))


@pytest.mark.parametrize("tied", [True, False])
def test_biases_are_where_the_key_says(tied: bool) -> None:
    asked = {name: BIASED_PARTS[name] for name in BIASED}
    asked |= {"qkv & head & (mlp & qkv)": asked["qkv"] | asked["head"] | asked["mlp"]}
    for use_bias, expected in (*asked.items(), (True, asked["true"]), (False, set())):
        kinds = {"norm": "layer", "norm_place": "sandwich", "embedding": "normed", "mlp": "reglu", "tied": tied}
        config = GPTConfig(**SIZES, **kinds, use_bias=use_bias)
        state = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda config=config: GPT(config, rngs=nnx.Rngs(0)))))
        assert {path[-2] for path, _ in state if path[-1] == "bias"} == expected, use_bias
        assert all(len(param.axes) == len(param.shape) for _, param in state)
        assert any(path == ("head", "kernel") for path, _ in state) != tied


def test_heads_of_another_width_begin_with_the_spread_of_their_own_sizes() -> None:
    """13 heads of 6 columns on a stream of 26: kernels 1 / sqrt(fan in), the output's of 78 columns and a branch."""
    attention = {path[-2]: leaf for path, leaf in leaves(head_width=6).items() if "attention" in path}
    assert attention["query"].shape == (L, 26, 13, 6)
    assert attention["output"].shape == (L, 13, 6, 26)
    for name, expected in (("query", 26**-0.5), ("value", 26**-0.5), ("output", (2 * L * 13 * 6) ** -0.5)):
        assert abs(np.std(attention[name]) / expected - 1) < 0.05


def test_more_layers_leave_those_before_them() -> None:
    """But for the ends of residual branches, whose spread depends on the depth."""
    few, many = leaves(), leaves(num_layers=L + 2)
    assert few.keys() == many.keys()
    for path, leaf in few.items():
        if not {"output", "down"} & {*path}:
            np.testing.assert_array_equal(leaf, many[path][:L] if "blocks" in path else many[path], err_msg=str(path))


def test_a_value_is_drawn_by_path_and_layer() -> None:
    """Written out: key, one draw of it for the model, the path's hash, the layer's number."""
    key = nnx.Rngs(params=jax.random.key(7)).params()

    def kernel(path: str, shape: tuple[int, ...], layer: int | None = None) -> np.ndarray:
        here = jax.random.fold_in(key, int(hashlib.sha256(path.encode()).hexdigest()[:8], 16))
        here = here if layer is None else jax.random.fold_in(here, layer)
        return np.asarray(jax.random.normal(here, shape) / np.sqrt(26))

    found = nnx.state(GPT(GPTConfig(**SIZES), rngs=nnx.Rngs(params=jax.random.key(7))), nnx.Param)
    np.testing.assert_allclose(found["embed"]["embedding"][...], kernel("embed/embedding", (29, 26)), rtol=1e-5)
    up = np.asarray(found["stack"]["blocks"]["mlp"]["up"]["kernel"][...])
    for layer in range(L):
        np.testing.assert_allclose(up[layer], kernel("stack/blocks/mlp/up/kernel", (26, 17), layer), rtol=1e-5)


def test_every_path_has_a_number_of_its_own() -> None:
    everything = [leaves(**{"position": "none", **choices}) for choices in MORE]
    everything += [leaves(mlp=mlp, norm=norm, use_bias=True) for mlp in ACTIVATIONS for norm in NORMS]
    paths = {path for found in everything for path in found}
    assert len(paths) > 30
    assert len({int(path_number(path)) for path in paths}) == len(paths)


def test_parts_are_drawn_as_wholes_are() -> None:
    """A part that is built alone is keyed by its paths within; a second one of the same keys is another."""
    rngs = nnx.Rngs(3)
    config = AttentionConfig(width=13, num_heads=6, head_width=4)
    first, second = (MultiHeadAttention(config, rngs=rngs) for _ in range(2))
    more = MultiHeadAttention(dataclasses.replace(config, sinks=True, edits="qk_norm", use_bias=True), rngs=nnx.Rngs(3))
    for name in ("query", "key", "value", "output"):
        kernels = [np.asarray(getattr(one, name).kernel[...]) for one in (first, second, more)]
        np.testing.assert_array_equal(kernels[0], kernels[2])
        assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(first.query.kernel[...], first.key.kernel[...])


class Pair(Module):
    """Two maps, made in either order, perhaps with a parameter of its own before them."""

    def __init__(self, names: str, rngs: nnx.Rngs, *, more: bool = False):
        self.own = parameter(rngs, nnx.initializers.normal(1.0), (5,), ("embed",)) if more else None
        for name in names:
            setattr(self, name, Linear({"embed": 5}, {"mlp": 7}, bias=False, dtype="float32", rngs=rngs))


class Heir(Pair):
    """Its parent's constructor runs inside of its own."""

    def __init__(self, rngs: nnx.Rngs):
        super().__init__("a", rngs)
        self.b = Linear({"embed": 5}, {"mlp": 7}, bias=False, dtype="float32", rngs=rngs)


def test_the_order_of_construction_does_not_count() -> None:
    pairs = [Pair("ab", nnx.Rngs(1)), Pair("ba", nnx.Rngs(1), more=True), Heir(nnx.Rngs(1))]
    for name in "ab":
        first, *others = (np.asarray(getattr(pair, name).kernel[...]) for pair in pairs)
        for other in others:
            np.testing.assert_array_equal(first, other)
    assert not np.array_equal(pairs[0].a.kernel[...], pairs[0].b.kernel[...])


def test_a_refused_model_leaves_no_construction_open() -> None:
    with pytest.raises(UserError):
        GPT(GPTConfig(**SIZES, scale=-1.0), rngs=nnx.Rngs(0))
    assert isinstance(
        Linear({"embed": 5}, {"mlp": 7}, bias=False, dtype="float32", rngs=nnx.Rngs(0)).kernel[...], jax.Array
    )


def test_a_parameter_without_a_constructor_is_refused() -> None:
    with pytest.raises(TypeError, match="in the constructor of a model.parameters.Module"):
        parameter(nnx.Rngs(0), nnx.initializers.zeros, (3,), ("embed",))
