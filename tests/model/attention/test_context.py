"""Attention over a sequence that is split over devices, against `dense` on one device."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import (
    CORES,
    ExplicitBias,
    Mask,
    Request,
    Scores,
    attend,
    causal,
    dropout,
    explicit,
    full,
    padding,
    segments,
    select_core,
    window,
)
from model.attention.biases.distance import Alibi
from model.attention.cores.ring import Trip, make_blocks
from model.attention.masks.patterns import fixed, random_blocks, sink_columns
from model.errors import UserError
from tests.conftest import ROOT
from tests.small import QUICK, compiled_step, losses, random_batches, small_experiment
from tests.tiers import tiered
from train.devices.mesh import make_mesh, make_rules
from train.sharding import placed

B, T, H, G, K = 4, 48, 8, 4, 5
STEPS = 10
TOLERANCE = 5e-6  # of the largest number
SPLIT = ["ring", "ulysses"]
MIXED = (1, 2, 2, 2)
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Example(NamedTuple):
    """What is asked of a core, beside q (B, T, H, K), k and v (B, S, G, K)."""

    scores: Scores
    T: int = T
    S: int = T
    H: int = H
    G: int = G


def examples() -> dict[str, Example]:
    ids_BT = np.sort(RNG.integers(0, 4, (B, T)))
    # Hides everything from the first 7 queries of row 0, and from all queries of row 1.
    valid_BS = np.arange(T)[None] >= np.array([7, T, 0, 3])[:, None]
    packed = causal() & segments(jnp.array(ids_BT))
    keys_B = jax.random.split(jax.random.key(3), B)
    bias = ExplicitBias(normal(1, H, T, T))
    return {
        "causal": Example(Scores(causal(), 0.4)),
        "full, other keys": Example(Scores(full(), 0.4), S=80, G=H),
        "window and sinks": Example(Scores(window(5, 2), 0.4, sinks_H=normal(H))),
        "packing and soft cap": Example(Scores(packed, 0.4, soft_cap=0.8)),
        "dead rows and sinks": Example(Scores(causal() & padding(jnp.array(valid_BS)), 0.4, sinks_H=normal(H))),
        "sparse": Example(Scores(fixed(8, 2), 0.4)),
        "random blocks": Example(Scores(causal() & (random_blocks(4, 3, T) | sink_columns(2)), 0.4)),
        "a mask for each head": Example(Scores(explicit(RNG.random((B, H, T, T)) < 0.3), 0.4, bias)),
        "dropout": Example(Scores(causal(), 0.4, dropout=dropout(0.3, keys_B, H))),
        "all": Example(
            Scores(packed, 0.4, Alibi(2.0 ** -np.arange(H, dtype=np.float32)), 0.8, normal(H), dropout(0.3, keys_B, H)),
        ),
    }


EXAMPLES = examples()


def arrays(example: Example, scale: float = 1.0) -> tuple[np.ndarray, ...]:
    rng, (_, T, S, H, G) = np.random.default_rng(1), example
    shapes = (B, T, H, K), (B, S, G, K), (B, S, G, K), (B, T, H, K)
    return tuple((scale * rng.standard_normal(shape)).astype(np.float32) for shape in shapes)


def gradients(core: str, q: Any, k: Any, v: Any, do: Any, scores: Scores) -> dict[str, Any]:
    """The output, and the gradients of all that has one."""

    def output(q: Any, k: Any, v: Any, learned: Any) -> jax.Array:
        return CORES[core].call(q, k, v, scores.replace(bias=learned[0], sinks_H=learned[1]))

    o, pull = jax.vjp(output, q, k, v, scores.learned())
    return dict(zip(("o", "dq", "dk", "dv", "dlearned"), (o, *pull(do)), strict=True))


def run(function: Callable[..., Any], *args: Any) -> Any:
    return jax.device_get(jax.jit(function).lower(*args).compile(QUICK)(*args))


@cache
def on_one_device(name: str) -> Any:
    return run(lambda *args: gradients("dense", *args), *arrays(EXAMPLES[name]), EXAMPLES[name].scores)


def on_mesh(shape: tuple[int, ...], seeds: int = 1) -> Any:
    sizes = dict(zip(("replica", "fsdp", "tensor", "context"), shape, strict=True))
    return placed(make_mesh(sizes, jax.devices()[: np.prod(shape)]), make_rules(seeds))


def assert_same(got: Any, expected: Any) -> None:
    paths = jax.tree_util.tree_leaves_with_path(expected)
    errors = {
        jax.tree_util.keystr(path): float(np.abs(x - y).max() / (np.abs(y).max() + 1e-30))
        for (path, y), x in zip(paths, jax.tree.leaves(got), strict=True)
    }
    print(errors)
    assert all(error <= TOLERANCE for error in errors.values()), errors


@pytest.mark.parametrize(
    ("core", "name"),
    tiered(
        [(core, name) for core in SPLIT for name in EXAMPLES],
        lambda core, name: core == SPLIT[[*EXAMPLES].index(name) % 2],
    ),
)
def test_on_a_mixed_mesh_all_is_as_on_one_device(core: str, name: str) -> None:
    """fsdp=2 x tensor=2 x context=2: o, dq, dk, dv and the gradients of biases and sinks, with the same dropout."""
    with on_mesh(MIXED):
        got = run(lambda *args: gradients(core, *args), *arrays(EXAMPLES[name]), EXAMPLES[name].scores)
    assert_same(got, on_one_device(name))


@pytest.mark.parametrize(
    ("core", "C", "name"),
    [
        ("ring", 2, "causal"),
        ("ring", 4, "all"),
        ("ring", 4, "window and sinks"),  # keys set out from the device before
        ("ring", 8, "all"),
        ("ring", 8, "full, other keys"),
        ("ulysses", 4, "all"),
        ("ulysses", 8, "full, other keys"),
    ],
)
def test_any_number_of_devices_share_a_sequence(core: str, C: int, name: str) -> None:
    with on_mesh((1, 1, 1, C)):
        got = run(lambda *args: gradients(core, *args), *arrays(EXAMPLES[name]), EXAMPLES[name].scores)
    assert_same(got, on_one_device(name))


@pytest.mark.rest
def test_chunks_that_blocks_do_not_fill_are_computed_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 272 / 4 queries and 340 / 4 keys in blocks of 64."""
    monkeypatch.setattr(sys.modules["model.attention.cores.ring"], "block_sizes", lambda mask, T, S: (64, 64))
    example = Example(Scores(window(90, 30), 0.4), T=272, S=340, H=2, G=1)
    sizes = {(one.rows, one.columns) for one in make_blocks(example.scores.mask, 2, example.T, example.S)}
    assert sizes == {(64, 64), (4, 64), (64, 21), (4, 21)}
    with on_mesh((1, 1, 1, 2)):
        got = run(lambda *args: gradients("ring", *args), *arrays(example), example.scores)
    assert_same(got, run(lambda *args: gradients("dense", *args), *arrays(example), example.scores))


@pytest.mark.rest
@pytest.mark.parametrize("core", SPLIT)
def test_seeds_layers_and_recomputation_go_around_it(core: str) -> None:
    """vmap over seeds on replica=2, a scan over layers with a learned bias and sinks, jax.checkpoint inside."""
    N, L = 2, 2
    x_NBTHK, bias_NLHTT, sinks_NLH = normal(N, 2, 16, 4, K), normal(N, L, 1, 4, 16, 16), normal(N, L, 4)

    def loss(core: str, x: Any, layers: Any) -> Any:
        @jax.checkpoint
        def layer(x: Any, learned: Any) -> Any:
            scores = Scores(causal(), 0.1, ExplicitBias(learned[0]), sinks_H=learned[1])
            return x + CORES[core].call(x, x, 2 * x, scores), None

        return jnp.sum(jax.lax.scan(layer, x, layers)[0] ** 2)

    def all_seeds(core: str, axis: str | None) -> Any:
        return jax.vmap(jax.value_and_grad(lambda *args: loss(core, *args), (0, 1)), spmd_axis_name=axis)

    args = x_NBTHK, (bias_NLHTT, sinks_NLH)
    with on_mesh((2, 1, 2, 2), seeds=N):
        got = run(all_seeds(core, "replica"), *args)
    assert_same(got, run(all_seeds("dense", None), *args))


@pytest.mark.parametrize("core", SPLIT)
def test_half_precision_stays_close(core: str) -> None:
    example = EXAMPLES["causal"]
    inputs = [jnp.asarray(x, "bfloat16") for x in arrays(example)]
    with on_mesh((1, 1, 1, 2)):
        got = run(lambda *args: gradients(core, *args), *inputs, example.scores)
    for name in ("o", "dq", "dk", "dv"):
        expected = on_one_device("causal")[name]
        assert got[name].dtype == "bfloat16"
        assert np.abs(got[name].astype(np.float32) - expected).max() < 2e-2 * np.abs(expected).max()


def stops(mask: Mask, C: int, T: int) -> np.ndarray:
    """How many blocks each device computes at each stop of keys and values, (C, stops)."""
    trip = Trip(("context",), C, mask, T, T)
    counts_CC = sum((one.counts_CC for one in trip.blocks), np.zeros((2 * C, 2 * C), int))
    counted = np.zeros((C, trip.stops), int)
    for c, stop in np.ndindex(counted.shape):
        owner = (c - trip.first - stop) % C
        counted[c, stop] = counts_CC[np.ix_([c, 2 * C - 1 - c], [owner, 2 * C - 1 - owner])].sum()
    assert counted.sum() == counts_CC.sum(), "a block that no device meets"
    return counted


@pytest.mark.parametrize("C", [2, 4, 8, 16])
def test_causal_work_is_balanced_at_every_stop(C: int) -> None:
    counted = stops(causal(), C, 2048 * C)
    print(f"\nblocks at each stop of a ring of {C}: {counted[0].tolist()} on every device")
    assert np.ptp(counted, axis=0).max() == 0
    assert counted.shape == (C, C)
    # Little more than the half that is below the diagonal.
    assert counted.sum() < 0.6 * stops(full(), C, 2048 * C).sum()


def test_keys_travel_no_further_than_the_mask_sees() -> None:
    """The chunk before mine is on the device before or after me; what is cut off is never met."""
    assert [stops(mask, 8, 2048).shape[1] for mask in (full(), causal(), window(100), window(5, 0))] == [8, 8, 3, 3]
    assert stops(causal() & ~causal(), 8, 2048).tolist() == [[0]] * 8
    assert stops(window(100), 8, 2048).sum() < 0.2 * stops(full(), 8, 2048).sum()


def test_what_the_mask_empties_is_not_computed() -> None:
    """Values that are no numbers would be seen through weights of zero."""
    q, k, v, _ = arrays(EXAMPLES["causal"])
    expected = on_one_device("causal")["o"]
    v[:, -T // 8 :] = np.nan
    with on_mesh((1, 1, 1, 4)):
        got = run(lambda *args: attend("ring", *args), q, k, v, EXAMPLES["causal"].scores)
    np.testing.assert_allclose(got[:, : -T // 8], expected[:, : -T // 8], rtol=1e-4, atol=1e-5)
    assert np.isnan(got[:, -T // 8 :]).any()


def request(example: Example, mesh: tuple[int, ...], rows: int = B) -> Request:
    shapes = (rows, example.T, example.H, K), (rows, example.S, example.G, K)
    q, k = (jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)
    with on_mesh(mesh):
        return Request.of(q, k, k, example.scores)


@pytest.mark.parametrize(
    ("core", "changes", "mesh", "rows", "sentence"),
    [
        ("ring", {}, (1, 1, 1, 1), B, "the mesh does not split the sequence, so nothing travels; write blockwise, or "),
        ("ulysses", {}, (1, 1, 1, 1), B, "the mesh does not split the sequence, so there is nothing to exchange; "),
        (
            "ring",
            {"T": 20},
            (1, 1, 1, 4),
            B,
            "with context=4 it cuts 20 queries and 48 keys into 8 chunks, which must be equal; change "
            "--config.data.length to a multiple of 8, or write ulysses.",
        ),
        ("ring", {"S": 20}, (1, 1, 1, 4), B, "with context=4 it cuts 48 queries and 20 keys into 8 chunks, "),
        (
            "ulysses",
            {"G": 2},
            (1, 1, 2, 2),
            B,
            "with context=2 and tensor=2 it shares 8 heads and 2 key heads out among 4 devices; write ring.",
        ),
        ("ulysses", {"T": 21}, (1, 1, 1, 2), B, "context=2 does not divide 21 queries and 48 keys; change "),
        ("ring", {}, (1, 2, 1, 2), 3, "the mesh splits 3 rows over 2 devices; write dense, or change --config.mesh.*."),
        ("ring", {"G": 1}, (1, 1, 2, 2), B, "the mesh splits 1 key heads over 2 devices; write dense, or change "),
        ("blockwise", {}, (1, 1, 1, 2), B, "blocks are cut from whole sequences, "),
    ],
)
def test_what_is_not_computed_is_refused(
    core: str, changes: dict[str, int], mesh: tuple[int, ...], rows: int, sentence: str
) -> None:
    sentence = f"--config.model.core={core!r}: {sentence}"
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        select_core(core, request(Example(Scores(full(), 1.0))._replace(**changes), mesh, rows))


@pytest.mark.parametrize(
    ("changes", "mesh", "expected"),
    [
        ({}, (1, 2, 2, 1), "blockwise"),
        ({}, (1, 1, 2, 2), "ulysses"),
        ({}, (1, 1, 1, 8), "ring"),
        ({"T": 24, "S": 24}, (1, 1, 1, 8), "dense"),
    ],
)
def test_auto_takes_a_core_that_knows_of_the_split(changes: Any, mesh: tuple[int, ...], expected: str) -> None:
    assert select_core("auto", request(Example(Scores(causal(), 1.0))._replace(**changes), mesh)).name == expected


@pytest.mark.rest
@pytest.mark.parametrize("core", SPLIT)
def test_a_model_learns_as_on_one_device(core: str) -> None:
    """Two seeds on replica=2 x tensor=2 x context=2, with dropout and a learned bias, over several steps."""
    changes = {"model.dropout": 0.1, "model.bias": "t5", "train.seeds": 2}
    mesh = {"mesh.replica": 2, "mesh.tensor": 2, "mesh.context": 2}
    experiment = small_experiment(**changes, **mesh, **{"model.core": core})
    np.testing.assert_allclose(
        losses(experiment, compiled_step(experiment), random_batches(experiment, STEPS)), losses_alone(), rtol=1e-5
    )


@cache
def losses_alone() -> np.ndarray:
    experiment = small_experiment(**{"model.dropout": 0.1, "model.bias": "t5", "train.seeds": 2, "model.core": "dense"})
    return losses(experiment, compiled_step(experiment), random_batches(experiment, STEPS))


@cache
def on_tpu() -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.attention.tpu_context"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed here")
@pytest.mark.rest
@pytest.mark.parametrize(("core", "C"), [("ring", 16), ("ring", 8), ("ulysses", 8)])
def test_no_chip_holds_the_keys_of_all_heads_and_places(core: str, C: int) -> None:
    """Forward and backward on v5e:4x4, compiled by the real compiler; `pytest -s` shows the numbers."""
    found = {int(T): one for T, one in on_tpu()[f"{core} {C}"].items()}
    peaks = {T: round(one["peak"] / 1e6, 1) for T, one in found.items()}
    print(f"\n{core} on {C} chips, peaks in MB: {peaks}; {found[max(found)]}")
    for T, one in found.items():
        # Of all arrays that occur in the program, of any type and shape, the largest has as many elements as one
        # chip's part of the keys: all heads of 1/C of the length, or 1/C of the heads of the whole length.
        assert one["largest"] == T * 8 * 128 / C
    only = {"ring": "collective-permute", "ulysses": "all-to-all"}[core]
    assert all(set(one["collectives"]) == {only} for one in found.values())


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu, the TPU compiler, is not installed here")
@pytest.mark.rest
@pytest.mark.parametrize(("core", "C"), [("ring", 16), ("ulysses", 8)])
def test_memory_grows_with_the_length_and_not_with_its_square(core: str, C: int) -> None:
    peaks = [on_tpu()[f"{core} {C}"][str(T)]["peak"] for T in (8192, 16384, 32768)]
    growth = (peaks[2] - peaks[1]) / 16384 / ((peaks[1] - peaks[0]) / 8192)
    print(f"\n{core} on {C} chips: a token more at 32k costs {growth:.3f} of what it costs at 16k")
    assert growth <= 1.1
