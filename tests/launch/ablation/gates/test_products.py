"""The products that are counted, by hand, by the formula, and by the text of what XLA compiles."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.ablation.gates.products import products
from model.attention.cores import plan
from model.errors import UserError
from tests.small import compiled_step, random_batch, small_experiment
from tests.tiers import tiered
from train.experiment import Experiment
from train.flops import flops_per_token
from train.sharding import placed

B, T, D, H, K, F, V, L = 24, 16, 48, 8, 6, 40, 56, 5  # tests.small's sizes, and a loop of five layers
KERNELS, HEAD, SQUARE = 4 * D * H * K + 2 * D * F, V * D, T * H * K
ONCE = 2 * (L * (KERNELS + 2 * SQUARE) + HEAD)  # a forward pass of one token, all T keys seen


def counted(experiment: Experiment, batch: dict[str, np.ndarray] | None = None) -> float:
    """Of one token of one seed."""
    N, config = experiment.config.train.seeds, experiment.config
    batch = batch or random_batch(0, config.data.batch_size, config.data.length)
    if len(experiment.shape) > 2:
        batch = {name: np.stack([x] * N) for name, x in batch.items()}
    with placed(experiment.mesh, experiment.rules):
        found = products(experiment.step, experiment.abstract, given=(experiment.place(batch),))
    return found / (N * config.data.batch_size * config.data.length)


def in_hlo(text: str) -> float:
    """The same of a compiled program: each dot as often as the loops around it turn, which XLA has found out."""
    bodies = {}
    for part in re.split(r"\n(?=(?:ENTRY )?%[\w.-]+ \()", text):
        name = re.match(r"(?:ENTRY )?%([\w.-]+) \(", part)
        if name:
            bodies["ENTRY" if part.startswith("ENTRY") else name[1]] = part

    def count(name: str) -> float:
        shapes, total = {}, 0.0
        for line in bodies[name].splitlines():
            if made := re.match(r"\s+(?:ROOT )?%([\w.-]+) = \w+\[([\d,]*)\]", line):
                shapes[made[1]] = [int(size) for size in made[2].split(",") if size]
            if dot := re.search(r" dot\(%([\w.-]+), .*lhs_contracting_dims=\{([\d,]*)\}", line):
                assert made
                summed = math.prod(shapes[dot[1]][int(axis)] for axis in dot[2].split(","))
                total += 2 * summed * math.prod(shapes[made[1]])
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            assert trips or " while(" not in line
            called = re.search(r"(?:calls|to_apply|body)=%([\w.-]+)", line)
            total += (int(trips[1]) if trips else 1) * count(called[1]) if called else 0.0
        return total

    return count("ENTRY")


AGAIN = 2 * L * (KERNELS - F * D + 2 * SQUARE)  # by remat: no gradient needs what the MLP gives
CASES: list[tuple[dict[str, Any], float]] = [
    ({}, 3 * ONCE),
    ({"model.remat": "full", "train.accumulate": 2}, 3 * ONCE + AGAIN),
    ({"train.seeds": 2}, 3 * ONCE),
    ({"model.unroll": L}, 3 * ONCE),
    ({"mesh.fsdp": 2, "mesh.tensor": 2}, 3 * ONCE),
]


@pytest.mark.parametrize(("changes", "by_hand"), tiered(CASES, lambda changes, _: "model.remat" in changes), ids=str)
def test_products_are_counted_as_by_hand(changes: dict[str, Any], by_hand: float) -> None:
    """And as the formula says, whose causal mask shows (T + 1) / 2 keys where `dense` computes T."""
    experiment = small_experiment(**{"model.num_layers": L, "model.core": "dense"} | changes)
    assert counted(experiment) == pytest.approx(by_hand, rel=1e-6)
    formula = flops_per_token(experiment.model_config)
    again = AGAIN if "model.remat" in changes else 0
    assert formula == pytest.approx(by_hand - again - 12 * L * SQUARE * (T - 1) / (2 * T), rel=1e-6)


@pytest.mark.parametrize("changes", tiered([(one,) for one, _ in CASES[:4]], lambda one: False))
def test_they_are_those_of_the_program_that_xla_makes(changes: dict[str, Any]) -> None:
    experiment = small_experiment(**{"model.num_layers": L, "model.core": "dense"} | changes)
    tokens = B * T * experiment.config.train.seeds
    assert in_hlo(compiled_step(experiment).as_text()) / tokens == pytest.approx(counted(experiment), rel=1e-3)


@pytest.mark.rest
def test_only_the_blocks_that_a_batch_needs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`blockwise` leaves out what a packed document cannot see, which is known only when it runs: of 4 x 4 blocks, a
    causal mask needs 10, and four documents need 4. The loops that find this out are not run again by the backward
    pass: 2 + 5 products.
    """
    monkeypatch.setattr(plan, "_SHORT", 0)  # where queries take all keys at once
    length = 512
    changes = {"data.length": length, "data.batch_size": 1}
    dense = counted(small_experiment(**changes, **{"model.core": "dense"}))
    blocks, batch = small_experiment(**changes, **{"model.core": "blockwise"}), random_batch(0, 1, length)
    for parts, number in ((1, 10), (4, 4)):
        ids_BT = (1 + np.arange(length)[None] * parts // length).astype(np.int32)
        once = 2 * 2 * length * H * K  # one of the products of two layers, all pairs seen
        wanted = dense - 6 * once + 7 * once * number / 16
        assert counted(blocks, batch | {"segment_ids": ids_BT}) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.rest
def test_all_devices_count_their_own() -> None:
    """A core that runs per device: each of eight chunks sees those before it and itself, 36 of 64 pairs, by
    2 + 5 products.
    """
    changes = {"data.length": 64, "model.num_layers": L}
    dense = counted(small_experiment(**changes, **{"model.core": "dense"}))
    ring = counted(small_experiment(**changes, **{"model.core": "ring", "mesh.context": 4}))
    once = 2 * L * 64 * H * K
    assert ring == pytest.approx(dense - 6 * once + 7 * once * 36 / 64, rel=1e-6)


def test_a_branch_counts_where_it_is_taken_and_an_opaque_kernel_is_refused() -> None:
    x = jnp.ones((3, 5)), jnp.ones((5, 7))

    def branch(flag: jax.Array) -> jax.Array:
        return jax.lax.cond(flag, lambda: x[0] @ x[1], lambda: jnp.zeros((3, 7)))

    assert [products(branch, given=(jnp.asarray(flag),)) for flag in (True, False)] == [2 * 3 * 5 * 7, 0]

    def loop(count: jax.Array) -> jax.Array:
        start = jnp.zeros((), jnp.int32), x[0] @ x[1]
        return jax.lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, c[1] @ jnp.ones((7, 7))), start)[1]

    assert products(loop, given=(jnp.asarray(4),)) == 2 * 3 * 5 * 7 + 4 * 2 * 3 * 7 * 7
    kernel = jax.ffi.ffi_call("hidden", jax.ShapeDtypeStruct((3, 7), jnp.float32))
    with pytest.raises(UserError, match=r"kernel 'ffi_call' multiplies cannot be seen"):
        products(lambda: kernel(*x))
