"""The splash core, interpreted on a CPU, against `dense` in float64; its plan of blocks; and what it refuses."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import spmd
from jax.sharding import AxisType

from model.attention import MASKS, Mask, Scores, by_place, causal, explicit, full, padding, parse_mask, segments, window
from model.attention.biases.base import ExplicitBias
from model.attention.biases.distance import Alibi
from model.attention.biases.modules import alibi_slopes
from model.attention.contract import Request, choose_core
from model.attention.cores.dense import dense
from model.attention.cores.splash import Sizes, fitting, make_kernel, refusals, run, with_places
from model.attention.cores.splash_mask import BlockMask, computed_blocks
from model.attention.cores.table import CORES
from model.attention.dropout import Dropout
from model.errors import UserError
from tests.tiers import tiered

SMALL = Sizes(128, 128, 128)
RNG = np.random.default_rng(0)
IDS = {T: np.sort(RNG.integers(0, 4, (2, T))) for T in (131, 256)}
SINKS_H, SLOPES_H = np.array([0.5, -1.0, 2.0], np.float32), np.array([0.5, 0.0625, 0.7], np.float32)


def valid(S: int) -> Mask:
    """Padding that hides a third of the keys, and all of row 1."""
    return padding(jnp.array(np.random.default_rng(1).random((2, S)) < np.array([[0.7], [0.0]])))


class Case(NamedTuple):
    """What is computed: the scores, (B, T, S, H, G, K), and the dtype."""

    scores: Scores
    sizes: tuple[int, int, int, int, int, int]
    dtype: str = "float32"


CASES = {
    "causal": Case(Scores(causal(), 0.125), (1, 256, 256, 2, 2, 64)),
    "causal in bfloat16": Case(Scores(causal(), 0.09), (1, 257, 257, 2, 2, 128), "bfloat16"),
    "window, odd length, one key head": Case(Scores(window(70, 3), 0.2), (1, 257, 257, 3, 1, 11)),
    "sparse": Case(Scores(parse_mask("strided(16)"), 0.125), (1, 256, 256, 1, 1, 64)),
    "segments, groups": Case(
        Scores(causal() & segments(jnp.array(IDS[256])), 0.09), (2, 256, 256, 4, 2, 128), "bfloat16"
    ),
    "segments and padding across": Case(
        Scores(segments(jnp.array(IDS[131]), jnp.array(IDS[256])) & valid(256), 0.125), (2, 131, 256, 2, 1, 64)
    ),
    "queries before all keys": Case(Scores(causal() & ~window(3, 0) & valid(256), 0.1), (2, 256, 256, 2, 2, 64)),
    "blocks of dead queries": Case(Scores(window(10), 0.125), (1, 400, 131, 1, 1, 64)),
    "soft cap": Case(Scores(causal(), 0.5, soft_cap=3.0), (1, 131, 131, 2, 2, 64)),
    "sinks": Case(Scores(window(5) & valid(131), 0.3, sinks_H=SINKS_H), (2, 131, 131, 3, 1, 64)),
    "sinks in bfloat16": Case(Scores(causal(), 0.1, sinks_H=SINKS_H), (1, 131, 131, 3, 1, 64), "bfloat16"),
    "ALiBi": Case(Scores(causal(), 0.125, Alibi(SLOPES_H)), (1, 400, 400, 3, 1, 64), "bfloat16"),
}
# The cases in which some queries see no key.
DEAD = {"segments and padding across", "queries before all keys", "blocks of dead queries", "sinks"}
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-2}


def arrays(case: Case) -> list[jax.Array]:
    """Queries, keys, values and a cotangent."""
    (B, T, S, H, G, K), rng = case.sizes, np.random.default_rng(3)
    return [
        jnp.asarray(rng.standard_normal(shape), case.dtype)
        for shape in ((B, T, H, K), *[(B, S, G, K)] * 2, (B, T, H, K))
    ]


def interpreted(q: Any, k: Any, v: Any, scores: Scores) -> jax.Array:
    """The core as the tests run it."""
    return run(q, k, v, scores, sizes=SMALL, interpret=True)


def with_gradients(call: Any, q: Any, k: Any, v: Any, do: Any, scores: Scores) -> dict[str, Any]:
    """The output and the gradients by q, k, v, bias and sinks."""

    def output(q: Any, k: Any, v: Any, learned: Any) -> Any:
        return call(q, k, v, scores.replace(bias=learned[0], sinks_H=learned[1]))

    o, pull = jax.vjp(output, q, k, v, scores.learned())
    return dict(zip(("o", "dq", "dk", "dv", "dlearned"), (o, *pull(do.astype(o.dtype))), strict=True))


def doubled(tree: Any) -> Any:
    """Floats in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.mark.parametrize("name", tiered([(name,) for name in CASES], [*CASES][::2].__contains__))
def test_it_is_dense_in_float64_forward_and_backward(name: str) -> None:
    case, (q, k, v, do) = CASES[name], arrays(CASES[name])
    with jax.default_matmul_precision("highest"):
        got = jax.jit(lambda *args: with_gradients(interpreted, *args))(q, k, v, do, case.scores)
    with jax.enable_x64(True):
        inputs = jax.tree.map(jnp.asarray, doubled((q, k, v, do, case.scores)))
        expected = jax.jit(lambda *args: with_gradients(dense, *args))(*inputs)
    for part in got:
        pairs = zip(jax.tree.leaves(got[part]), jax.tree.leaves(expected[part]), strict=True)
        for one, other in pairs:
            assert one.dtype == (jnp.float32 if part == "dlearned" else case.dtype), part
            difference = np.abs(np.asarray(one, np.float64) - np.asarray(other))
            assert difference.max() <= TOLERANCE[case.dtype] * np.abs(other).max(), part
    dead_BT = ~np.any(expected["o"], axis=(2, 3))
    assert not np.any(got["o"][dead_BT])
    assert not np.any(got["dq"][dead_BT])
    assert np.any(dead_BT) == (name in DEAD)


def test_alibi_is_exact_products_of_short_numbers() -> None:
    """Slopes that bfloat16 does not hold, and places of 16 bits, up to one part in 2^16."""
    slopes_H, zeros = alibi_slopes(12), np.zeros((1, 2**16, 1, 1))
    q_BTHK, k_BSGK = with_places(
        jnp.asarray(zeros[:, :1].repeat(12, axis=2), jnp.bfloat16), jnp.asarray(zeros, jnp.bfloat16), slopes_H
    )
    added_HS = np.asarray(q_BTHK[0, 0], np.float64) @ np.asarray(k_BSGK[0, :, 0], np.float64).T
    np.testing.assert_allclose(added_HS, slopes_H[:, None] * np.arange(2**16.0), rtol=2**-16)


@pytest.mark.rest
def test_seeds_layers_and_a_mesh() -> None:
    """Two seeds on `replica`, two scanned layers that are computed again, rows on `fsdp` and heads on `tensor`."""
    mesh = jax.make_mesh((2, 2, 2), ("replica", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    rules = (("batch", "fsdp"), ("heads", "tensor"), ("kv_heads", "tensor"))
    (B, T, H, G, K), rng = (2, 130, 4, 2, 8), np.random.default_rng(5)
    shapes = {"q": (2, B, T, H, K), "k": (2, B, T, G, K), "v": (2, B, T, G, K)}
    inputs = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}
    ids_BT, sinks_NH = jnp.asarray(np.sort(rng.integers(0, 3, (B, T)))), jnp.asarray(rng.standard_normal((2, H)))

    def loss(call: Any, one: dict[str, jax.Array], sinks_H: jax.Array) -> jax.Array:
        scores = Scores(causal() & segments(ids_BT), 0.3, sinks_H=sinks_H.astype(jnp.float32))

        def layer(q: jax.Array, _: None) -> tuple[jax.Array, None]:
            return q + call(q, one["k"], one["v"], scores), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), one["q"], None, length=2)[0] ** 2)

    def gradients(call: Any, **options: Any) -> Any:
        return jax.vmap(jax.grad(lambda *args: loss(call, *args), (0, 1)), **options)(inputs, sinks_NH)

    with jax.default_matmul_precision("highest"):
        expected = jax.jit(lambda: gradients(dense))()
        with jax.set_mesh(mesh), spmd.logical_axis_rules(rules):
            traced = jax.jit(lambda: gradients(interpreted, spmd_axis_name="replica")).trace()
            got = traced.lower().compile()()
    assert "shard_map" in str(traced.jaxpr)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), got, expected)


EXPRESSIONS = [
    "full",
    "causal",
    "window(40, 3)",
    "chunked(100)",
    "causal | prefix(150)",
    "causal & (window(50, 0) | sink_columns(3))",
    "window(20) | global_tokens(2)",
    "causal & window(200, 0) & dilated(3)",
    "strided(130)",
    "fixed(150, 4)",
    "random_blocks(64, 1, 520)",
    "window(30) & ~window(2)",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
@pytest.mark.parametrize(("T", "S"), [(512, 512), (515, 260)])
def test_the_kernel_computes_the_blocks_that_the_mask_needs_and_no_other(text: str, T: int, S: int) -> None:
    """And in each of them what the mask says, forward and in both passes back."""
    mask = parse_mask(text)
    allowed_TS = np.broadcast_to(np.asarray(mask.block(0, 0, T, S)), (1, 1, T, S))[0, 0]
    kernel, (rows, columns) = make_kernel(mask, T, S, SMALL, 64)
    padded = np.pad(np.pad(allowed_TS, ((0, 0), (0, columns - S))), ((0, rows - T), (0, 0)), mode="edge")
    tiles = padded.reshape(rows // 128, 128, columns // 128, 128).swapaxes(1, 2)
    needed = {(int(i), int(j)) for i, j in np.argwhere(tiles.any(axis=(2, 3)))}
    for name in ("fwd_mask_info", "dq_mask_info", "dkv_mask_info"):
        info, dkv = getattr(kernel, name), name == "dkv_mask_info"
        places = list(computed_blocks(info, dkv))
        assert len(places) == len(set(places))
        assert set(places) == needed
        kinds = np.argwhere(np.asarray(info.block_mask[0]) > 0)
        for (i, j), place in zip(kinds, places, strict=True):
            tile = tiles[place]
            if info.block_mask[0, i, j] == 1:
                planned = np.asarray(info.partial_mask_blocks[info.mask_next[0, i, j]])
                np.testing.assert_array_equal(planned.T if dkv else planned, tile)
            else:
                assert tile.all()


def test_every_mask_of_the_table_is_planned() -> None:
    assert [name for name in MASKS if not any(name in text for text in EXPRESSIONS)] == []


def test_no_more_of_a_mask_is_evaluated_than_a_block() -> None:
    """And nothing where the mask itself knows the answer."""
    asked = []

    class Watched(type(causal())):  # type: ignore[misc]
        def block(self, i0: Any, j0: Any, rows: int, columns: int) -> Any:
            asked.append((rows, columns))
            return super().block(i0, j0, rows, columns)

    block_mask = BlockMask(Watched(np.inf, 0), 1024, 1024, (1024, 1024))
    blocks = [block_mask[i : i + 128, j : j + 128] for i in range(0, 1024, 128) for j in range(0, 1024, 128)]
    assert asked == [(128, 128)] * 8
    assert sum(block.sum() for block in blocks) == 1024 * 1025 // 2


def test_blocks_fit_lengths_and_heads() -> None:
    sizes = [
        make_kernel(full(), T, 700, Sizes(512, 512, 256), 64)[0].kwargs["block_sizes"] for T in (1, 128, 131, 600, 1025)
    ]
    assert [size.block_q for size in sizes] == [128, 128, 256, 384, 384]
    assert {(size.block_kv, size.block_kv_compute) for size in sizes} == {(256, 256)}
    wide = make_kernel(full(), 128, 1900, Sizes(512, 1024, 512), 64)[0].kwargs["block_sizes"]
    assert (wide.block_kv, wide.block_kv_compute) == (1024, 512)
    assert fitting(Sizes(512, 1024, 512), 1024) == Sizes(512, 1024, 512)
    assert fitting(Sizes(512, 1024, 512), 1032) == Sizes(256, 512, 256)
    assert fitting(Sizes(512, 1024, 512), 4096) == Sizes(128, 256, 128)


def request(scores: Scores, **changes: Any) -> Request:
    """A request that the core takes, with changes."""
    one = {"B": 2, "T": 256, "S": 256, "H": 4, "G": 2, "K": 64, "dtype": jnp.dtype("bfloat16"), "platform": "tpu"}
    ways = {"batch": 2, "length": 1, "heads": 2, "kv_heads": 2} | changes.pop("ways", {})
    return Request(**(one | changes), scores=scores, ways=ways)


IDS_BT, SLOPES, ALLOWED = IDS[256], Alibi(np.ones(4, np.float32)), explicit(np.ones((1, 1, 256, 256), bool))
PACKED = causal() & segments(IDS_BT) & padding(IDS_BT > 0) & padding(IDS_BT < 3)


@pytest.mark.parametrize("scores", [Scores(PACKED, 1.0, soft_cap=2.0, sinks_H=SINKS_H), Scores(PACKED, 1.0, SLOPES)])
def test_what_it_computes_is_not_refused(scores: Scores) -> None:
    assert list(refusals(request(scores))) == []


DROPPED = Dropout(0.1, np.zeros((2, 4, 2), np.uint32))
REFUSED = {
    "this runs on a cpu": (Scores(PACKED, 1.0), {"platform": "cpu"}),
    "takes float32 and bfloat16, not float16": (Scores(PACKED, 1.0), {"dtype": jnp.dtype("float16")}),
    "no room for heads of width 3000 in bfloat16": (Scores(PACKED, 1.0), {"K": 3000}),
    "splits them over context=4": (Scores(PACKED, 1.0), {"ways": {"length": 4}}),
    "splits 3 rows over 2 devices": (Scores(PACKED, 1.0), {"B": 3}),
    "splits 2 key heads over 1 devices but 4 heads over 2": (Scores(PACKED, 1.0), {"ways": {"kv_heads": 1}}),
    "in the order of the sequence": (Scores(PACKED, 1.0, query_positions_BT=IDS_BT), {}),
    "drops no weights": (Scores(PACKED, 1.0, dropout=DROPPED), {}),
    "speaks of places in them": (
        Scores(by_place(parse_mask("causal & chunked(4)"), IDS_BT) & segments(IDS_BT), 1.0),
        {},
    ),
    "not Explicit": (Scores(causal() & ALLOWED, 1.0), {}),
    "not Or": (Scores(causal() | segments(IDS_BT), 1.0), {}),
    "not Not": (Scores(~padding(IDS_BT > 0), 1.0), {}),
    "takes one `& segments`, not two": (Scores(segments(IDS_BT) & segments(IDS_BT), 1.0), {}),
    "adds no bias but ALiBi": (Scores(PACKED, 1.0, ExplicitBias(np.zeros((1, 1, 256, 256)))), {}),
    "exact enough for bfloat16 only": (Scores(PACKED, 1.0, SLOPES), {"dtype": jnp.dtype("float32")}),
    "for up to 65536 keys": (Scores(PACKED, 1.0, SLOPES), {"S": 65537}),
    "no query sees a key ahead": (Scores(segments(IDS_BT), 1.0, SLOPES), {}),
    "a soft cap and sinks would notice": (Scores(PACKED, 1.0, SLOPES, sinks_H=SINKS_H), {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_all_else_is_refused_in_one_sentence_with_a_fix(reason: str) -> None:
    scores, changes = REFUSED[reason]
    asked = request(scores, **changes)
    (refusal,) = refusals(asked)
    assert reason in refusal.reason
    with pytest.raises(UserError) as error:
        choose_core(CORES, "splash", asked)
    assert re.fullmatch(r"--config\.model\.core='splash': [^;]+; (write|give) [^;]+\.", str(error.value))
