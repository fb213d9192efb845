"""Every core where scores are huge or infinite, and where keys that nobody sees hold NaN or infinity."""

import math
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.attention import (
    CORES,
    AttentionConfig,
    ExplicitBias,
    KVCache,
    MultiHeadAttention,
    Scores,
    causal,
    dropout,
    explicit,
    padding,
    segments,
)
from model.attention.cores import fused
from tests.model.attention import oracle
from tests.model.attention.test_cores import (
    CALLS,
    TESTED,
    TOLERANCE,
    assert_close,
    compiled,
    flat,
    forward_and_backward,
    placed_call,
)
from tests.tiers import tiered

N, B, H, G, T, K = 2, 2, 4, 2, 144, 8
HUGE = 2.0**22
OURS = [core for core in TESTED if core != "splash"]  # its kernel, and cuDNN's, keep max + log(total) in one number
# Rows by what is added to logits from -16 to 16, as (everywhere, on some keys); float32 holds each sum exactly.
ROWS = {
    "usual": (0, 0),
    "huge": (HUGE, 0),
    "huge, below zero": (-HUGE, 0),
    "huge on some keys": (0, HUGE),
    "hidden by the bias": (0, -np.inf),
    "huge, and hidden by the bias": (HUGE, -np.inf),
    "all hidden by the bias": (-np.inf, 0),
    "infinite on one key": (0, np.inf),
    "infinite on one key, and huge": (-HUGE, np.inf),
    "all infinite": (np.inf, 0),
    # Without products, which would be lost beside these.
    "beyond integers": (2.0**31, -(2.0**11)),
    "below what masks were": (-(2.0**120), 0),
    "near the largest of all": (2.0**126, -np.inf),
}
KINDS = list(ROWS)
KIND_T = np.arange(T) * 5 % len(KINDS)


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-1, 2, shape).astype(np.float32)


@cache
def arrays(seed: int, dtype: str = "float32") -> tuple[np.ndarray, ...]:
    """q, k, v, a cotangent, rounded to the dtype, and a bias (1, H, T, T) in float32."""
    rng = np.random.default_rng(seed)
    q, k = integers(rng, B, T, H, K), integers(rng, B, T, G, K)
    q[:, KIND_T >= KINDS.index("beyond integers")] = 0
    v, do = (rng.standard_normal((B, T, heads, K)).astype(np.float32) for heads in (G, H))
    everywhere_T, some_T = np.array([ROWS[name] for name in KINDS], np.float32)[KIND_T].T
    some_HTT = rng.random((H, T, T)) < 0.3
    # Of infinite ones, the query's own key alone, which every query sees.
    some_HTT[:, some_T == np.inf] = np.eye(T, dtype=bool)[None, some_T == np.inf]
    small_HTT = np.where(np.abs(everywhere_T[:, None]) <= HUGE, rng.integers(-8, 9, (H, T, T)), 0)
    bias_HTT = small_HTT + everywhere_T[:, None] + np.where(some_HTT, some_T[:, None], 0)
    rounded = (np.asarray(jnp.asarray(x, dtype)) for x in (q, k, v, do))
    return *rounded, bias_HTT[None].astype(np.float32)


def by_kind(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What has rows of queries, kind by kind, each to be measured by its own largest number."""
    parts = {name: x for name, x in found.items() if name in ("dk", "dv", "dsinks")}
    for name, axis in (("o", 1), ("dq", 1), ("dbias0", 2)):
        for n, kind in enumerate(KINDS):
            parts[f"{name}, {kind}"] = np.compress(KIND_T == n, found[name], axis)
    return parts


def expected(seed: int, scores: Scores, dtype: str) -> dict[str, np.ndarray]:
    """The softmax of float64."""
    q, k, v, do, bias = arrays(seed, dtype)
    i, j = scores.indices(0, 0, T, T)
    found = oracle.attention(
        q,
        k,
        v,
        do,
        scale=1.0,
        allowed=np.asarray(scores.mask.at(i, j)),
        bias=bias,
        soft_cap=scores.soft_cap,
        sinks_H=scores.sinks_H,
        keep=None if scores.dropout is None else np.asarray(scores.dropout.keep(i, j)),
        rate=0.0 if scores.dropout is None else scores.dropout.rate,
    )
    found["dbias0"] = found.pop("dbias").sum(0, keepdims=True)
    return by_kind({name: np.asarray(x) for name, x in found.items() if x is not None})


IDS_BT = np.sort(np.random.default_rng(1).integers(0, 3, (B, T)))
PACKED = {"mask": causal() & segments(IDS_BT), "dropout": dropout(0.3, jax.random.split(jax.random.key(1), B), H)}
SCORES = {
    "causal": {},
    "packing, dropout and sinks": PACKED | {"sinks_H": np.array([0.5, HUGE, -np.inf, -HUGE], np.float32)},
    "infinite sinks": {"sinks_H": np.array([np.inf, HUGE, 3.0, np.inf], np.float32)},
}
CASES = [(core, name, "float32") for core in OURS for name in ("causal", "packing, dropout and sinks")]
CASES += [(core, "infinite sinks", "float32") for core in ("dense", "blockwise")]
CASES += [(core, "causal", "bfloat16") for core in ("dense", "blockwise")]


@pytest.mark.parametrize(("core", "name", "dtype"), tiered(CASES, lambda core, *_: core != "ring"))
def test_huge_and_infinite_scores_are_exact(core: str, name: str, dtype: str) -> None:
    """Values and gradients, for two seeds by vmap; ring and ulysses on a mesh."""
    scores = Scores(**({"mask": causal(), "scale": 1.0} | SCORES[name]))

    def one(q: Any, k: Any, v: Any, do: Any, bias: Any) -> Any:
        return forward_and_backward(CORES[core].call, scores.replace(bias=ExplicitBias(bias)), q, k, v, do)

    stacked = [np.stack(both) for both in zip(*(arrays(seed, dtype) for seed in range(N)), strict=True)]
    got = flat(placed_call(core, compiled(jax.vmap(one)), *stacked))
    for seed in range(N):
        one_seed = by_kind({name: x[seed] for name, x in got.items()})
        assert_close(one_seed, expected(seed, scores, dtype), TOLERANCE[dtype])


def unscaled(shift: float) -> tuple[np.ndarray, ...]:
    """(q, k, v, do), whose products are integers near the shift in two heads, and near its negative in two."""
    rng = np.random.default_rng(2)
    q, k = integers(rng, B, T, H, K), integers(rng, B, T, G, K)
    q[..., 0], k[..., 0] = np.array([shift, shift, -shift, -shift]), 1
    return q, k, *(rng.standard_normal((B, T, heads, K)).astype(np.float32) for heads in (G, H))


def errors(core: str, shifts: list[float]) -> dict[float, float]:
    """The largest error of value and gradients for products near each shift, as a part of the largest number."""
    scores = Scores(causal(), 1.0)
    call = compiled(partial(forward_and_backward, CALLS.get(core, CORES[core].call)))
    found = {}
    for shift in shifts:
        inputs = unscaled(shift)
        wanted = oracle.attention(*inputs, scale=1.0, allowed=np.tri(T, dtype=bool))
        got = flat(placed_call(core, call, scores, *inputs))
        found[shift] = max(np.abs(got[name] - wanted[name]).max() / np.abs(wanted[name]).max() for name in got)
    return found


@pytest.mark.rest
@pytest.mark.parametrize("core", TESTED)
def test_a_core_is_exact_up_to_the_score_that_the_table_prints(core: str) -> None:
    """Products near powers of two, of either sign: the limit of each core is measured."""
    found = errors(core, [2.0**n for n in range(1, 23)])
    print(core, {shift: f"{error:.1e}" for shift, error in found.items()})
    wrong = [shift for shift, error in found.items() if error > TOLERANCE["float32"]]
    assert min(wrong, default=math.inf) / 2 == CORES[core].largest_score


LATE_BS = np.arange(T)[None] >= np.array([[7], [T]])  # no key for 7 queries of one row, and for all of the other
ALLOWED_BHTS = (np.random.default_rng(3).random((B, H, T, T)) < 0.4) & (np.arange(T) % 5 != 2)
ALLOWED_BHTS[:, :2, :, 1] = False  # hidden from the query heads of one key head
KEYS_BS = np.where(np.arange(T) % 7 == 3, 9, IDS_BT)  # 9: a document that no query is in
HIDDEN = {
    "padding": causal() & padding(LATE_BS),
    "packing": causal() & segments(IDS_BT, KEYS_BS) & padding(np.arange(T)[None] % 3 > np.array([[0], [-1]])),
    "keys behind all queries": causal(),
    "an array for each head": explicit(ALLOWED_BHTS),
    "queries at given positions": causal(),
}


def hidden_case(core: str, name: str) -> tuple[Any, tuple[np.ndarray, ...], np.ndarray]:
    """The call, its arrays, and which keys (B, S, G) no query sees."""
    queries = {"keys behind all queries": 80, "queries at given positions": 5}.get(name, T)
    rng = np.random.default_rng(4)
    shapes = (B, queries, H, K), (B, T, G, K), (B, T, G, K), (B, queries, H, K)
    inputs = tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    scores = Scores(HIDDEN[name], 0.5)
    if name == "queries at given positions":
        scores = scores.replace(query_positions_BT=np.array([[3, 4, 5, 6, 7], [90, 91, 92, 93, 94]]))
    allowed = np.broadcast_to(scores.mask.at(*scores.indices(0, 0, queries, T)), (B, H, queries, T))
    seen_BSG = allowed.any(2).reshape(B, G, H // G, T).any(2).swapaxes(1, 2)
    call = partial(fused.by_jax, "xla") if core == "fused" else CALLS.get(core, CORES[core].call)
    call = partial(placed_call, core, compiled(partial(forward_and_backward, call)), scores)
    return call, inputs, ~seen_BSG


HIDING = [
    (core, name)
    for core in CORES
    if CORES[core].is_softmax
    for name in HIDDEN
    if core == "dense" or name != "queries at given positions"
    if core != "splash" or name != "an array for each head"
]


@pytest.mark.parametrize(("core", "name"), tiered(HIDING, lambda core, name: core in ("dense", "blockwise")))
def test_what_no_query_may_see_may_hold_anything(core: str, name: str) -> None:
    """NaN and infinity there change no bit of value and gradients; a NaN that one query sees is seen."""
    call, (q, k, v, do), hidden_BSG = hidden_case(core, name)
    assert 0 < hidden_BSG.sum() < hidden_BSG.size

    def with_hidden(*content: float) -> dict[str, np.ndarray]:
        filled = np.resize(np.array(content, np.float32), (B, T, G, K))
        return flat(call(q, *(np.where(hidden_BSG[..., None], filled, x) for x in (k, v)), do))

    wanted, got = with_hidden(0.0), with_hidden(np.nan, np.inf, -np.inf)
    for part, x in wanted.items():
        assert np.isfinite(x).all()
        np.testing.assert_array_equal(got[part], x, part)
    for part in ("dk", "dv"):
        assert not got[part][hidden_BSG].any()
    for changed in (1, 2):
        inputs = [q, k, v]
        inputs[changed] = np.where(hidden_BSG[..., None], 0, np.full_like(k, np.nan))
        assert np.isnan(flat(call(*inputs, do))["o"]).any()


@pytest.mark.parametrize("core", [*TESTED, "fused"])
def test_a_query_that_is_no_number_gives_none(core: str) -> None:
    """Not zeros, which a query without a key would give: a run has to see it and stop."""
    call, (q, k, v, do), _ = hidden_case(core, "padding")
    q[0, 50] = np.nan
    assert np.isnan(flat(call(q, k, v, do))["o"][0, 50]).all()


def test_slots_of_a_cache_that_nobody_has_written_may_hold_anything() -> None:
    """Two tokens after three, in a cache for eleven, in half precision, grouped heads and sinks."""
    sizes = {"width": 12, "num_heads": 4, "num_kv_heads": 2, "head_width": 8}
    module = MultiHeadAttention(AttentionConfig(**sizes, sinks=True, dtype="bfloat16"), rngs=nnx.Rngs(0))
    x_BTD = np.random.default_rng(5).standard_normal((B, 2, 12)).astype(np.float32)
    positions_BT = jnp.asarray([[3, 4], [0, 1]])
    written_BS = np.arange(11)[None] <= np.array([[4], [1]])

    decode = jax.jit(lambda cache: module.decode(jnp.asarray(x_BTD), causal(), cache, positions_BT)[0])

    def decoded(content: float) -> np.ndarray:
        kept_BSGK = jnp.where(written_BS[..., None, None], jnp.ones((B, 11, 2, 8), "bfloat16"), content)
        cache = KVCache(kept_BSGK, kept_BSGK)
        return np.asarray(decode(cache), np.float32)

    wanted = decoded(0.0)
    assert np.isfinite(wanted).all()
    assert wanted.any()
    for content in (np.nan, np.inf):
        np.testing.assert_array_equal(decoded(content), wanted)
