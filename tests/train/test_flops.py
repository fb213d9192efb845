"""The printed formula against the matrix products of the program that runs, and against masks counted one by one."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPT, GPTConfig
from model.attention import parse_mask
from tests.model import reference
from train.attention import cache_bytes
from train.flops import attention_flops, flops_per_token, visible_pairs
from train.tasks.language_model import language_model

B, T, V = 2, 64, 40
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "max_length": T,
    "width": 24,
    "num_heads": 3,
    "mlp_width": 20,
    "core": "dense",
}
SHAPE = r"tensor<([\dx]+)x\w+>"
DOT = re.compile(rf"dot_general .*contracting_dims = \[([\d, ]*)\] x .*: \({SHAPE}, .*\) -> {SHAPE}")


def products(text: str) -> float:
    """Two operations for each multiplication of a dot_general; a function counts as often as it is called."""
    bodies = {part.split("(")[0]: part for part in re.split(r"func\.func (?:public |private )?@", text)[1:]}

    def count(name: str) -> float:
        total = 0.0
        for line in bodies[name].splitlines():
            if "stablehlo.dot_general" in line:
                contracted, left, result = DOT.search(line).groups()  # type: ignore[union-attr]
                sizes = [int(size) for size in left.split("x")]
                summed = math.prod(sizes[int(axis)] for axis in contracted.split(","))
                total += 2 * summed * math.prod(map(int, result.split("x")))
            called = re.search(r"call @(\w+)", line)
            total += count(called[1]) if called else 0.0
        return total

    return count("main")


def lowered(config: GPTConfig) -> str:
    """Forward and backward of the loss, not yet optimised."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))))
    loss = language_model(graphdef)
    ints = jax.ShapeDtypeStruct((B, T), jnp.int32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), ints)
    batch["weights"] = jax.ShapeDtypeStruct((B, T), jnp.float32)
    step = jax.grad(lambda params, batch: loss(params, batch, None)["loss"][0])
    return jax.jit(step).lower(nnx.to_pure_dict(params), batch).as_text()


OTHER = {"num_kv_heads": 1, "mlp": "swiglu", "tied": False, "use_bias": True, "head_width": 18}
SHARED = {"edits": "(qk_norm & output_gate & give_kv) + (output_gate & take_kv)"}


@pytest.mark.parametrize(("num_layers", "changes"), [(1, {}), (3, {}), (1, OTHER), (3, OTHER), (3, SHARED)], ids=str)
def test_the_formula_is_what_the_program_multiplies(num_layers: int, changes: dict[str, Any]) -> None:
    """`dense` computes all T x T products, whatever the mask: those that `full` shows, and twice those of `causal`."""
    config = GPTConfig(**SIZES | changes, num_layers=num_layers, unroll=num_layers)
    per_token = products(lowered(config)) / (B * T)
    all_seen = GPTConfig(**SIZES | changes, num_layers=num_layers, mask="full")
    assert flops_per_token(all_seen) == pytest.approx(per_token, rel=0.01)
    attention = 12 * num_layers * T * 3 * changes.get("head_width", 8)
    assert flops_per_token(config) == pytest.approx(per_token - attention * (T - 1) / (2 * T), rel=0.01)
    assert attention > 0.1 * per_token  # so that half of it, or twice, is not lost in 1 %


@pytest.mark.parametrize("length", [1, 17, 700])
def test_pairs_are_counted_as_one_by_one(length: int) -> None:
    """Also where blocks are told by their state alone, and where a length does not divide."""
    texts = reference.MASKS if length == 17 else ["causal", "full", "causal & window(4)", "causal | prefix(3)"]
    for text in texts:
        if "random_blocks" not in text:
            expected = reference.mask_matrix(text, length, length).sum()
            assert visible_pairs(parse_mask(text), length) == expected, text


def test_a_narrow_window_costs_what_it_sees() -> None:
    config = GPTConfig(**SIZES, num_layers=2)
    narrow = GPTConfig(**SIZES, num_layers=2, mask="causal & window(1)")
    gone = flops_per_token(config) - flops_per_token(narrow)
    np.testing.assert_allclose(gone, 12 * 2 * 24 * ((T + 1) / 2 - (2 * T - 1) / T))


def test_each_layer_is_told_what_it_keeps_and_computes() -> None:
    """By hand: a window of 4 keeps 5 keys, values and positions; all sums are over the layers of a cycle and a part."""
    sizes: dict[str, Any] = {"num_layers": 5, "num_kv_heads": 1, "dtype": "bfloat16"}
    config = GPTConfig(**SIZES, **sizes, mask="2 * (causal & window(4)) + causal")
    near, far = 5 * (2 * 8 * 2 + 4), T * 2 * 8 * 2  # one key head of width 8, in two bytes
    assert cache_bytes(config)["self"].values == (near, near, far)
    few, all_ = 12 * 24 * (5 * T - 10) / T, 12 * 24 * (T + 1) / 2
    assert attention_flops(config)["self"].values == pytest.approx((few, few, all_))
    shared = GPTConfig(**SIZES, **sizes, mask="causal & window(4)", edits="2 * give_kv + take_kv")
    # The nearest gives, and keeps all positions for whoever takes.
    assert cache_bytes(shared)["self"].values == (near, far, 0)
    uniform = flops_per_token(GPTConfig(**SIZES, **sizes))
    assert uniform - flops_per_token(config) == pytest.approx(4 * (all_ - few))
