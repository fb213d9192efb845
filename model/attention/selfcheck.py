"""A core beside the reference on a small slice, on the device and in the dtype that a run will use."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from model.attention.contract import Call, CoreModule
from model.attention.cores.dense import dense
from model.attention.scores import Scores, wide
from model.axes import pin
from model.errors import UserError

# Of the largest number: ten times what rounding does to random inputs. Wrong attention differs by its own size.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def errors(
    core: Call | CoreModule,
    scores: Scores,
    sizes: tuple[int, int, int, int, int],
    dtype: str,
    key: jax.Array,
    reference: Callable[..., jax.Array] = dense,
) -> dict[str, jax.Array]:
    """How far `core` is from its reference in float32 on random (q, k, v): sizes are (B, T, H, G, K).

    max |x - reference| / max |reference| of the output and of each gradient: {'o': 1e-7, 'dq': ...}. Inputs are rounded
    to the dtype first, and float32 products have the highest precision. Gradients of bias, sinks and the core's own
    parameters are sums over all rows, which nearly cancel: in half precision they would be noise, so they are those of
    float32. Queries are larger where there is a soft cap, or it would not be felt.
    """
    B, T, H, G, K = sizes
    shapes = (B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K)
    drawn = [jax.random.normal(one, shape, dtype) for one, shape in zip(jax.random.split(key, 4), shapes, strict=True)]
    names = ("heads", "kv_heads", "kv_heads", "heads")
    q, k, v, do = (pin(x, "batch", "length", name, None) for x, name in zip(drawn, names, strict=True))
    q = 4 * q if scores.soft_cap else q

    graphdef: Any = None
    own, called = dict[str, Any](), cast(Callable[..., jax.Array], core)
    if isinstance(core, CoreModule):
        graphdef, state = nnx.split(core)
        own, called = nnx.to_pure_dict(state), type(core).__call__

    def run(call: Callable[..., jax.Array], *arrays: jax.Array) -> dict[str, jax.Array]:
        q, k, v, do = arrays

        def output(inputs: dict[str, Any]) -> jax.Array:
            learned = scores.replace(bias=inputs["dbias"], sinks_H=inputs["dsinks"])
            front = [] if graphdef is None else [nnx.merge(graphdef, inputs["dcore"])]
            return call(*front, inputs["dq"], inputs["dk"], inputs["dv"], learned)

        bias, sinks_H = scores.learned()
        o, pull = jax.vjp(output, {"dq": q, "dk": k, "dv": v, "dbias": bias, "dsinks": sinks_H, "dcore": own})
        paths = jax.tree_util.tree_leaves_with_path({"o": o, **pull(do.astype(o.dtype))[0]})
        return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths}

    with jax.default_matmul_precision("highest"):
        full = [wide(x) for x in (q, k, v, do)]
        got, expected = run(called, q, k, v, do), run(reference, *full)
        if q.dtype != full[0].dtype and jax.tree.leaves((scores.learned(), own)):
            in_full = run(called, *full)
            got |= {name: in_full[name] for name in got if name.startswith(("dbias", "dsinks", "dcore"))}
    return {name: jnp.max(jnp.abs(wide(got[name]) - x)) / (jnp.max(jnp.abs(x)) + 1e-30) for name, x in expected.items()}


def judge(name: str, found: dict[str, float], dtype: str, reference: str = "dense") -> None:
    """Lets a core pass whose errors are within TOLERANCE; `reference` is what the sentence calls it.

    Raises:
        UserError: one is beyond, or is no number.
    """
    wrong = {part: error for part, error in found.items() if not error <= TOLERANCE[dtype]}
    if wrong:
        parts = ", ".join(f"{part} by {error:.1e}" for part, error in wrong.items())
        fix = "write --config.model.core=dense" if reference == "dense" else "mend the one that is wrong"
        raise UserError(
            f"--config.model.core={name!r} is not exact on this device: it differs from {reference} in {parts} of "
            f"the largest number, and {dtype} allows {TOLERANCE[dtype]:.0e}; {fix}."
        )
