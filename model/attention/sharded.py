"""Cores that run per device of a mesh: each gets its rows, heads and, where it is split, its part of the length."""

import jax

from model.attention.contract import Call
from model.attention.scores import Scores
from model.attention.values import specs
from model.axes import partition_spec


def per_device(call: Call, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """`call` on each device's part of the ambient mesh, as the rules split 'batch', 'length', 'heads' and 'kv_heads'.

    A Mosaic kernel cannot be split by the compiler, and a ring has to know its neighbours. The arrays in `scores` are
    split over rows and heads, never over the length. Outside of a mesh, `call` is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return call(q_BTHK, k_BSGK, v_BSGK, scores)
    q_spec, kv_spec = (partition_spec(("batch", "length", heads, None)) for heads in ("heads", "kv_heads"))
    split = jax.shard_map(
        call, mesh=mesh, in_specs=(q_spec, kv_spec, kv_spec, specs(scores)), out_specs=q_spec, check_vma=False
    )
    return split(q_BTHK, k_BSGK, v_BSGK, scores)
