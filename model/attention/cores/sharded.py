"""Cores that run per device of a mesh: each gets its rows, heads and, where it is split, its part of the length."""

from typing import Any

import jax

from model.attention.contract import Call, Refusals, Request, needs
from model.attention.scores import Scores
from model.attention.values import specs
from model.axes import partition_spec


def per_device(
    call: Call, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores, **ways: Any
) -> jax.Array:
    """`call` on each device's part of the ambient mesh, as the rules split 'batch', 'length', 'heads' and 'kv_heads'.

    A Mosaic kernel cannot be split by the compiler, and a ring has to know its neighbours. The arrays in `scores` are
    split over rows and heads (`ways`: over other mesh axes than the rules say), never over the length. Outside of a
    mesh, `call` is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return call(q_BTHK, k_BSGK, v_BSGK, scores)
    q_spec, kv_spec = (partition_spec(("batch", "length", heads, None)) for heads in ("heads", "kv_heads"))
    split = jax.shard_map(
        call, mesh=mesh, in_specs=(q_spec, kv_spec, kv_spec, specs(scores, **ways)), out_specs=q_spec, check_vma=False
    )
    return split(q_BTHK, k_BSGK, v_BSGK, scores)


def uneven(request: Request) -> Refusals:
    """Rows and heads that the mesh does not divide, which `per_device` cannot split."""
    sizes = {"batch": (request.B, "rows"), "heads": (request.H, "heads"), "kv_heads": (request.G, "key heads")}
    for name, (size, what) in sizes.items():
        ways = request.ways[name]
        yield from needs(
            size % ways == 0,
            f"the mesh splits {size} {what} over {ways} devices",
            "write dense, or change --config.mesh.*",
        )
