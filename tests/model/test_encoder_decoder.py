"""The encoder-decoder beside NumPy, packed and one by one, cached and not; test_peers.py has it beside transformers."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import UserError
from model.attention import CORES
from model.families.encoder_decoder import EncoderDecoder, EncoderDecoderConfig, Pairs
from model.inspection import attention_weights, norm_inputs
from model.stack.residuals import NORM_PLACES
from tests.model import reference, reference_pairs
from tests.model.attention import decay
from tests.model.test_gpt import assert_same, compiled, cross_entropy, leaves
from tests.tiers import tiered

B, S, T, V = 3, 13, 11, 31
SIZES: dict[str, Any] = {"vocab_size": V, "max_length": 17, "num_layers": 3, "encoder_num_layers": 2}
SIZES |= {"width": 24, "num_heads": 6, "num_kv_heads": 2, "mlp_width": 29}
# Every place for norms, everything that cross-attention can have, and both sides with choices of their own.
CASES: list[dict[str, Any]] = [
    {
        "norm_place": "pre",
        "encoder_bias": "t5(buckets=8, max_distance=7)",
        "bias": "t5_causal(5, 7)",
        "position": "none",
        "encoder_position": "none",
        "scale": 1.0,
        "cross_scale": 0.7,
        "encoder_scale": 0.9,
        "logits_scale": 0.0,
        "mlp": "geglu",
        "cross_edits": "qk_norm & output_gate",
        "packed": True,
    },
    {
        "norm_place": "post",
        "norm": "layer(1e-5)",
        "use_bias": True,
        "embedding": "scaled",
        "position": "sinusoidal",
        "encoder_position": "sinusoidal",
        "mlp": "relu",
        "packed": True,
    },
    {
        "norm_place": "sandwich",
        "embedding": "normed",
        "position": "learned",
        "encoder_position": "learned(2)",
        "cross_edits": "qk_norm(layer) + output_gate(head)",
        "cross_sinks": "true + false",
        "cross_soft_cap": 1.3,
        "tied": False,
        "packed": True,
    },
    {
        "norm_place": "output",
        "edits": "qk_norm + none",
        "encoder_edits": "(value_residual & give_kv) + take_kv",
        "mask": "causal + (causal & window(4))",
        "encoder_mask": "window(2) + full",
        "encoder_sinks": True,
        "logits_soft_cap": 7.0,
        "use_bias": "qkv & head",
        "packed": False,
    },
    {"norm_place": "parallel", "encoder_mask": "window(3, 1)", "encoder_soft_cap": 1.3, "packed": False},
    {"norm_place": "parallel_shared", "bias": "alibi", "cross_edits": "qk_norm(rms, all)", "packed": True},
]


def packed() -> Pairs:
    """Two pairs in each row, of which two fill their source or what is written of it; junk behind."""
    rng = np.random.default_rng(3)
    lengths = {"source": [(5, 8), (1, 4), (7, 2)], "written": [(3, 5), (6, 5), (1, 2)]}
    tokens, ids, positions = {}, {}, {}
    for side, size in (("source", S), ("written", T)):
        tokens[side] = rng.integers(0, V, (B, size))
        ids[side], positions[side] = np.zeros((B, size), np.int32), np.zeros((B, size), np.int32)
        for b, (first, second) in enumerate(lengths[side]):
            ids[side][b, : first + second] = [1] * first + [2] * second
            positions[side][b, : first + second] = [*range(first), *range(second)]
    return Pairs(*tokens.values(), *ids.values(), *positions.values())


def padded() -> Pairs:
    """A pair in each row; the first source has no padding."""
    pairs = packed()
    ids_BS = (np.arange(S)[None] < np.array([[S], [1], [7]])).astype(np.int32)
    return Pairs(pairs.sources_BS, pairs.tokens_BT, ids_BS)


class Model(NamedTuple):
    """A model without weights, and random weights for it."""

    config: EncoderDecoderConfig
    graphdef: nnx.GraphDef
    params: Any

    def merge(self, params: Any) -> EncoderDecoder:
        return nnx.merge(self.graphdef, params)


def model(**choices: Any) -> Model:
    config = EncoderDecoderConfig(**{**SIZES, **choices})
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))
    return Model(config, graphdef, reference.random_params(nnx.to_pure_dict(shapes), np.random.default_rng(1)))


def test_every_place_for_norms_is_compared() -> None:
    assert {case["norm_place"] for case in CASES} == set(NORM_PLACES)


SITES = {"encoder.attention": "encoder", "decoder.attention": "decoder", "decoder.cross": "cross"}


@pytest.mark.parametrize("case", tiered([(case,) for case in CASES], lambda case: case in CASES[:1]), ids=str)
def test_logits_weights_and_gradients_are_the_references(case: dict[str, Any]) -> None:
    """The gradient, in random directions, is the central difference of the float64 reference's loss."""
    pairs = packed() if case["packed"] else padded()
    m, targets_BT = model(**{key: value for key, value in case.items() if key != "packed"}), packed().tokens_BT[::-1]
    rng, real_BT = (
        np.random.default_rng(4),
        np.ones((B, T)) if pairs.segment_ids_BT is None else pairs.segment_ids_BT > 0,
    )

    @compiled
    def run(params: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            logits_BTV = m.merge(params)(pairs)
            return cross_entropy(jnp.where(real_BT[..., None], logits_BTV, 0), targets_BT), logits_BTV

        return *jax.value_and_grad(loss, has_aux=True)(params), attention_weights(m.merge(params), pairs=pairs)

    def expected(params: Any) -> Any:
        found = reference_pairs.encoder_decoder(params, m.config, pairs)
        return found, reference.cross_entropy(np.where(real_BT[..., None], found.logits_BTV, 0), targets_BT)

    (loss, logits_BTV), gradient, weights = run(m.params)
    wanted, wanted_loss = expected(m.params)
    assert_same(logits_BTV[real_BT > 0], wanted.logits_BTV[real_BT > 0])
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    assert weights.keys() == SITES.keys()
    for place, one in weights.items():
        np.testing.assert_allclose(one, wanted.weights[SITES[place]], rtol=1e-4, atol=1e-5, err_msg=place)
    flat, structure = jax.tree.flatten(jax.tree.map(np.float64, m.params))
    step, groups = 1e-5, 2
    for group in range(groups):
        directions = [rng.standard_normal(x.shape) * (n % groups == group) for n, x in enumerate(flat)]
        moved = [[x + sign * step * one for x, one in zip(flat, directions, strict=True)] for sign in (1, -1)]
        up, down = (expected(structure.unflatten(side))[1] for side in moved)
        parts = [(got * one).sum() for (_, got), one in zip(leaves(gradient), directions, strict=True)]
        size = np.linalg.norm([np.linalg.norm(got) for _, got in leaves(gradient)])
        np.testing.assert_allclose(
            sum(parts), (up - down) / (2 * step), rtol=1e-3, atol=1e-4 * size, err_msg=str(group)
        )


# Cycles, windows, biases by distance and positions on both sides.
EVERYTHING: dict[str, Any] = {
    "num_layers": 4,
    "mask": "causal + (causal & window(3))",
    "encoder_mask": "full + window(2)",
    "encoder_bias": "t5(buckets=8, max_distance=7)",
    "bias": "none + t5_causal(5, 7)",
    "encoder_position": "learned",
    "position": "rope + none",
    "cross_edits": "qk_norm + output_gate",
    "cross_sinks": "true + false",
    "norm_place": "sandwich",
    "tied": False,
}


def nats(m: Model, params: Any, pairs: Pairs, real_BT: Any) -> jax.Array:
    """The sum over what is real of what each token that is read is worth as a target."""
    scores_BTV = jax.nn.log_softmax(m.merge(params)(pairs))
    return -jnp.sum(jnp.where(real_BT, jnp.take_along_axis(scores_BTV, pairs.tokens_BT[..., None], -1)[..., 0], 0))


@pytest.mark.parametrize("core", ["dense", pytest.param("blockwise", marks=pytest.mark.rest)])
def test_packed_pairs_are_what_they_are_one_by_one(core: str) -> None:
    """Loss and gradients, whatever stands at padding: NaN, and ids that no table has."""
    m, pairs = model(**EVERYTHING, core=core, encoder_core=core, cross_core=core), packed()
    m.params["embed"]["embedding"][7] = np.nan
    tokens = [np.where(x == 7, 8, x) for x in pairs[:2]]
    assert pairs.source_segment_ids_BS is not None
    assert pairs.segment_ids_BT is not None
    ids, real_BT = (pairs.source_segment_ids_BS, pairs.segment_ids_BT), pairs.segment_ids_BT > 0
    alone: list[list[np.ndarray]] = [[], [], [], []]
    for b, number in np.ndindex(B, 2):
        for side, (x, one) in enumerate(zip(tokens, ids, strict=True)):
            cut = x[b][one[b] == number + 1]
            alone[side].append(np.pad(cut, (0, x.shape[1] - len(cut))))
            alone[2 + side].append((np.arange(x.shape[1]) < len(cut)).astype(np.int32))
    junk = [np.where(one == 0, np.arange(x.shape[1]) % 2 * V + 7, x) for x, one in zip(tokens, ids, strict=True)]
    far = [np.where(one == 0, 10**6, x) for x, one in zip(pairs[4:6], ids, strict=True)]
    # As many rows as pairs, so that one program serves both: the others hold nothing.
    rows = [np.pad(x, ((0, B), (0, 0))) for x in (*junk, *ids, *far)]
    places = [np.tile(np.arange(size), (2 * B, 1)) for size in (S, T)]
    run = compiled(jax.value_and_grad(functools.partial(nats, m)))
    together = run(m.params, Pairs(*rows), np.pad(real_BT, ((0, B), (0, 0))))
    one_by_one = run(m.params, Pairs(*map(np.array, alone), *places), np.array(alone[3]) > 0)
    assert np.isfinite(together[0])
    assert_same(together, one_by_one, 2e-5)


def test_cached_equals_the_full_pass_and_makes_keys_of_the_memory_once() -> None:
    """Token by token and some at once, from padded sources as long as they are; and a beam takes its memory along."""
    m, pairs = model(**EVERYTHING), padded()
    order = np.array([2, 0, 0])

    @compiled
    def start(params: Any) -> Any:
        one = m.merge(params)
        cache = one.init_cache(one.encode(pairs), pairs.source_segment_ids_BS, 17)
        return one(pairs), jax.tree.map(lambda x: x, cache), cache.taken(order)

    @compiled
    def go_on(params: Any, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Any) -> Any:
        return m.merge(params).decode(tokens_BT, positions_BT, cache)

    full_BTV, cache, beams = start(m.params)
    assert cache.memory.seen.k_BSGK.shape == (4, B, S, 2, 4)
    # From here on nobody may ask for the encoder, or for what makes keys and values of its vectors.
    later = jax.tree.map(lambda x: x, m.params)
    later["encoder"] = jax.tree.map(lambda x: np.full_like(x, np.nan), later["encoder"])
    for name in ("key", "value"):
        kernel = later["decoder"]["stack"]["blocks"]["cross"][name]["kernel"]
        later["decoder"]["stack"]["blocks"]["cross"][name]["kernel"] = np.full_like(kernel, np.nan)
    tokens_BT, positions_BT = pairs.tokens_BT, np.tile(np.arange(T), (B, 1))
    some_BTV, cache = go_on(later, tokens_BT[:, :4], positions_BT[:, :4], cache)
    found = [some_BTV]
    for t in range(4, T):
        one_BTV, cache = go_on(later, tokens_BT[:, t : t + 1], positions_BT[:, t : t + 1], cache)
        found.append(one_BTV)
    assert_same(jnp.concatenate(found, axis=1), full_BTV)
    split_BTV, beams = go_on(later, tokens_BT[order, :4], positions_BT[:, :4], beams)
    assert_same(split_BTV, full_BTV[order, :4])
    split_BTV, _ = go_on(later, tokens_BT[order][::-1, 4:5], positions_BT[:, 4:5], beams.taken(np.arange(B)[::-1]))
    assert_same(split_BTV, full_BTV[order, 4:5][::-1])


@functools.cache
def trained(remat: str, unroll: int) -> Any:
    m = model(**EVERYTHING, remat=remat, unroll=unroll, dropout=0.3)
    keys_B = jax.random.split(jax.random.key(0), B)
    pairs = packed()._replace(dropout_keys_B=keys_B)
    return compiled(jax.value_and_grad(functools.partial(nats, m)))(m.params, pairs, pairs.segment_ids_BT > 0)


@pytest.mark.rest
@pytest.mark.parametrize(("remat", "unroll"), [("full", 4), ("dots", 2), ("full", 1), ("none", 4)])
def test_remat_and_unrolling_change_no_number(remat: str, unroll: int) -> None:
    assert_same(trained(remat, unroll), trained("none", 1))


def test_each_row_draws_dropout_by_its_key_and_each_site_for_itself() -> None:
    m, keys_B = model(dropout=0.3, encoder_num_layers=0, num_layers=2), jax.random.split(jax.random.key(0), B)

    @compiled
    def run(params: Any, pairs: Pairs) -> Any:
        one = m.merge(params)
        text = pairs.tokens_BT, pairs.segment_ids_BT, pairs.positions_BT
        scores = one.attention_scores(text, pairs.dropout_keys_B)
        return one(pairs), {site: scores[0].dropout.keys_BH2 for site, scores in scores.items()}

    pairs = packed()._replace(dropout_keys_B=keys_B)
    logits_BTV, drawn = run(m.params, pairs)
    turned = run(m.params, Pairs(*(x[::-1] for x in pairs)))[0]
    assert_same(turned[::-1], logits_BTV)
    assert np.abs(run(m.params, pairs._replace(dropout_keys_B=keys_B[::-1]))[0] - logits_BTV).max() > 0.1
    assert len({np.asarray(x)[0].tobytes() for x in drawn.values()}) == 3 == len(drawn)


def test_the_input_of_each_norm_is_seen() -> None:
    m, pairs = model(embedding="normed", norm_place="sandwich"), padded()
    found = compiled(
        lambda params: norm_inputs(m.merge(params), lambda x_BTD: jnp.mean(x_BTD, axis=(1, 2)), pairs=pairs)
    )(m.params)
    rows = [row.tobytes() for one in found.values() for row in np.asarray(one).reshape(-1, B)]
    assert len({*rows}) == len(rows) == 1 + 2 * 4 + 1 + 1 + 3 * 6 + 1


def test_a_source_that_does_not_exist_is_nothing_to_look_at() -> None:
    m, pairs = model(), padded()._replace(source_segment_ids_BS=np.zeros((B, S), np.int32))
    one = m.merge
    logits_BTV, weights = compiled(
        lambda params: (one(params)(pairs), attention_weights(one(params), pairs=pairs)),
    )(m.params)
    assert np.isfinite(logits_BTV).all()
    assert not np.any(weights["decoder.cross"])


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (
            {"cross_edits": "exclusive"},
            "--config.model.cross_edits='exclusive': exclusive needs keys and values of the t",
        ),
        (
            {"cross_edits": "qk_norm + value_residual"},
            "--config.model.cross_edits='value_residual': value_residual needs",
        ),
        (
            {"cross_edits": "take_kv"},
            "--config.model.cross_edits='take_kv': take_kv needs keys and values of the tokens ",
        ),
        (
            {"cross_edits": "give_kv"},
            "--config.model.cross_edits='give_kv': give_kv needs keys and values of the tokens ",
        ),
        ({"cross_core": "flash"}, "--config.model.cross_core='flash' is not one of: auto, "),
        (
            {"cross_core": "decay"},
            "--config.model.cross_core='decay' goes on from token to token of one sequence, and a ",
        ),
        ({"cross_scale": -1.0}, "--config.model.cross_scale=-1.0 must be at least 1e-06"),
        (
            {"encoder_mask": "casual"},
            "--config.model.encoder_mask='casual': there is no casual; the nearest is causal.",
        ),
        (
            {"encoder_edits": "take_kv"},
            "--config.model.encoder_edits='take_kv': layer 1 of it takes keys and values that",
        ),
        (
            {"encoder_edits": "3 * qk_norm + none"},
            "the layers' cycle of --config.model.encoder_edits (4) is longer than --config.model.encoder_num_layers=2;",
        ),
        (
            {"cross_edits": "3 * qk_norm + none"},
            "the layers' cycle of --config.model.cross_edits (4) is longer than --config.model.num_layers=3;",
        ),
        (
            {"encoder_num_layers": -1},
            "--config.model.encoder_num_layers=-1 must be at least 1 and at most 10000, or 0 for",
        ),
        (
            {"logits_scale": -1.0},
            "--config.model.logits_scale=-1.0 must be at least 1e-06 and at most 1e+06, or 0 for 1/",
        ),
        ({"num_kv_heads": 4}, "--config.model.num_kv_heads=4 does not divide --config.model.num_heads=6."),
    ],
    ids=str,
)
def test_what_a_site_cannot_have_is_refused_by_its_own_key(
    choices: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CORES, "decay", decay.CORE)
    with pytest.raises(UserError) as error:
        model(**choices)
    assert str(error.value).startswith(sentence)
