"""Every core under every condition of the table, forward and backward, against float64: the cells that say exact."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import CORES, Scores, splash
from model.attention.conditions import B, Example, examples
from tests import oracle
from train.sharding import make_mesh, make_rules, placed


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


EXAMPLES = examples()
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2, "float16": 2e-3}
MESH = {"replica": 1, "fsdp": 2, "tensor": 1, "context": 2}
# Which machine each core is tested on: this one, or four of its devices, of which two share the sequence.
TESTED = [name for name, core in CORES.items() if core.evidence != "untested"]
# A kernel for another machine, run by an interpreter.
CALLS = {"splash": partial(splash.run, sizes=splash.Sizes(128, 128, 128), interpret=True)}


# Beside the table's rows: shapes that are met in use, and tell no core from another.
EXAMPLES |= {
    "short": EXAMPLES["float32"]._replace(T=7, S=7),
    "one query": EXAMPLES["mask: full"]._replace(T=1),
    "all at once": _everything(),
}
CELLS = [
    (core, name)
    for name, example in EXAMPLES.items()
    for core in TESTED
    if not CORES[core].refusal(example.request(CORES[core]))
]


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
            axes = tuple(axis for axis in (0, 1) if bias.shape[axis] == 1)
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
    """The core where it is at home."""
    function = compiled(partial(forward_and_backward, CALLS.get(core, CORES[core].call)))
    if CORES[core].context == 1:
        return flat(function(scores, *arrays))
    mesh = make_mesh(MESH, jax.devices()[:4])
    with placed(mesh, make_rules(1)):
        return flat(function(scores, *arrays))


def assert_close(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray], tolerance: float) -> None:
    """The largest difference of each, as a part of its largest number."""
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        error = np.abs(got[name] - x).max() / max(np.abs(x).max(), 1e-30)
        assert error <= tolerance, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize(("core", "name"), CELLS)
def test_every_exact_cell_is_exact(core: str, name: str) -> None:
    example = EXAMPLES[name].at_home(CORES[core])
    assert_close(run(core, example.scores, *inputs(example)), expected(name), TOLERANCE[example.dtype])
