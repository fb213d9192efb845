"""Masks that speak of places, in packed windows: each document is what it would be alone, and what nobody sees is left
out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import BlockState, Scores, by_place, causal, explicit, padding, parse_mask, segments, window
from model.attention.cores import blockwise, plan
from model.attention.cores.seen import over_seen
from model.attention.masks.base import exact_state
from model.attention.masks.patterns import dilated, global_tokens, strided
from model.attention.masks.places import speaks_of_places
from tests.model import reference
from tests.model.attention import oracle
from tests.model.attention.test_cores import assert_close, compiled, flat, forward_and_backward
from tests.tiers import tiered
from train.devices.mesh import make_mesh, make_rules
from train.sharding import placed

B, T = 3, 23
SHORT = 13  # as far as every formula of the reference goes


def documents(seed: int, B: int = B, T: int = T, mean: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Segment ids and places of documents of random lengths; the first row is one document."""
    starts_BT = np.random.default_rng(seed).random((B, T)) < 1 / mean
    starts_BT[0], starts_BT[:, 0] = False, True
    first_BT = np.maximum.accumulate(np.where(starts_BT, np.arange(T)[None], 0), axis=1)
    return starts_BT.cumsum(1).astype(np.int32), (np.arange(T)[None] - first_BT).astype(np.int32)


@pytest.mark.parametrize("text", reference.MASKS)
def test_packed_documents_are_masked_as_each_alone(text: str) -> None:
    """And a state is only told where it holds for every row."""
    alone_TT = reference.mask_matrix(text, SHORT, SHORT)
    for seed in range(3):
        ids_BT, places_BT = documents(seed, T=SHORT)
        expected_BTT = np.zeros((B, SHORT, SHORT), bool)
        for b, start in zip(*np.nonzero(places_BT == 0), strict=True):
            n = int((ids_BT[b] == ids_BT[b, start]).sum())
            expected_BTT[b, start : start + n, start : start + n] = alone_TT[:n, :n]
        mask = by_place(parse_mask(text), places_BT) & segments(ids_BT)
        np.testing.assert_array_equal(mask.block(0, 0, SHORT, SHORT)[:, 0], expected_BTT)
        for i0, i1, j0, j1 in np.random.default_rng(seed).integers(0, SHORT, (30, 4)):
            i0, i1, j0, j1 = int(i0), int(min(SHORT, i0 + i1 + 1)), int(j0), int(min(SHORT, j0 + j1 + 1))
            part = expected_BTT[:, i0:i1, j0:j1]
            truth = BlockState.FULL if part.all() else BlockState.MIXED if part.any() else BlockState.EMPTY
            assert exact_state(mask, i0, i1, j0, j1) in (BlockState.MIXED, truth)


def test_what_is_known_before_tracing_stays_known() -> None:
    """Distances are the same in a document, and arrays speak of indices."""
    ids_BT, places_BT = documents(0)
    for mask in (causal() & window(3), strided(4), ~dilated(3) | causal(), segments(ids_BT), padding(ids_BT > 1)):
        assert by_place(mask, places_BT) is mask or by_place(mask, places_BT) == mask
        assert not speaks_of_places(by_place(mask, places_BT))
    sparse = by_place(parse_mask("causal & (window(2) | global_tokens(2))"), places_BT)
    assert speaks_of_places(sparse)
    assert speaks_of_places(~sparse)
    assert sparse.state(0, 4, 4, 8) is BlockState.EMPTY  # ahead
    assert by_place(parse_mask("chunked(4)"), places_BT).state(8, 12, 0, 5) is BlockState.EMPTY  # too far for a chunk
    assert sparse.state(8, 12, 0, 4) is BlockState.MIXED  # where a document may begin
    for wrong in (by_place(global_tokens(2), places_BT[:, 1:]), by_place(parse_mask("random_blocks(3, 1, 9)"), ids_BT)):
        assert wrong.misfit(B, 1, T, T) is not None
    assert by_place(causal() & explicit(np.ones((1, 1, T, T), bool)), places_BT).misfit(B, 1, T, T) is None


def counted(mask: Any, starts_N2: Any, number: int) -> jax.Array:
    """Which blocks of 4 x 6 `over_seen` adds, for a sequence that begins at (1, 2)."""
    at, zeros = (1, 2), jnp.zeros((T, T), int)
    return over_seen(mask, number, starts_N2, (4, 6), at, lambda hits, place: hits.at[place].add(1), zeros)


def test_only_blocks_that_somebody_sees_are_computed() -> None:
    ids_BT, places_BT = documents(5)
    mask = by_place(parse_mask("causal & (window(1) | sink_columns(2))"), places_BT) & segments(ids_BT)
    starts_N2 = np.array([(i, j) for i in range(0, 18, 4) for j in range(0, 15, 6)])
    whole_BTT = np.asarray(mask.block(0, 0, T, T))[:, 0]
    seen = [bool(whole_BTT[:, i + 1 : i + 5, j + 2 : j + 8].any()) for i, j in starts_N2]
    hits_TT = np.asarray(counted(mask, jnp.asarray(starts_N2), len(starts_N2)))
    assert hits_TT[tuple(starts_N2.T)].tolist() == [int(one) for one in seen]
    assert hits_TT.sum() == sum(seen) < len(seen)
    assert counted(mask, jnp.asarray(starts_N2), 4).sum() == sum(seen[:4])


def test_seeds_ask_together() -> None:
    """The number of rounds is one for all seeds, those that any of them needs: no seed waits in a round of its own."""
    pairs = [[x_BT[1:] for x_BT in documents(seed)] for seed in (5, 6)]
    ids_NBT, places_NBT = (np.stack(one) for one in zip(*pairs, strict=True))
    starts_N2 = jnp.array([(i, j) for i in range(0, 18, 4) for j in range(0, 15, 6)])

    def hits(ids_BT: jax.Array, places_BT: jax.Array) -> jax.Array:
        return counted(by_place(parse_mask("sink_columns(1)"), places_BT) & segments(ids_BT), starts_N2, len(starts_N2))

    together = np.asarray(jax.vmap(hits)(ids_NBT, places_NBT))
    apart = np.stack([hits(*pair) for pair in pairs])
    assert (apart[0] != apart[1]).any()
    np.testing.assert_array_equal(together, np.broadcast_to(apart.any(0), together.shape))


LONG, H, K, N = 144, 4, 8, 2


@pytest.mark.parametrize("mesh", tiered([(None,), ((1, 2, 2, 1),), ((2, 2, 1, 1),)], lambda mesh: mesh is None))
def test_seeds_with_documents_of_their_own_learn_as_each_alone(mesh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one device, where rows and heads are split, and where seeds are; against float64."""
    monkeypatch.setattr(blockwise, "_SMALL", 0)
    monkeypatch.setattr(plan, "_SHORT", 0)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((N, 4, LONG, H, K)).astype(np.float32) for _ in range(4)]
    ids_NBT, places_NBT = (np.stack(one) for one in zip(*(documents(s, 4, LONG, 40) for s in (1, 2)), strict=True))
    text = "causal & (window(3) | chunked(5) | sink_columns(2))"

    def one(ids_BT: jax.Array, places_BT: jax.Array, *arrays: jax.Array) -> Any:
        mask = by_place(parse_mask(text), places_BT) & segments(ids_BT)
        return forward_and_backward(blockwise.blockwise, Scores(mask, 0.3), *arrays)

    axis = "replica" if mesh and mesh[0] == N else None
    call = compiled(jax.vmap(one, spmd_axis_name=axis))
    if mesh is None:
        got = call(ids_NBT, places_NBT, *arrays)
    else:
        sizes = dict(zip(("replica", "fsdp", "tensor", "context"), mesh, strict=True))
        with placed(make_mesh(sizes, jax.devices()[:4]), make_rules(N if axis else 1)):
            got = call(ids_NBT, places_NBT, *arrays)
    for n in range(N):
        ids_BT, places_BT = ids_NBT[n], places_NBT[n]
        i, j = places_BT[:, None, :, None], places_BT[:, None, None]
        allowed = (j <= i) & (ids_BT[:, None, :, None] == ids_BT[:, None, None])
        allowed &= (i - j <= 3) | (i // 5 == j // 5) | (j < 2)
        wanted = oracle.attention(*(x[n] for x in arrays), scale=0.3, allowed=allowed)
        kept = {name: wanted[name] for name in ("o", "dq", "dk", "dv")}
        assert_close(flat(jax.tree.map(lambda x, n=n: x[n], got)), flat(kept), 5e-6)
