"""GPT against the NumPy reference, and the promises that no single forward pass can show."""

import math
import re
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPT, GPTConfig, UserError
from model.attention import BIASES, EDITS, MASKS
from model.cycles import read_cycle
from model.inspection import attention_weights, norm_inputs
from model.layers import ACTIVATIONS, GATED, dropout, row_bernoulli
from model.norms import NORMS
from model.positions import POSITIONS
from model.stack.config import REMAT
from model.stack.residuals import NORM_PLACES
from model.taps import Taps, head_gates
from model.vocabulary import EMBEDDINGS, Embedding
from tests.model import reference
from tests.tiers import tiered

B, T, V, L, H, G, K, F = 5, 11, 31, 3, 6, 2, 4, 29
SIZES = {"vocab_size": V, "max_length": 17, "num_layers": L, "width": H * K, "num_heads": H, "num_kv_heads": G}
SIZES["mlp_width"] = F
# Edits around the core: each of the reference's occurs, and more than one of them in one layer.
EDITED = [
    "none",
    "qk_norm",
    "qk_norm(layer) & output_gate",
    "exclusive & output_gate(head)",
    "value_residual & qk_norm(rms, all) & exclusive",
    "qk_norm(layer, all) + value_residual(0.0)",
    "(qk_norm(rms_plus_one, epsilon=0.01) & value_residual & give_kv) + (qk_norm & take_kv & exclusive)",
]
CHOICES: dict[str, list[Any]] = {
    "norm": list(reference.NORMS),
    "norm_place": list(NORM_PLACES),
    "mlp": list(ACTIVATIONS),
    "position": list(reference.POSITIONS),
    "bias": list(reference.BIASES),
    "num_kv_heads": [0, G, 1],
    "mask": list(reference.MASKS),
    "scale": [0.0, 0.7],
    "soft_cap": [0.0, 1.3],
    "sinks": [False, True],
    "edits": EDITED,
    "use_bias": [False, True, "qkv", "mlp & head", "output & norm & head"],
    "tied": [True, False],
    "head_width": [0, 8],
    "embedding": list(EMBEDDINGS),
    "logits_soft_cap": [0.0, 7.0],
    "packed": [False, True],
}
# Row i of every column, each in an order of its own: every value occurs, and the columns do not go together. Masks meet
# the model in one place, and have tests of their own: of them as many occur as there are rows.
ROWS = max(len(values) for key, values in CHOICES.items() if key != "mask")


def column(number: int, values: list[Any]) -> list[Any]:
    rng = np.random.default_rng(number)
    return [values[i] for _ in range(ROWS) for i in rng.permutation(len(values))][:ROWS]


CASES = [
    dict(zip(CHOICES, row, strict=True))
    for row in zip(*(column(i, values) for i, values in enumerate(CHOICES.values())), strict=True)
]


class Model(NamedTuple):
    """A model without weights, random weights for it, and random tokens."""

    config: GPTConfig
    graphdef: nnx.GraphDef
    params: Any
    tokens_BT: np.ndarray
    targets_BT: np.ndarray

    def merge(self, params: Any) -> GPT:
        return nnx.merge(self.graphdef, params)


# LLVM's passes change how fast a program runs, which takes no time here: without them it compiles twice as fast.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def model(**choices: Any) -> Model:
    config = GPTConfig(**{**SIZES, **choices})
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: GPT(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    params = reference.random_params(nnx.to_pure_dict(shapes), rng)
    return Model(config, graphdef, params, *rng.integers(0, V, (2, B, T)))


def documents() -> tuple[np.ndarray, np.ndarray]:
    """Segment ids from 1 and positions that restart, of documents of random lengths; one row is a single document."""
    starts_BT = np.random.default_rng(2).random((B, T)) < 0.3
    starts_BT[0], starts_BT[:, 0] = False, True
    first_BT = np.maximum.accumulate(np.where(starts_BT, np.arange(T)[None], 0), axis=1)
    return starts_BT.cumsum(1).astype(np.int32), (np.arange(T)[None] - first_BT).astype(np.int32)


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT[..., None], -1).mean()


def leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def gated(gates_LH: jax.Array) -> Taps:
    return Taps({"stack.attention.heads": head_gates(gates_LH)})


def weights_of(one: GPT, tokens_BT: Any, segment_ids_BT: Any = None, positions_BT: Any = None) -> jax.Array:
    given = {"tokens_BT": tokens_BT, "segment_ids_BT": segment_ids_BT, "positions_BT": positions_BT}
    return attention_weights(one, **given)["stack.attention"]


def assert_same(one: Any, two: Any, tolerance: float = 1e-5) -> None:
    """Leaf by leaf, as a part of the largest number of the leaf."""
    for (name, x), (_, y) in zip(leaves(one), leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max(), err_msg=name)


def test_every_variant_has_a_reference() -> None:
    """A new entry of a table is found by the cases below; it needs its formula in tests/model/reference.py first."""
    assert set(ACTIVATIONS) == set(reference.MLPS)
    assert set(GATED) <= set(ACTIVATIONS)
    assert set(EDITS) == {text.partition("(")[0] for text in reference.EDITS}
    assert set(reference.EDITS) == {
        one for text in EDITED for layer in read_cycle(text, "").values for one in reference.edits(layer)
    }
    assert set(NORM_PLACES) == set(reference.PLACES)
    assert set(EMBEDDINGS) == set(reference.EMBEDDINGS)
    expressions = (MASKS, reference.MASKS), (POSITIONS, reference.POSITIONS), (BIASES, reference.BIASES)
    for table, known in (*expressions, (NORMS, reference.NORMS)):
        assert set(table) <= {name for text in known for name in re.findall(r"[a-z_0-9]+", text)}
    for key, values in CHOICES.items():
        assert len({case[key] for case in CASES}) == min(ROWS, len(values))


@pytest.mark.parametrize(
    "case",
    tiered([(case,) for case in CASES], lambda case: CASES.index(case) % 6 == 0),
    ids=lambda case: "-".join(map(str, case.values())),
)
def test_logits_loss_weights_and_gradients_are_the_references(case: dict[str, Any]) -> None:
    """Each leaf's gradient, in a random direction, is the central difference of the float64 reference's loss."""
    packed = documents() if case["packed"] else (None, None)
    m = model(**{key: value for key, value in case.items() if key != "packed"})
    rng = np.random.default_rng(4)
    leaf = {"model": m.params, "gate": rng.standard_normal((L, H)).astype(np.float32)}

    @compiled
    def run(leaf: Any, tokens_BT: jax.Array, targets_BT: jax.Array) -> Any:
        def loss(leaf: Any) -> tuple[jax.Array, jax.Array]:
            logits_BTV = m.merge(leaf["model"])(tokens_BT, *packed, taps=gated(leaf["gate"]))
            return cross_entropy(logits_BTV, targets_BT), logits_BTV

        weights_LBHTS = weights_of(m.merge(leaf["model"]), tokens_BT, *packed)
        return *jax.value_and_grad(loss, has_aux=True)(leaf), weights_LBHTS

    (loss, logits_BTV), gradient, weights_LBHTS = run(leaf, m.tokens_BT, m.targets_BT)

    def expected(leaf: Any) -> reference.Output:
        return reference.gpt(leaf["model"], m.config, m.tokens_BT, *packed, leaf["gate"])

    assert logits_BTV.dtype == np.float32
    assert_same(logits_BTV, expected(leaf).logits_BTV)
    np.testing.assert_allclose(loss, reference.cross_entropy(expected(leaf).logits_BTV, m.targets_BT), rtol=1e-5)
    plain = reference.gpt(m.params, m.config, m.tokens_BT, *packed)
    # Scores of a stream that no norm holds are so large that their rounding shows in the weights.
    np.testing.assert_allclose(weights_LBHTS, plain.weights_LBHTS, rtol=1e-4, atol=1e-5)
    if not case["sinks"]:
        alive_LBHT = plain.weights_LBHTS.any(-1)
        assert alive_LBHT.any()
        np.testing.assert_allclose(weights_LBHTS.sum(-1), alive_LBHT, rtol=1e-5)
    flat, structure = jax.tree.flatten(jax.tree.map(np.float64, leaf))
    step = 1e-5
    for number, (name, got) in enumerate(leaves(gradient)):
        direction = rng.standard_normal(got.shape)
        moved = [[x + sign * step * direction if i == number else x for i, x in enumerate(flat)] for sign in (1, -1)]
        ends = [expected(structure.unflatten(side)) for side in moved]
        up, down = (reference.cross_entropy(end.logits_BTV, m.targets_BT) for end in ends)
        slope, size = (up - down) / (2 * step), np.linalg.norm(got) * np.linalg.norm(direction) / got.size**0.5
        np.testing.assert_allclose((got * direction).sum(), slope, rtol=1e-3, atol=1e-4 * size + 1e-6, err_msg=name)


GEMMA = {"norm": "rms_plus_one", "norm_place": "sandwich", "embedding": "scaled", "mlp": "geglu", "head_width": 8}


@pytest.mark.parametrize(
    ("dtype", "tolerance", "choices"),
    [
        ("bfloat16", 0.06, {"norm": "layer", "use_bias": "qkv & output & mlp & norm & head"}),
        ("float16", 0.008, {**GEMMA, "logits_soft_cap": 7.0, "scale": 0.1}),
    ],
)
def test_half_precision_stays_close_and_keeps_float32_parameters(
    dtype: str, tolerance: float, choices: dict[str, Any]
) -> None:
    m = model(dtype=dtype, **choices)
    logits_BTV = compiled(lambda params: m.merge(params)(m.tokens_BT))(m.params)
    expected = reference.gpt(m.params, m.config, m.tokens_BT).logits_BTV
    assert logits_BTV.dtype == np.float32
    assert 1e-5 < np.abs(logits_BTV - expected).max() / np.abs(expected).max() < tolerance  # and it really is half


def test_vectors_are_scaled_by_a_factor_that_is_rounded_as_they_are() -> None:
    """As Gemma's checkpoints were trained: sqrt(24) is 4.90625 in bfloat16."""
    one, scaled = (
        nnx.merge(*nnx.split(Embedding(V, 24, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0), scaled=scaled)))
        for scaled in (False, True)
    )
    tokens_BT = jnp.arange(V)[None]
    expected = np.float32(one(tokens_BT)) * np.float32(4.90625)
    np.testing.assert_array_equal(np.float32(scaled(tokens_BT)), np.float32(jnp.asarray(expected, jnp.bfloat16)))


@pytest.mark.parametrize(
    ("place", "embedding"),
    tiered([(place, "plain") for place in NORM_PLACES] + [("sandwich", "normed")], lambda *case: "normed" in case),
)
def test_the_input_of_each_norm_is_seen_in_the_order_of_the_model(place: str, embedding: str) -> None:
    m, seen = model(norm_place=place, embedding=embedding, use_bias=True, num_layers=2), []

    def watched(x_TD: np.ndarray, p: Any) -> np.ndarray:
        if not seen or seen[-1][1] is not p:  # of a norm that two branches share, once
            seen.append((x_TD, p))
        return reference.rms_norm(1e-6)(x_TD, p)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reference.NORMS, "rms", watched)
        reference.gpt(m.params, m.config, m.tokens_BT)
    found = compiled(lambda params: norm_inputs(m.merge(params), lambda x_BTD: x_BTD, tokens_BT=m.tokens_BT))(m.params)
    expected = np.stack([x_TD for x_TD, _ in seen]).reshape(B, -1, T, 24).swapaxes(0, 1)
    of_layers = np.stack([found.pop(f"stack.{name}.input") for name in NORM_PLACES[place].norms(("attention", "mlp"))])
    around = ["embedding_norm.input"] * (embedding == "normed"), ["norm.input"] * (place != "post")
    first, last = ([found.pop(name)[None] for name in names] for names in around)
    assert not found
    assert_same(np.concatenate([*first, of_layers.swapaxes(0, 1).reshape(-1, B, T, 24), *last]), expected)


class Run(NamedTuple):
    """A loss and its gradients, and how much work is in the program."""

    results: Any
    products: int  # matrix products in the program that is written
    exponentials: int  # and exponentials in the one that XLA leaves of it


@cache
def trained(remat: str, unroll: int) -> Run:
    m = model(remat=remat, unroll=unroll)

    def loss(params: Any) -> jax.Array:
        return cross_entropy(m.merge(params)(m.tokens_BT), m.targets_BT)

    step = jax.value_and_grad(loss)
    program = compiled(step).lower(m.params).compile()
    exponentials = len(re.findall(r" exponential\(", program.as_text()))
    return Run(program(m.params), str(jax.make_jaxpr(step)(m.params)).count("dot_general"), exponentials)


@pytest.mark.parametrize(
    ("remat", "unroll"),
    tiered(
        [("none", 2), *((remat, L) for remat in REMAT), ("dots", 1), ("full", 1)],
        lambda remat, unroll: unroll == L or (remat, unroll) == ("full", 1),
    ),
)
def test_remat_and_unrolling_change_the_program_and_not_the_numbers(remat: str, unroll: int) -> None:
    assert_same(trained(remat, unroll).results, trained("none", 1).results)


@pytest.mark.parametrize("unroll", [1, L])
def test_remat_computes_again(unroll: int) -> None:
    """Products without a batch axis are kept by `dots` and repeated by `full`; XLA does not merge the copies."""
    none, dots, full = (trained(remat, unroll) for remat in ("none", "dots", "full"))
    assert none.products < dots.products < full.products
    assert none.exponentials < dots.exponentials <= full.exponentials


def test_layers_are_stored_as_one_however_they_run() -> None:
    """And the pure dict of arrays goes through split, merge and jit unharmed."""
    one, all_of_them = (
        model(use_bias=True, edits="qk_norm", sinks=True, tied=False, unroll=unroll) for unroll in (1, L)
    )
    assert jax.tree.map(np.shape, one.params) == jax.tree.map(np.shape, all_of_them.params)
    assert all(leaf.shape[0] == L for _, leaf in leaves(one.params["stack"]))
    attention = one.params["stack"]["blocks"]["attention"]
    shapes = {name: attention[name]["kernel"].shape for name in ("query", "key", "value", "output")}
    assert shapes == {"query": (L, 24, H, K), "key": (L, 24, G, K), "value": (L, 24, G, K), "output": (L, H, K, 24)}
    again = nnx.to_pure_dict(nnx.split(one.merge(one.params))[1])
    jax.tree.map(np.testing.assert_array_equal, again, one.params)


def test_every_parameter_names_its_axes() -> None:
    for bias in BIASES:
        config = GPTConfig(**SIZES, use_bias=True, edits="qk_norm", sinks=True, bias=bias)
        state = nnx.state(nnx.eval_shape(lambda config=config: GPT(config, rngs=nnx.Rngs(0))))
        for path, variable in nnx.to_flat_state(state):
            assert len(variable.axes) == len(variable.shape), path
            assert (variable.axes[:1] == ("layers",)) == ("stack" in path), path


FAMILIES = {"gpt": (GPT, GPTConfig(**{**SIZES, "width": 96, "vocab_size": 997}, use_bias=True))}
GOLDEN = {"gpt": 7.379231929779053}


@cache
def initial(family: str) -> GPT:
    """A model as it is born from seed 0."""
    kind, config = FAMILIES[family]
    return kind(config, rngs=nnx.Rngs(0))


def test_parameters_start_with_the_spread_that_is_documented() -> None:
    """Kernels 1/sqrt(fan in), the ends of residual branches 1/sqrt(2L) of that; layers differ; scales 1, biases 0."""
    params = nnx.to_pure_dict(nnx.state(initial("gpt"), nnx.Param))
    blocks = params["stack"]["blocks"]
    branch = 1 / math.sqrt(2 * L)
    for kernel, expected in [
        (params["embed"]["embedding"], 96**-0.5),
        (blocks["attention"]["query"]["kernel"], 96**-0.5),
        (blocks["attention"]["output"]["kernel"], branch * 96**-0.5),
        (blocks["mlp"]["up"]["kernel"], 96**-0.5),
        (blocks["mlp"]["down"]["kernel"], branch * F**-0.5),
    ]:
        assert abs(np.std(kernel) / expected - 1) < 0.03
        assert abs(np.mean(kernel)) < 0.03 * expected
    assert len({layer.tobytes() for layer in np.asarray(blocks["mlp"]["up"]["kernel"])}) == L
    assert all(np.all(leaf == ("scale" in name)) for name, leaf in leaves(params) if "scale" in name or "bias" in name)


def test_dropout_keeps_the_mean_and_draws_each_row_from_its_own_key() -> None:
    keys_B, rate = jax.random.split(jax.random.key(3), B), 0.3
    x = jnp.full((B, 53, 59), 2.0)
    y = np.asarray(dropout(x, rate, keys_B, 5))
    assert set(np.unique(y)) == {np.float32(0), np.float32(2) / np.float32(1 - rate)}
    assert abs(y.mean() / 2 - 1) < 4 * (rate / (1 - rate) / y.size) ** 0.5
    np.testing.assert_array_equal(dropout(x[2:4], rate, keys_B[2:4], 5), y[2:4])
    draws = [row_bernoulli(keys_B, site, 0.5, (53,)) for site in (0, 1)]
    assert len({row.tobytes() for draw in draws for row in np.asarray(draw)}) == 2 * B
    assert dropout(x, 0.0, keys_B, 5) is x
    assert dropout(x, rate, None, 5) is x


def test_a_row_gets_the_same_dropout_in_every_batch() -> None:
    m = model(dropout=0.3, num_layers=2)
    run = compiled(lambda params, tokens_BT, keys_B: m.merge(params)(tokens_BT, dropout_keys_B=keys_B))
    keys_B = jax.random.split(jax.random.key(0), B)
    whole = run(m.params, m.tokens_BT, keys_B)
    assert_same(run(m.params, m.tokens_BT[::-1], keys_B[::-1])[::-1], whole)
    assert np.abs(run(m.params, m.tokens_BT, keys_B[::-1]) - whole).max() > 0.1
    again = model(dropout=0.3, num_layers=2, remat="full", unroll=2)
    assert_same(compiled(lambda p: again.merge(p)(m.tokens_BT, dropout_keys_B=keys_B))(m.params), whole)


def test_dropout_without_keys_is_no_dropout() -> None:
    m = model(dropout=0.3)
    got = compiled(lambda params: m.merge(params)(m.tokens_BT))(m.params)
    assert_same(got, reference.gpt(m.params, m.config, m.tokens_BT).logits_BTV)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_golden_numbers_still_hold(family: str) -> None:
    gpt = initial(family)
    tokens_BT, targets_BT = model().tokens_BT, model().targets_BT
    loss = float(cross_entropy(compiled(gpt)(tokens_BT), targets_BT))
    params = nnx.to_pure_dict(nnx.state(gpt, nnx.Param))
    expected = reference.cross_entropy(reference.gpt(params, gpt.config, tokens_BT).logits_BTV, targets_BT)
    assert loss == pytest.approx(expected, rel=1e-5), "model and reference disagree; no golden number mends that"
    assert loss == pytest.approx(GOLDEN[family], rel=1e-5), (
        f"The first loss of {family} is {loss!r}, and was {GOLDEN[family]!r}: the initial weights have changed, or the "
        "model. If that was meant, write the new number into GOLDEN in the same commit, which says why. It is wrong to "
        "renew it after a refactoring, an upgrade or a change of machine: then this failure is the finding."
    )


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"num_heads": 7}, "--config.model.num_heads=7 does not divide --config.model.width=24; change one of them, "),
        ({"head_width": -4}, "--config.model.head_width=-4 must be at least 1 and at most 65536, or 0 for width / num"),
        ({"embedding": "raw"}, "--config.model.embedding='raw' is not one of: plain, scaled, normed."),
        ({"logits_soft_cap": -1.0}, "--config.model.logits_soft_cap=-1.0 must be at least 1e-06 and at most "),
        ({"use_bias": "qvk"}, "--config.model.use_bias='qvk': there is no qvk; the nearest is qkv."),
        ({"use_bias": "qkv + mlp"}, "--config.model.use_bias='qkv + mlp' is not an expression of false, true, qkv, "),
        ({"use_bias": "qkv | mlp"}, "--config.model.use_bias='qkv | mlp' is not an expression of false, true, qkv, "),
        ({"use_bias": "qkv and mlp"}, "--config.model.use_bias='qkv and mlp': write & for and."),
        ({"use_bias": ""}, "--config.model.use_bias='' is empty: write an expression of false, true, qkv, output, "),
        # What a notebook may give for a text.
        *(
            ({key: given}, f"--config.model.{key}={given!r} is no text, and no value that its functions make; write a ")
            for key, given in {"use_bias": 1, "norm": None, "edits": ["qk_norm"], "position": None, "mask": ()}.items()
        ),
        ({"num_heads": 0}, "--config.model.num_heads=0 must be at least 1 and at most "),
        ({"num_layers": 0}, "--config.model.num_layers=0 must be at least 1 and at most "),
        ({"width": -3}, "--config.model.width=-3 must be at least 1 and at most "),
        ({"unroll": 0}, "--config.model.unroll=0 must be at least 1 and at most "),
        ({"mlp_width": -1}, "--config.model.mlp_width=-1 must be at least 1 and at most 4194304, or 0 for 4 x width."),
        ({"dropout": 1.0}, "--config.model.dropout=1.0 must be at least 0 and below 1."),
        ({"dropout": -0.1}, "--config.model.dropout=-0.1 must be at least 0 and below 1."),
        ({"remat": "some"}, "--config.model.remat='some' is not one of: none, dots, full."),
        ({"norm": "batch"}, "--config.model.norm='batch' is not an expression of layer(epsilon=1e-06), rms(epsilon="),
        ({"norm": "rms(0.0)"}, "--config.model.norm: epsilon=0.0 must be at least 1e-12 and at most 1."),
        ({"norm": "layer(eps=1e-5)"}, "--config.model.norm='layer(eps=1e-5)': layer has no eps; write layer(epsilon="),
        (
            {"norm_place": "mid"},
            "--config.model.norm_place='mid' is not one of: pre, post, sandwich, output, parallel, parallel_shared.",
        ),
        ({"dtype": "int8"}, "--config.model.dtype='int8' is not one of: float32, bfloat16, float16."),
        (
            {"position": "alibi"},
            "--config.model.position='alibi' is not an expression of rope(fraction=1.0, base=10000.0, pairs=halves),",
        ),
        (
            {"position": "rope(fraction=0.3)"},
            "--config.model.position turns 0.3 x 4 columns of each head, which must be",
        ),
        ({"bias": "rope"}, "--config.model.bias='rope' is not an expression of none, alibi, t5(buckets=32,"),
        ({"soft_cap": -1.0}, "--config.model.soft_cap=-1.0 must be at least 1e-06"),
        ({"mask": "casual"}, "--config.model.mask='casual': there is no casual; the nearest is causal."),
        ({"mask": "window(0)"}, "window(0) sees no neighbour"),
        ({"mlp": "mish"}, "--config.model.mlp='mish' is not one of: gelu, gelu_exact, relu, relu2, silu, geglu, "),
        ({"core": "flash"}, "--config.model.core='flash' is not one of: auto, "),
        ({"num_kv_heads": 4}, "--config.model.num_kv_heads=4 does not divide --config.model.num_heads=6."),
        ({"scale": -1.0}, "--config.model.scale=-1.0 must be at least 1e-06"),
    ],
    ids=str,
)
def test_bad_choices_are_refused_in_one_sentence(choices: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        model(**choices)
    assert str(error.value).startswith(sentence)
