"""A core beside the reference on a small slice, on the device and in the dtype that a run will use."""

from typing import Any

import jax
import jax.numpy as jnp

from model.attention.contract import Call
from model.attention.cores.dense import dense
from model.attention.scores import Scores, wide
from model.axes import pin
from model.errors import UserError

# Of the largest number: ten times what rounding does to random inputs. Wrong attention differs by its own size.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def errors(
    core: Call, scores: Scores, sizes: tuple[int, int, int, int, int], dtype: str, key: jax.Array
) -> dict[str, jax.Array]:
    """How far `core` is from `dense` in float32 on random (q, k, v): sizes are (B, T, H, G, K).

    max |x - reference| / max |reference| of the output and of each gradient: {'o': 1e-7, 'dq': ...}. Inputs are rounded
    to the dtype first, and float32 products have the highest precision. Gradients of bias and sinks are sums over all
    rows, which nearly cancel: in half precision they would be noise, so they are those of float32. Queries are larger
    where there is a soft cap, or it would not be felt.
    """
    B, T, H, G, K = sizes
    shapes = (B, T, H, K), (B, T, G, K), (B, T, G, K), (B, T, H, K)
    drawn = [jax.random.normal(one, shape, dtype) for one, shape in zip(jax.random.split(key, 4), shapes, strict=True)]
    names = ("heads", "kv_heads", "kv_heads", "heads")
    q, k, v, do = (pin(x, "batch", "length", name, None) for x, name in zip(drawn, names, strict=True))
    q = 4 * q if scores.soft_cap else q

    def run(call: Call, q: jax.Array, k: jax.Array, v: jax.Array, do: jax.Array) -> dict[str, jax.Array]:
        def output(inputs: dict[str, Any]) -> jax.Array:
            learned = scores.replace(bias=inputs["dbias"], sinks_H=inputs["dsinks"])
            return call(inputs["dq"], inputs["dk"], inputs["dv"], learned)

        bias, sinks_H = scores.learned()
        o, pull = jax.vjp(output, {"dq": q, "dk": k, "dv": v, "dbias": bias, "dsinks": sinks_H})
        paths = jax.tree_util.tree_leaves_with_path({"o": o, **pull(do.astype(o.dtype))[0]})
        return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in paths}

    with jax.default_matmul_precision("highest"):
        full = [wide(x) for x in (q, k, v, do)]
        got, expected = run(core, q, k, v, do), run(dense, *full)
        if q.dtype != full[0].dtype and jax.tree.leaves(scores.learned()):
            in_full = run(core, *full)
            got |= {name: in_full[name] for name in got if name.startswith(("dbias", "dsinks"))}
    return {name: jnp.max(jnp.abs(wide(got[name]) - x)) / (jnp.max(jnp.abs(x)) + 1e-30) for name, x in expected.items()}


def judge(name: str, found: dict[str, float], dtype: str) -> None:
    """Lets a core pass whose errors are within TOLERANCE.

    Raises:
        UserError: one is beyond, or is no number.
    """
    wrong = {part: error for part, error in found.items() if not error <= TOLERANCE[dtype]}
    if wrong:
        parts = ", ".join(f"{part} by {error:.1e}" for part, error in wrong.items())
        raise UserError(
            f"--config.model.core={name!r} is not exact on this device: it differs from dense in {parts} of the "
            f"largest number, and {dtype} allows {TOLERANCE[dtype]:.0e}; write --config.model.core=dense."
        )
