"""Layers that differ: against the NumPy reference's plain loop, and what their order and storage promise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPT, UserError
from model.attention import CORES, causal, window
from model.cycles import Cycle, cycle, read_cycle
from model.stack.rows import take_row
from tests.model import reference
from tests.model.attention import decay
from tests.model.test_gpt import (
    GEMMA,
    B,
    H,
    Model,
    T,
    assert_same,
    compiled,
    cross_entropy,
    documents,
    gated,
    model,
    weights_of,
)
from tests.tiers import tiered

NEAR = "causal & window(4)"  # T is above it
# Each: what differs, in how many layers (of 7: one unit and a part, several units, or both loops), and how it is run.
CASES: dict[str, dict[str, Any]] = {
    "a little of all": {
        "mask": f"({NEAR}) + causal",
        "position": "rope + none",
        "sinks": "true + false",
        "edits": "none + qk_norm",
        "bias": "none + t5_causal(5, 7)",
        "num_layers": 3,
        **GEMMA,
        "use_bias": "qkv & head",
        "logits_soft_cap": 7.0,
    },
    "blocks": {
        "mask": f"({NEAR}) + causal",
        "norm_place": "parallel_shared",
        "norm": "layer(1e-5)",
        "embedding": "normed",
        "use_bias": "mlp & norm & head",
        "head_width": 8,
        "tied": False,
        "unroll": 2,
    },
    "norms on outputs": {"norm_place": "output", "position": "rope + none", "use_bias": "output"},
    "masks": {"mask": f"2 * ({NEAR}) + causal"},
    "masks by place": {"mask": "(causal & chunked(4)) + fixed(4, 2) + causal"},
    "positions": {"position": "3 * rope + none", "num_layers": 9},
    "bases": {"position": "rope(base=50) + 2 * rope", "remat": "full"},
    "biases": {"bias": "t5_causal(5, 7) + 2 * none + alibi + kerple", "position": "none"},
    "caps": {"soft_cap": "2 * 1.5 + 0.0", "scale": "0.3 + 0.0"},
    "sinks and norms": {"sinks": "true + 2 * false", "edits": "none + qk_norm", "num_layers": 8, "remat": "dots"},
    "edits": {"edits": "2 * output_gate + (value_residual & exclusive) + qk_norm"},  # shared keys have no reverse
    "cores": {"core": "2 * blockwise + dense", "num_layers": 6},
    "states": {"core": "2 * decay + dense", "mask": f"2 * causal + ({NEAR})", "remat": "full", "edits": "qk_norm"},
    "lengths that are coprime": {"mask": f"({NEAR}) + causal", "position": "2 * rope + none", "unroll": 2},
    "a unit and no loop": {"mask": f"4 * ({NEAR}) + 3 * causal", "unroll": 7},
    "a cycle as long as the depth": {"mask": f"5 * ({NEAR}) + 2 * causal", "remat": "full"},
}

EVERY_DAY = ("a little of all",)


@pytest.fixture(autouse=True)
def _decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORES, "decay", decay.CORE)


@pytest.mark.parametrize("case", tiered([(case,) for case in CASES], EVERY_DAY.__contains__))
def test_a_cycle_is_the_plain_loop_over_its_layers(case: str) -> None:
    assert_is_the_plain_loop(model(**choices(case)))


def choices(case: str) -> dict[str, Any]:
    return {"num_layers": 7, **CASES[case]}


def assert_is_the_plain_loop(m: Model) -> None:
    """Logits, weights of each layer, every leaf's gradient, and cached decoding; packed, with a gate on each head."""
    packed, L, rng = documents(), m.config.num_layers, np.random.default_rng(4)
    leaf = {"model": m.params, "gate": rng.standard_normal((L, H)).astype(np.float32)}

    @compiled
    def run(leaf: Any) -> Any:
        def loss(leaf: Any) -> tuple[jax.Array, jax.Array]:
            logits_BTV = m.merge(leaf["model"])(m.tokens_BT, *packed, taps=gated(leaf["gate"]))
            return cross_entropy(logits_BTV, m.targets_BT), logits_BTV

        one, places_BT = m.merge(leaf["model"]), jnp.broadcast_to(jnp.arange(T), (B, T))
        decoded, cache = [], one.init_cache(B, T)
        for at in (slice(0, 6), slice(6, T)):
            logits_BtV, cache = one.decode(m.tokens_BT[:, at], places_BT[:, at], cache)
            decoded.append(logits_BtV)
        weights_LBHTS = weights_of(one, m.tokens_BT, *packed)
        return jax.value_and_grad(loss, has_aux=True)(leaf), weights_LBHTS, jnp.concatenate(decoded, 1)

    ((_, logits_BTV), gradient), weights_LBHTS, decoded_BTV = run(leaf)

    def expected(leaf: Any, *packed: Any) -> reference.Output:
        return reference.gpt(leaf["model"], m.config, m.tokens_BT, *packed, gate_LH=leaf["gate"])

    assert_same(logits_BTV, expected(leaf, *packed).logits_BTV)
    plain = reference.gpt(m.params, m.config, m.tokens_BT)
    np.testing.assert_allclose(decoded_BTV, plain.logits_BTV, atol=2e-5 * np.abs(plain.logits_BTV).max())
    kept = reference.gpt(m.params, m.config, m.tokens_BT, *packed).weights_LBHTS
    np.testing.assert_allclose(weights_LBHTS, kept, rtol=1e-4, atol=1e-5 * max(1, np.abs(kept).max()))
    step, direction = 1e-5, jax.tree.map(lambda x: rng.standard_normal(x.shape), leaf)
    ends = [jax.tree.map(lambda x, d, s=s: np.float64(x) + s * d, leaf, direction) for s in (step, -step)]
    up, down = (reference.cross_entropy(expected(one, *packed).logits_BTV, m.targets_BT) for one in ends)
    along = sum(float(np.sum(g * d)) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    assert along == pytest.approx((up - down) / (2 * step), rel=2e-4, abs=1e-6)


# Reversed, the biases that are learned would have each other's names.
REVERSED = [case for case in CASES if case != "biases"]


@pytest.mark.rest
@pytest.mark.parametrize("case", REVERSED)
def test_reversed_layers_are_another_model(case: str) -> None:
    """With the same parameters at each layer: so that no pattern is applied in another order, or not at all."""
    given = choices(case)
    m = model(**given)
    turned = {}
    for key in m.config.LAYERED:
        each = [m.config.cycles[key][layer] for layer in range(m.config.num_layers)]
        turned[key] = Cycle(tuple(each[::-1]))
    other = model(**given | turned)
    shapes = [{key: x.shape for key, x in _flat(one.params).items()} for one in (m, other)]
    assert shapes[0] == shapes[1]
    first, second = (compiled(lambda p, one=one: one.merge(p)(one.tokens_BT))(m.params) for one in (m, other))
    palindrome = all(turned[key].values == turned[key].values[::-1] for key in turned) or case == "cores"
    assert bool(np.allclose(first, second, atol=1e-5)) == palindrome


def _flat(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@pytest.mark.rest
def test_a_layer_keeps_what_its_mask_looks_back_to() -> None:
    """Rolling over many times its window, in pieces longer and shorter than it, with rows of different lengths, and
    with a token that is fed again: each row as alone and whole. What it keeps does not grow with the length."""
    m = model(num_layers=3, mask=f"({NEAR}) + causal", bias="alibi", sinks=True)
    lengths_B = np.array([T, T - 2, 6, 5, 1])  # just more than what is kept, and just that
    grid_BT = np.arange(T)[None]
    positions_BT = np.where(grid_BT < lengths_B[:, None], grid_BT, -1)

    @compiled
    def run(params: Any, tokens_BT: jax.Array, positions_BT: jax.Array) -> Any:
        one, found = m.merge(params), []
        cache = one.init_cache(B, T)
        for at in (slice(0, 3), slice(2, 3), slice(3, 9), slice(9, 10), slice(9, 10), slice(10, T)):
            # Backwards: what is kept of a piece that is longer than the cache must not hang on the order in it.
            logits_BtV, cache = one.decode(tokens_BT[:, at][:, ::-1], positions_BT[:, at][:, ::-1], cache)
            found.append(logits_BtV[:, ::-1])
        return jnp.concatenate([found[0][:, :2], found[1], found[2], *found[4:]], 1), cache

    logits_BTV, cache = run(m.params, m.tokens_BT, positions_BT)
    whole_BTV = reference.gpt(m.params, m.config, m.tokens_BT).logits_BTV
    there_BT = positions_BT >= 0
    np.testing.assert_allclose(logits_BTV[there_BT], whole_BTV[there_BT], atol=2e-5 * np.abs(whole_BTV).max())
    rolling, full = cache.stacks
    assert (rolling.k_BRGK.shape[:3], full.k_BSGK.shape[:3]) == ((2, B, 5), (1, B, T))
    assert np.asarray(rolling.positions_BR).max(-1).tolist() == [(lengths_B - 1).tolist()] * 2
    back_BT = np.full((B, 1), 2)  # what lies before is gone in rows that have rolled over it, and that is told
    answers_B1V, _ = compiled(lambda p, *args: m.merge(p).decode(*args))(m.params, m.tokens_BT[:, :1], back_BT, cache)
    assert np.isnan(answers_B1V).all((1, 2)).tolist() == (lengths_B > 5).tolist()
    longer = jax.eval_shape(lambda: GPT(m.config, rngs=nnx.Rngs(0)).init_cache(B, 17 * T))
    assert longer.stacks[0].k_BRGK.shape == rolling.k_BRGK.shape


@pytest.mark.rest
def test_each_layer_begins_as_without_a_cycle() -> None:
    """First values are keyed by path and layer: what all have is the same, and what some have is those rows."""

    def params(**changes: Any) -> dict[str, Any]:
        made = GPT(model(num_layers=7, **changes).config, rngs=nnx.Rngs(0))
        return _flat(nnx.to_pure_dict(nnx.state(made, nnx.Param)))

    plain = params(sinks=True, edits="qk_norm", bias="t5_causal(5, 7)")
    mixed = params(
        mask=f"2 * ({NEAR}) + causal", edits="2 * none + qk_norm", sinks="true + false", bias="none + t5_causal(5, 7)"
    )
    assert plain.keys() == mixed.keys()
    for name, value in mixed.items():
        rows = slice(None)
        if "['qk_norm']" in name:
            rows = slice(2, None, 3)
        elif "sinks" in name:
            rows = slice(0, None, 2)
        np.testing.assert_array_equal(value, plain[name][rows], err_msg=name)
        assert len(value) == len(plain[name][rows])


def test_the_algebra_of_cycles() -> None:
    near, far = causal() & window(4), causal()
    written = {
        f"5 * ({NEAR}) + causal": (NEAR,) * 5 + ("causal",),
        "2 * (a + 2 * b)": ("a", "b", "b"),  # the shortest that says the same
        "a + a": ("a",),
        "rope( base=7 )": ("rope( base=7 )",),
    }
    assert {text: read_cycle(text, "model.mask").values for text in written} == written
    assert read_cycle("5 * 50.0 + -1", "model.soft_cap", float).values == (50.0,) * 5 + (-1.0,)
    assert read_cycle("true + False", "model.sinks", bool).values == (True, False)
    assert read_cycle(0.5, "model.scale", float).values == (0.5,)
    assert (5 * cycle(near) + cycle(far)).values == tuple(5 * cycle(near) + cycle(far)) == (near,) * 5 + (far,)
    texts = f"2 * ({NEAR}) + causal", "5 * 50.0 + 0.0", "causal", "3 * rope + none"
    assert [str(read_cycle(text, "model.mask")) for text in texts] == list(texts)


def test_values_are_as_good_as_texts() -> None:
    text = model(num_layers=7, mask=f"2 * ({NEAR}) + causal", sinks="true + false")
    value = model(num_layers=7, mask=2 * cycle(causal() & window(4)) + cycle(causal()), sinks=cycle(True, False))
    one, two = (compiled(lambda p, one=one: one.merge(p)(one.tokens_BT))(text.params) for one in (text, value))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("mask", "causal & window(3) + causal", "`+` and `n *` join layers and stand outermost"),
        ("mask", "causal & (2 * window(3))", "`+` and `n *` join layers and stand outermost"),
        ("mask", "0 * causal + causal", "0 * is no count of layers"),
        ("mask", "causal * 3", "`*` repeats layers, and needs their whole number to its left"),
        ("mask", "2.0 * causal", "`*` repeats layers, and needs their whole number to its left"),
        ("mask", "+".join(["causal"] * 200), "has 199 signs of + and *"),
        ("mask", "3 * causal + casual", "casual"),
        ("soft_cap", "5 * 50.0 + none", "numbers are needed, such as '5 * 50.0 + 0.0'"),
        ("soft_cap", "5 * 50.0 + -1.0", "soft_cap=-1.0 must be"),
        ("sinks", "1.0 + 2.0", "true and false are needed"),
        ("core", "dense + magic", "'magic' is not one of"),
        ("position", "rope + learned", "act at the embedding"),
        ("mask", f"7 * causal + ({NEAR})", "the layers' cycle of --config.model.mask (8) is longer than --config.mod"),
        (
            "mask",
            f"({NEAR}) + 2 * causal",
            "of --config.model.position (4) and --config.model.mask (3), which begin together anew after 12 layers, is",
        ),
    ],
)
def test_what_is_no_cycle_is_told(key: str, value: str, sentence: str) -> None:
    beside = {"position": "3 * rope + none"} if "12 layers" in sentence else {}
    with pytest.raises(UserError) as refused:
        GPT(model(**{"num_layers": 7, key: value} | beside).config, rngs=nnx.Rngs(0))
    assert sentence in str(refused.value)


def test_the_program_does_not_grow_with_the_depth() -> None:
    def size(num_layers: int) -> int:
        m = model(mask=f"2 * ({NEAR}) + causal", num_layers=num_layers)
        loss = lambda p: jnp.sum(m.merge(p)(m.tokens_BT))  # noqa: E731
        return len(jax.jit(jax.grad(loss)).lower(m.params).as_text())

    assert size(14) == pytest.approx(size(50), rel=0.01)


@pytest.mark.rest
def test_a_row_costs_a_row() -> None:
    """Gradient and tangent through `take_row`, also of each other and for many at once, are those of plain indexing."""
    stack = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3, 3)), jnp.float32)

    def run(take: Any, stack: jax.Array) -> jax.Array:
        def body(carry: Any, number: jax.Array) -> tuple[Any, None]:
            x, carried = carry
            row, carried = take(stack, carried, number)
            return (jnp.tanh(x @ row), carried), None

        (x, carried), _ = jax.lax.scan(body, (jnp.ones((2, 3)), stack), jnp.arange(7))
        row, _ = take(stack, carried, 2)
        return jnp.sum(jnp.sin(x @ row))

    plain = lambda stack, carried, number: (stack[number], carried)  # noqa: E731
    ways = {
        "gradient": lambda f: jax.grad(f)(stack),
        "tangent": lambda f: jax.jvp(f, (stack,), (jnp.cos(stack),))[1],
        "linear": lambda f: jax.linearize(f, stack)[1](jnp.cos(stack)),
        "tangent of the gradient": lambda f: jax.jvp(jax.grad(f), (stack,), (jnp.cos(stack),))[1],
        "gradient of the tangent": lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (jnp.cos(x),))[1])(stack),
        "many": lambda f: jax.vmap(jax.grad(f))(jnp.stack([stack, 2 * stack])),
        "many in the second axis": lambda f: jax.vmap(jax.grad(f), 1)(jnp.stack([stack, 2 * stack], 1)),
    }
    for name, way in ways.items():
        ours, theirs = (way(lambda s, take=take: run(take, s)) for take in (take_row, plain))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=name)

    def at(take: Any) -> jax.Array:
        """Rows of different places, and their gradients."""
        one = jax.grad(lambda stack, number: jnp.sum(jnp.sin(take(stack, stack, number)[0])))
        return jax.vmap(one)(jnp.stack([stack, 2 * stack]), jnp.asarray([4, 1]))

    np.testing.assert_allclose(at(take_row), at(plain), rtol=1e-6)


@pytest.mark.rest
def test_rows_are_not_kept_and_gradients_are_not_copied() -> None:
    """Of 26 layers as 4 x 6 + 2, what is needed beside arguments and results is as of 26 equal ones, and one cycle."""
    sizes: dict[str, Any] = {"num_layers": 26, "remat": "full", "position": "none"}
    unequal = {"mask": f"5 * ({NEAR}) + (causal & window(5))"}

    def temporary(**changes: Any) -> tuple[int, int]:
        m = model(**sizes, **changes)
        program = jax.jit(jax.grad(lambda p: jnp.sum(m.merge(p)(m.tokens_BT)))).lower(m.params).compile()
        return program.memory_analysis().temp_size_in_bytes, sum(x.nbytes for x in jax.tree.leaves(m.params["stack"]))

    (uniform, stored), (cycled, _) = temporary(mask="causal"), temporary(**unequal)
    assert cycled <= 1.1 * uniform + stored * 6 / 26
