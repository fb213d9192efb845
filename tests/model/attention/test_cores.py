"""Every core under every condition of the table, forward and backward, against float64: the cells that say exact."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import CORES, ExplicitBias, Scores, causal, causal_at_end, explicit, padding, segments, window
from model.attention.cores import blockwise, fused, plan, splash
from model.attention.cores.conditions import HEADS, LENGTH, WIDTH, B, Example, examples
from tests.model.attention import oracle
from tests.tiers import tiered
from train.devices.mesh import make_mesh, make_rules
from train.sharding import placed


def _everything() -> Example:
    """What could get into one another's way: grouped heads, packing, a bias, a cap, sinks and dropout."""
    parts = {name: EXAMPLES[name].scores for name in ("bias: t5", "sinks", "dropout", "packing")}
    scores = parts["packing"].replace(
        bias=parts["bias: t5"].bias,
        sinks_H=parts["sinks"].sinks_H,
        dropout=parts["dropout"].dropout,
        soft_cap=0.7,
    )
    return EXAMPLES["grouped heads (H=8, G=4)"]._replace(scores=scores, H=4, G=2)


def _axes_of_1() -> Example:
    """Each array with other axes of 1 than in the table, in the order of jax.nn."""
    rng = np.random.default_rng(7)
    ids_1T = np.sort(rng.integers(0, 3, (1, LENGTH)))
    mask = explicit(rng.random((1, HEADS, LENGTH, 1)) < 0.9) & segments(ids_1T) & padding(rng.random((1, LENGTH)) < 0.9)
    bias = ExplicitBias(jnp.asarray(rng.standard_normal((B, 1, LENGTH, 1)), jnp.float32))
    return EXAMPLES["float32"]._replace(scores=Scores(mask & causal(), 0.3, bias, sinks_H=jnp.ones(HEADS)))


EXAMPLES = examples()
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2, "float16": 2e-3}
MESH = {"replica": 1, "fsdp": 2, "tensor": 1, "context": 2}
# Which machine each core is tested on: this one, or four of its devices, of which two share the sequence.
TESTED = [name for name, core in CORES.items() if core.evidence != "untested" and core.is_softmax]
# A kernel for another machine, run by an interpreter.
CALLS = {"splash": partial(splash.run, sizes=splash.Sizes(128, 128, 128), interpret=True)}


# Beside the table's rows: shapes that are met in use, and tell no core from another.
EXAMPLES |= {
    "short": EXAMPLES["float32"]._replace(T=7, S=7),
    "one query": EXAMPLES["mask: full"]._replace(T=1),
    "all at once": _everything(),
    "queries at the end (T=80, S=144)": EXAMPLES["float32"]._replace(
        T=80, scores=Scores(causal_at_end(80, LENGTH), 0.3)
    ),
    "axes of 1": _axes_of_1(),
}
near = EXAMPLES["all at once"]
EXAMPLES["all at once, near"] = near._replace(scores=near.scores.replace(mask=near.scores.mask & window(9)))
CELLS = [
    (core, name)
    for name, example in EXAMPLES.items()
    for core in TESTED
    if not CORES[core].refusal(example.request(CORES[core]))
]

# Every day: all cells of the reference and of what runs on a CPU, and of the others what no two of them share.
SEVERAL = (
    "packing and padding",
    "bias: t5",
    "bias: array",
    "dropout",
    "grouped heads (H=8, G=4)",
    "all at once",
    "bfloat16",
)


def every_day(core: str, name: str) -> bool:
    """Each example by one of two cores, and some by all."""
    return core == ("dense", "blockwise")[[*EXAMPLES].index(name) % 2] or name in SEVERAL


def inputs(example: Example) -> tuple[np.ndarray, ...]:
    """q, k, v and a cotangent, rounded to the example's dtype."""
    rng, (T, S, H, G, K) = np.random.default_rng(5), example[1:6]
    shapes = (B, T, H, K), (B, S, G, K), (B, S, G, K), (B, T, H, K)
    return tuple(np.asarray(jnp.asarray(rng.standard_normal(shape), example.dtype)) for shape in shapes)


@cache
def expected(name: str) -> dict[str, np.ndarray]:
    """What float64 says, with the gradients of a bias's parameters."""
    example = EXAMPLES[name].at_home(CORES["dense"])
    scores, (T, S) = example.scores, example[1:3]
    with jax.enable_x64(True):
        i, j = scores.indices(0, 0, T, S)
        bias64 = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), scores.bias)
        bias, pull = jax.vjp(lambda bias: 0.0 if bias is None else bias.at(i, j), bias64)
        found = oracle.attention(
            *inputs(example),
            scale=scores.scale,
            allowed=np.asarray(scores.mask.at(i, j)),
            bias=np.asarray(bias),
            soft_cap=scores.soft_cap,
            sinks_H=scores.sinks_H,
            keep=None if scores.dropout is None else np.asarray(scores.dropout.keep(i, j)),
            rate=0.0 if scores.dropout is None else scores.dropout.rate,
        )
        dbias = found.pop("dbias")
        if scores.bias is not None:
            axes = tuple(axis for axis in range(4) if bias.shape[axis] == 1)
            found["dbias"] = pull(jnp.asarray(dbias.sum(axes, keepdims=True)))[0]
    if found["dsinks"] is None:
        del found["dsinks"]
    return flat(found)


def flat(tree: Any) -> dict[str, np.ndarray]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True): np.asarray(x, np.float64) for path, x in paths}


def forward_and_backward(call: Any, scores: Scores, q: Any, k: Any, v: Any, do: Any) -> dict[str, Any]:
    def output(q: Any, k: Any, v: Any, learned: Any) -> Any:
        return call(q, k, v, scores.replace(bias=learned[0], sinks_H=learned[1]))

    o, pull = jax.vjp(output, q, k, v, scores.learned())
    dq, dk, dv, (dbias, dsinks) = pull(do)
    return {"o": o, "dq": dq, "dk": dk, "dv": dv, "dbias": dbias, "dsinks": dsinks}


# Most of a test is compiling: code that is not optimised is there sooner.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run(core: str, scores: Scores, *arrays: Any) -> dict[str, np.ndarray]:
    """The core's output and gradients."""
    function = compiled(partial(forward_and_backward, CALLS.get(core, CORES[core].call)))
    return flat(placed_call(core, function, scores, *arrays))


def placed_call(core: str, function: Any, *arguments: Any) -> Any:
    """The function where the core is at home: on one device, or on four of which two share the sequence."""
    if CORES[core].context == 1:
        return function(*arguments)
    with placed(make_mesh(MESH, jax.devices()[:4]), make_rules(1)):
        return function(*arguments)


def assert_close(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    """The largest difference of each, as a part of its largest number."""
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        error = np.abs(got[name] - x).max() / max(np.abs(x).max(), 1e-30)
        assert error <= tolerance, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize(("core", "name"), tiered(CELLS, every_day))
def test_every_exact_cell_is_exact(core: str, name: str) -> None:
    example = EXAMPLES[name].at_home(CORES[core])
    assert_close(run(core, example.scores, *inputs(example)), expected(name), TOLERANCE[example.dtype])


LONG = [
    "packing",
    "packing, mask by place",
    "rows without a key",
    "mask: array, one for each head",
    "mask: strided(17)",
    "bias: t5",
    "bias: array",
]
LONG += ["axes of 1", "bias: array with axes of 1", "dropout", "sinks", "all at once", "odd lengths (T=131, S=157)"]


@pytest.mark.parametrize("name", LONG)
def test_blockwise_is_exact_where_blocks_are_a_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What long sequences run, which those of the table are too short for."""
    monkeypatch.setattr(plan, "_SHORT", 0)
    monkeypatch.setattr(blockwise, "_UNROLLED", 0)
    monkeypatch.setattr(blockwise, "_SMALL", 0)
    example = EXAMPLES[name].at_home(CORES["blockwise"])
    assert_close(run("blockwise", example.scores, *inputs(example)), expected(name), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["mask: window(17)", "mask: chunked(17)", "all at once, near"])
def test_narrow_strips_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What queries of a long sequence run that see few keys."""
    monkeypatch.setattr(plan, "_SHORT", 0)
    monkeypatch.setattr(plan, "_PIECE", 16)
    example = EXAMPLES[name].at_home(CORES["blockwise"])
    [narrow] = plan.make_plans(example.scores.mask, example.T, example.S)
    assert narrow.whole
    assert len(narrow.mixed) == LENGTH // 16
    assert_close(run("blockwise", example.scores, *inputs(example)), expected(name), TOLERANCE["float32"])


@pytest.mark.parametrize("core", tiered([(one,) for one in TESTED], lambda core: core in ("dense", "ring")))
def test_seeds_by_vmap_layers_by_scan_and_remat_change_nothing(core: str) -> None:
    """Two seeds, two layers, computed again in the backward pass: as dense one by one, all written out."""
    scores = EXAMPLES["packing"].scores
    rich = scores.replace(dropout=EXAMPLES["dropout"].scores.dropout)
    request = EXAMPLES["packing"]._replace(scores=rich).request(CORES[core])
    scores = scores if CORES[core].refusal(request) else rich
    rng = np.random.default_rng(6)
    x_NBTHK = rng.standard_normal((2, B, LENGTH, HEADS, WIDTH)).astype(np.float32)
    gains_NL = rng.standard_normal((2, 2)).astype(np.float32)

    def layer(call: Any, x: Any, gain: Any) -> Any:
        return x + call(x, jnp.sin(gain * x), gain * x, scores)

    def scanned(x: Any, gains_L: Any) -> Any:
        step = jax.checkpoint(lambda x, gain: (layer(CALLS.get(core, CORES[core].call), x, gain), None))
        return jnp.sum(jnp.sin(jax.lax.scan(step, x, gains_L)[0]))

    def written(x: Any, gains_L: Any) -> Any:
        for number in range(2):
            x = layer(CORES["dense"].call, x, gains_L[number])
        return jnp.sum(jnp.sin(x))

    got = placed_call(core, compiled(jax.vmap(jax.value_and_grad(scanned, (0, 1)))), x_NBTHK, gains_NL)
    one = compiled(jax.value_and_grad(written, (0, 1)))
    wanted = [one(x, gains) for x, gains in zip(x_NBTHK, gains_NL, strict=True)]
    assert_close(flat(got), flat(jax.tree.map(lambda *seeds: np.stack(seeds), *wanted)), 1e-5)


@pytest.mark.parametrize("core", TESTED)
def test_what_is_hidden_gets_exact_zeros(core: str) -> None:
    """Rows without a key, and keys that nobody sees: not small numbers, zeros, forward and backward."""
    example = EXAMPLES["rows without a key"]
    got = run(core, example.scores, *inputs(example.at_home(CORES[core])))
    allowed_BTS = np.asarray(example.scores.mask.block(0, 0, LENGTH, LENGTH))[:, 0]
    for name, axis in (("o", 2), ("dq", 2), ("dk", 1), ("dv", 1)):
        hidden = ~allowed_BTS.any(axis)
        assert 0 < hidden.sum() < hidden.size
        assert not np.any(got[name][hidden])
        assert np.any(got[name][~hidden], axis=(1, 2)).mean() > 0.9


@pytest.mark.parametrize("core", [core for core in TESTED if core != "dense"])
def test_logits_that_overflow_an_exponential_stay_exact(core: str) -> None:
    """exp(2000) is infinite in float32, and so is a sum of such that is not held against its largest."""
    example = EXAMPLES["mask: causal"]
    q, k, v, do = inputs(example.at_home(CORES[core]))
    q = q * 300
    got = run(core, example.scores, q, k, v, do)
    wanted = oracle.attention(q, k, v, do, scale=0.3, allowed=np.tri(LENGTH, dtype=bool))
    assert np.abs(0.3 * np.einsum("bthk,bshk->bhts", q, k)).max() > 2000
    assert all(np.isfinite(x).all() for x in got.values())
    assert np.abs(got["o"] - wanted["o"]).max() < 1e-3 * np.abs(wanted["o"]).max()


@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if name.startswith(("mask", "pack", "padd", "rows", "group", "one"))]
)
def test_fused_asks_jax_for_the_right_thing(name: str) -> None:
    """Not cuDNN, which needs a GPU: what our wrapper makes of mask, scale and rows without a key, by jax's XLA path."""
    example = EXAMPLES[name]._replace(dtype="float32")
    call = compiled(partial(forward_and_backward, partial(fused.by_jax, "xla")))
    assert_close(flat(call(example.scores, *inputs(example))), expected(name), TOLERANCE["float32"])
