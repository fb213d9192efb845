"""Attention block by block with an online softmax, in plain XLA: memory linear in the length, empty blocks left out."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from model.attention.contract import Refusals, Request, needs
from model.attention.cores.plan import Plan, make_plans
from model.attention.cores.seen import over_first, over_seen
from model.attention.masks.base import Mask, Start
from model.attention.masks.patterns import FirstKeys
from model.attention.scores import Scores, bounded, largest, wide
from model.axes import mesh_axes

_UNROLLED = 16  # so many blocks are written out, with their places known to the compiler; more run as a loop
_SMALL = 2**12  # places of a block that is computed in the time that it takes to ask whether anybody sees it


class Softmax(NamedTuple):
    """An online softmax in progress (Milakov and Gimelshein 2018): the largest logit of each row so far, the sum of
    exponentials beside it, and the values they weigh."""

    most_BHT: jax.Array
    total_BHT: jax.Array
    o_BHTK: jax.Array


class Rows(NamedTuple):
    """What the backward pass knows of each row: its weights are exp(logits - most) x share, and delta is do . o.

    Most and share are kept apart: the logarithm of the total, a small number, is lost beside a largest logit of 1e8.
    """

    most_BHT: jax.Array
    share_BHT: jax.Array
    delta_BHT: jax.Array


def blockwise(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """softmax(scale * q k^T) v without the T x S matrix (Rabe and Staats 2021; Dao et al. 2022); returns o_BTHK.

    The backward pass computes the weights again from the largest logit and the sum of each row. A block that the mask
    is known to empty before tracing is left out, and one that it is known to fill is not masked. What depends on arrays
    (segment ids, places, padding, explicit masks) is masked exactly; a block of it that is not small is left out at run
    time where nobody sees anything. Differentiable in reverse mode, once (jax.grad and jax.vjp, not jax.jvp, nor the
    gradient of a gradient where the mask holds arrays); `dense` takes all.
    """
    return cleaned(q_BTHK, *scores.without_hidden(k_BSGK, v_BSGK, q_BTHK.shape[1]), scores)


def cleaned(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """`blockwise` of keys and values that are `without_hidden` already."""
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    plans = make_plans(scores.mask, T, S)
    queries = max([T, *(i0 + plan.rows for plan in plans for i0, _ in plan.full + plan.mixed)])
    keys = max([S, *(j0 + plan.columns for plan in plans for _, j0 in plan.full + plan.mixed)])
    if keys > S:
        scores = scores.replace(mask=scores.mask & FirstKeys(S))
    q_BHTK = _padded(((q_BTHK * scores.scale).astype(q_BTHK.dtype)).swapaxes(1, 2), queries)
    k_BGSK, v_BGSK = (_padded(x.swapaxes(1, 2), keys) for x in (k_BSGK, v_BSGK))
    rest = scores.replace(bias=None, sinks_H=None)
    return _attend(_Static(plans), q_BHTK, k_BGSK, v_BGSK, scores.learned(), rest)[:, :, :T].swapaxes(1, 2)


class _Static:
    """Passes plans through custom_vjp, which wants them hashable."""

    def __init__(self, plans: list[Plan]):
        self.plans = plans


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q_BHTK: jax.Array, k: jax.Array, v: jax.Array, learned: Any, rest: Scores) -> jax.Array:
    return _forward(static, q_BHTK, k, v, learned, rest)[0]


def _forward(
    static: _Static, q_BHTK: jax.Array, k: jax.Array, v: jax.Array, learned: Any, rest: Scores
) -> tuple[jax.Array, Any]:
    scores = rest.replace(bias=learned[0], sinks_H=learned[1])
    softmax = begin(q_BHTK, v, scores.sinks_H)
    for plan in static.plans:
        softmax = add_blocks(softmax, plan, q_BHTK, k, v, scores)
    o_BHTK, most_BHT, share_BHT = end(softmax, v.dtype)
    return o_BHTK, (q_BHTK, k, v, learned, rest, o_BHTK, most_BHT, share_BHT)


def _backward(static: _Static, kept: Any, do_BHTK: jax.Array) -> tuple[Any, ...]:
    q_BHTK, k, v, learned, rest, o_BHTK, most_BHT, share_BHT = kept
    bias, sinks_H = learned
    scores, rows = rest.replace(bias=bias), known_rows(most_BHT, share_BHT, o_BHTK, do_BHTK)
    found = no_gradients(q_BHTK, k, v, bias)
    for plan in static.plans:
        found = add_gradients(found, plan, q_BHTK, k, v, do_BHTK, rows, scores)
    dq, dk, dv, dbias = in_dtypes(found, (q_BHTK, k, v, bias))
    dsinks_H = None if sinks_H is None else sink_gradient(sinks_H, rows)
    return dq, dk, dv, (dbias, dsinks_H), None


_attend.defvjp(_forward, _backward)


def begin(q_BHTK: jax.Array, v: jax.Array, sinks_H: jax.Array | None) -> Softmax:
    """The softmax over nothing, or over the sinks alone."""
    shape = q_BHTK.shape[:3]
    o_BHTK = jnp.zeros((*shape, v.shape[-1]), wide(q_BHTK).dtype)
    lowest_BHT = jnp.full(shape, -largest(o_BHTK), o_BHTK.dtype)
    if sinks_H is None:
        return Softmax(lowest_BHT, jnp.zeros(shape, o_BHTK.dtype), o_BHTK)
    sinks_1H1 = bounded(wide(sinks_H))[None, :, None]
    most_BHT = jnp.maximum(sinks_1H1, lowest_BHT)
    return Softmax(most_BHT, jnp.exp(sinks_1H1 - most_BHT), o_BHTK)


def end(softmax: Softmax, dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(o_BHTK, most_BHT, share_BHT): weighted values, and 1 / total, what exp(most) weighs; a row without a key has 0.

    The greatest logit is named, because `jax.checkpoint` keeps nothing that a loop leaves: it would run the loop again.
    """
    dead_BHT = softmax.total_BHT == 0
    share_BHT = jnp.where(dead_BHT, 0, 1 / jnp.where(dead_BHT, 1, softmax.total_BHT))
    o_BHTK = jnp.where(dead_BHT[..., None], 0, softmax.o_BHTK * share_BHT[..., None]).astype(dtype)
    return o_BHTK, checkpoint_name(softmax.most_BHT, "most"), share_BHT


def add_blocks(
    softmax: Softmax,
    plan: Plan,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scores: Scores,
    at: tuple[Start, Start] = (0, 0),
) -> Softmax:
    """The softmax with the plan's blocks in it; q (B, H, T, K), scaled, begins at query `at[0]` of the sequence, and k
    and v (B, G, S, K) at key `at[1]`.
    """

    def add(softmax: Softmax, place: tuple[Start, Start], visible: bool) -> Softmax:
        (i0, j0), here = place, (at[0] + place[0], at[1] + place[1])
        q_block, k_block, v_block = _rows(q, i0, plan.rows), _rows(k, j0, plan.columns), _rows(v, j0, plan.columns)
        logits = scores.logits(_products(q_block, k_block), *here, visible)
        before = Softmax(*(_rows(x, i0, plan.rows) for x in softmax))
        most = jnp.maximum(before.most_BHT, jnp.max(logits, axis=-1))
        shrink, weights = jnp.exp(before.most_BHT - most), jnp.exp(logits - most[..., None])
        total = before.total_BHT * shrink + jnp.sum(weights, axis=-1)
        o = before.o_BHTK * shrink[..., None] + _weighed(scores.dropped(weights, *here).astype(v.dtype), v_block)
        return Softmax(*(_put(x, i0, y) for x, y in zip(softmax, (most, total, o), strict=True)))

    return _over_blocks(plan, add, softmax, scores.mask, at)


def no_gradients(q: jax.Array, k: jax.Array, v: jax.Array, bias: Any) -> Any:
    """What `add_gradients` begins with; that of a bias has the parts of the rows in front."""
    mesh, parts = jax.sharding.get_abstract_mesh(), mesh_axes("batch")[1]
    alone = mesh.empty or mesh.are_all_axes_manual or len(q) % parts > 0
    zeros = [jnp.zeros(x.shape, wide(x).dtype) for x in (q, k, v)]
    return *zeros, None if bias is None else bias.no_gradient(1 if alone else parts)


def in_dtypes(grads: Any, like: Any) -> Any:
    """The gradients as they are wanted, each of the dtype of its array; that of a bias summed over the parts."""
    *grads, dbias = grads
    grads = *grads, jax.tree.map(lambda x: jnp.sum(x, axis=0), dbias)
    return jax.tree.map(lambda x, grad: grad.astype(x.dtype), like, grads)


def add_gradients(
    grads: Any,
    plan: Plan,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    do: jax.Array,
    of_rows: Rows,
    scores: Scores,
    at: tuple[Start, Start] = (0, 0),
) -> Any:
    """The gradients (dq, dk, dv, dbias) with those of the plan's blocks in them (Dao et al. 2022, algorithm 4)."""

    def add(grads: Any, place: tuple[Start, Start], visible: bool) -> Any:
        (i0, j0), here = place, (at[0] + place[0], at[1] + place[1])
        q_block, do_block = _rows(q, i0, plan.rows), _rows(do, i0, plan.rows)
        k_block, v_block = _rows(k, j0, plan.columns), _rows(v, j0, plan.columns)
        most, share, delta = (_rows(x, i0, plan.rows)[..., None] for x in of_rows)

        products = _products(q_block, k_block)
        logits, pull = jax.vjp(lambda products: scores.logits(products, *here, visible), products)
        weights = jnp.exp(logits - most) * share
        dv_block = _transposed(scores.dropped(weights, *here).astype(v.dtype), do_block, k.shape[1])
        dweights = scores.dropped(_products(do_block, v_block), *here)
        dlogits = weights * (dweights - delta)
        dproducts = pull(dlogits)[0].astype(q.dtype)
        dq_block, dk_block = _weighed(dproducts, k_block), _transposed(dproducts, q_block, k.shape[1])
        dq, dk, dv = (
            _put(x, start, _rows(x, start, y.shape[2]) + y)
            for x, start, y in zip(grads, (i0, j0, j0), (dq_block, dk_block, dv_block), strict=False)
        )
        if scores.bias is None:
            return dq, dk, dv, None
        # A logit of +infinity gets none, which `pull` knows by itself.
        dbias = scores.bias.add_gradient(grads[3], *here, jnp.where(logits == largest(logits), 0, dlogits))
        return dq, dk, dv, dbias

    return _over_blocks(plan, add, grads, scores.mask, at)


def sink_gradient(sinks_H: jax.Array, rows: Rows) -> jax.Array:
    """The gradient of the sinks, whose value is zero: -sum of weight x (do . o)."""
    weights_BHT = jnp.exp(bounded(wide(sinks_H))[None, :, None] - rows.most_BHT) * rows.share_BHT
    found_H = -jnp.sum(weights_BHT * rows.delta_BHT, axis=(0, 2)).astype(sinks_H.dtype)
    return jnp.where(sinks_H == jnp.inf, 0, found_H)


def known_rows(most_BHT: jax.Array, share_BHT: jax.Array, o_BHTK: jax.Array, do_BHTK: jax.Array) -> Rows:
    """What the backward pass needs of each row."""
    return Rows(most_BHT, share_BHT, jnp.sum(wide(o_BHTK) * wide(do_BHTK), axis=-1))


def _over_blocks(plan: Plan, add: Callable[..., Any], carry: Any, mask: Mask, at: tuple[Start, Start]) -> Any:
    """`carry = add(carry, place, visible)` for each block, but those that nobody sees."""
    few = len(plan.mixed) + len(plan.full) <= _UNROLLED
    for places, visible in ((plan.mixed, False), (plan.full, True)):
        asked = not (visible or plan.whole or mask.is_static) and plan.rows * plan.columns > _SMALL
        if few and (not asked or len(places) == 1):
            for place in places:
                carry = add(carry, place, visible)
        elif places:
            starts_N2, one = jnp.asarray(places, jnp.int32), functools.partial(_add_one, add, visible)
            if asked:
                carry = over_seen(mask, len(places), starts_N2, (plan.rows, plan.columns), at, one, carry)
            else:
                carry = over_first(len(places), starts_N2, one, carry)
    return carry


def _add_one(add: Callable[..., Any], visible: bool, carry: Any, place: tuple[Start, Start]) -> Any:
    return add(carry, place, visible)


def _products(q_BHIK: jax.Array, k_BGJK: jax.Array) -> jax.Array:
    """q k^T, (B, H, I, J), at least in float32."""
    (B, H, rows, K), (G, columns) = q_BHIK.shape, k_BGJK.shape[1:3]
    q_BGRK = q_BHIK.reshape(B, G, H // G * rows, K)
    products = jnp.einsum("BGRK,BGJK->BGRJ", q_BGRK, k_BGJK, preferred_element_type=wide(q_BHIK).dtype)
    return products.reshape(B, H, rows, columns)


def _weighed(weights_BHIJ: jax.Array, v_BGJK: jax.Array) -> jax.Array:
    """weights v, (B, H, I, K), at least in float32."""
    (B, H, rows, columns), (G, K) = weights_BHIJ.shape, v_BGJK.shape[1::2]
    weights_BGRJ = weights_BHIJ.reshape(B, G, H // G * rows, columns)
    sums = jnp.einsum("BGRJ,BGJK->BGRK", weights_BGRJ, v_BGJK, preferred_element_type=wide(v_BGJK).dtype)
    return sums.reshape(B, H, rows, K)


def _transposed(weights_BHIJ: jax.Array, x_BHIK: jax.Array, G: int) -> jax.Array:
    """weights^T x, summed over the query heads of a group, (B, G, J, K), at least in float32."""
    (B, H, rows, columns), K = weights_BHIJ.shape, x_BHIK.shape[-1]
    weights_BGRJ, x_BGRK = weights_BHIJ.reshape(B, G, -1, columns), x_BHIK.reshape(B, G, H // G * rows, K)
    return jnp.einsum("BGRJ,BGRK->BGJK", weights_BGRJ, x_BGRK, preferred_element_type=wide(x_BHIK).dtype)


def _rows(x: jax.Array, start: Start, size: int) -> jax.Array:
    if isinstance(start, int):
        return jax.lax.slice_in_dim(x, start, start + size, axis=2)
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=2)


def _put(x: jax.Array, start: Start, rows: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, rows.astype(x.dtype), start, axis=2)


def _padded(x: jax.Array, length: int) -> jax.Array:
    more = length - x.shape[2]
    return jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) if more else x


def refusals(request: Request) -> Refusals:
    """Queries out of order, and a sequence that is split over devices."""
    yield from needs(
        request.scores.query_positions_BT is None, "queries at given positions are computed by dense", "write dense"
    )
    yield from needs(
        request.ways["length"] == 1,
        f"blocks are cut from whole sequences, and the mesh splits them over context={request.ways['length']}",
        "write ring or ulysses, or --config.mesh.context=1",
    )
