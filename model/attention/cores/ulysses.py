"""Context parallelism over heads: a device exchanges its part of the length for all of it, of a part of its heads."""

import jax

from model.attention.contract import Refusals, Request, needs
from model.attention.cores.blockwise import cleaned
from model.attention.cores.sharded import per_device, uneven
from model.attention.scores import Scores
from model.attention.values import specs
from model.axes import mesh_axes


def ulysses(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """`blockwise` over whole sequences, for 1/C of a device's heads (Jacobs et al. 2023, section 3.1); returns o_BTHK.

    Each device sends and receives (C - 1)/C of its queries, keys, values and outputs once, whatever C is.
    """
    length, heads = mesh_axes("length")[0], mesh_axes("heads", "length")[0]

    def on_a_device(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
        q, k, v = (jax.lax.all_to_all(x, length, 2, 1, tiled=True) for x in (q_BTHK, k_BSGK, v_BSGK))
        return jax.lax.all_to_all(cleaned(q, k, v, scores), length, 1, 2, tiled=True)

    # Pinned outside, so that gradients come back to where the rules place the parameters, not spread further.
    k_BSGK, v_BSGK = scores.without_hidden(k_BSGK, v_BSGK, q_BTHK.shape[1])
    scores = jax.lax.with_sharding_constraint(scores, specs(scores))
    return per_device(on_a_device, q_BTHK, k_BSGK, v_BSGK, scores, heads=heads)


def refusals(request: Request) -> Refusals:
    """Queries out of order, a sequence in one piece, and heads that cannot be shared out among its parts."""
    C, tensor = request.ways["length"], request.ways["heads"]
    yield from needs(
        request.scores.query_positions_BT is None, "queries at given positions are computed by dense", "write dense"
    )
    yield from needs(
        C > 1,
        "the mesh does not split the sequence, so there is nothing to exchange",
        "write blockwise, or --config.mesh.context=2",
    )
    yield from needs(
        request.H % (C * tensor) == request.G % (C * tensor) == 0,
        f"with context={C} and tensor={tensor} it shares {request.H} heads and {request.G} key heads out among "
        f"{C * tensor} devices",
        "write ring",
    )
    yield from needs(
        request.T % C == request.S % C == 0,
        f"context={C} does not divide {request.T} queries and {request.S} keys",
        f"change --config.data.length to a multiple of {C}",
    )
    yield from uneven(request)
