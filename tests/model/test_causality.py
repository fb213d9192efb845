"""No token knows what comes after it or what another document says, and decoding with a cache is the same model."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.attention import MASKS, parse_mask, segments
from model.cycles import cycle
from model.stack.context import Context
from tests.model import reference
from tests.model.test_gpt import B, H, K, T, assert_same, compiled, documents, model
from tests.tiers import tiered


def looks_back(text: str) -> bool:
    return not np.triu(reference.mask_matrix(text, T, T), 1).any()


LOOKING_BACK = [text for text in reference.MASKS if looks_back(text)]
BACK_WITH_BIAS = list(zip(LOOKING_BACK, itertools.cycle(reference.BIASES)))


@pytest.mark.parametrize(
    ("text", "bias", "unroll"),
    tiered(
        [("causal", "none", 2), *((text, bias, 1) for text, bias in BACK_WITH_BIAS)],
        lambda text, bias, unroll: unroll == 1 and LOOKING_BACK.index(text) % 2 == 0,
    ),
)
def test_no_output_has_a_gradient_from_a_later_input(text: str, bias: str, unroll: int) -> None:
    """Exactly zero for s > t, with all layers, cached and not; and not zero where a path exists."""
    m = model(mask=text, bias=bias, unroll=unroll, num_layers=2)
    mask, x_BTD = parse_mask(text), np.random.default_rng(5).standard_normal((2, T, H * K)).astype(np.float32)
    positions_BT = np.tile(np.arange(T), (2, 1))

    @compiled
    def gradients(params: Any) -> tuple[jax.Array, jax.Array]:
        gpt = m.merge(params)
        context = cycle(Context(mask, gpt.attention_bias(), gpt.position.rotation(positions_BT)))

        def rows(call: Any) -> jax.Array:
            """(T, B, T, D): what output t, all of its entries weighed, takes from each input."""
            cotangents = jnp.eye(T)[:, None, :, None] * jnp.sin(jnp.arange(1.0, H * K + 1))[None, None, None]
            back = jax.vjp(call, x_BTD)[1]
            return jax.vmap(lambda one: back(jnp.broadcast_to(one, x_BTD.shape))[0])(cotangents)

        cache = gpt.init_cache(2, T)
        return rows(lambda x: gpt.stack(x, context)), rows(
            lambda x: gpt.stack.decode(x, context, cache, positions_BT)[0]
        )

    reached = np.linalg.matrix_power(reference.mask_matrix(text, T, T).astype(int), 2) > 0
    for gradient in map(np.asarray, gradients(m.params)):
        seen = np.any(gradient != 0, axis=(1, 3))
        np.testing.assert_array_equal(seen, reached)


# One expression of each name: the first in which it occurs.
EACH_MASK = {name: next(text for text in reference.MASKS if name in text) for name in MASKS}
PACKED = [*dict.fromkeys(EACH_MASK.values())]


@pytest.mark.parametrize(
    "text", tiered([(text,) for text in PACKED], lambda text: PACKED.index(text) % 2 == 0 or text == "causal")
)
def test_a_packed_document_is_what_it_is_alone(text: str) -> None:
    """Positions restart, also for masks and biases: as in a row of its own."""
    m = model(position="rope", bias="fire(3, length=2.0)", num_layers=2, mask=text)
    ids_BT, positions_BT = documents()
    run = compiled(lambda params, tokens_BT, *rest: m.merge(params)(tokens_BT, *rest))
    packed = run(m.params, m.tokens_BT, ids_BT, positions_BT)
    # All alone, each at the beginning of a row, and nothing of a row's end looks at it.
    firsts = list(zip(*np.nonzero(positions_BT == 0), strict=True))
    lengths = [int((ids_BT[b] == ids_BT[b, start]).sum()) for b, start in firsts]
    alone_NT = np.zeros((len(firsts), T), np.int32)
    for row, (b, start), length in zip(alone_NT, firsts, lengths, strict=True):
        row[:length] = m.tokens_BT[b, start : start + length]
    real_NT = np.arange(T)[None] < np.array(lengths)[:, None]
    alone = run(m.params, alone_NT, real_NT.astype(np.int32))
    for (b, start), length, logits_TV in zip(firsts, lengths, alone, strict=True):
        assert_same(packed[b, start : start + length], logits_TV[:length], 1e-4)


def test_no_gradient_crosses_a_border() -> None:
    """Exactly zero."""
    m = model(position="rope", bias="fire(3, length=2.0)", num_layers=3)
    ids_BT, positions_BT = documents()

    @compiled
    def crossing(params: Any, x_BTD: jax.Array, chosen_BT: jax.Array) -> jax.Array:
        gpt = m.merge(params)
        mask, rotation = parse_mask("causal") & segments(ids_BT), gpt.position.rotation(positions_BT)
        context = cycle(Context(mask, gpt.attention_bias(jnp.asarray(positions_BT)), rotation))
        return jax.grad(lambda x: jnp.where(chosen_BT[..., None], jnp.sin(gpt.stack(x, context)), 0).sum())(x_BTD)

    x_BTD = np.random.default_rng(5).standard_normal((B, T, H * K)).astype(np.float32)
    for number in range(1, ids_BT.max() + 1):
        np.testing.assert_array_equal(np.any(crossing(m.params, x_BTD, ids_BT == number) != 0, -1), ids_BT == number)


# Masks, positions and biases meet nowhere: each has to occur, and not each with each.
KINDS = {"mask": LOOKING_BACK, "bias": list(reference.BIASES), "position": list(reference.POSITIONS)}
DECODED = [
    {key: names[number % len(names)] for key, names in KINDS.items()} for number in range(max(map(len, KINDS.values())))
]


def test_all_of_them_are_decoded() -> None:
    for key, names in KINDS.items():
        assert {case[key] for case in DECODED} == set(names)


@pytest.mark.parametrize(
    ("choices", "chunks"),
    tiered(
        [({"soft_cap": 1.3, "sinks": True}, (2, 1, 2, 1)), *((case, (2, 2, 2)) for case in DECODED)],
        lambda case, _: case not in DECODED[1::2],
    ),
    ids=lambda one: "-".join(map(str, one.values() if isinstance(one, dict) else one)),
)
def test_decoding_in_chunks_is_the_full_forward_pass(choices: dict[str, Any], chunks: tuple[int, ...]) -> None:
    """Prompts of different lengths, padded on the right at no position; then chunks at each row's own positions."""
    m = model(**choices)
    decode = compiled(lambda params, *args: m.merge(params).decode(*args))
    expected = reference.gpt(m.params, m.config, m.tokens_BT).logits_BTV
    done_B = np.array([1, 2, 3, 5, 4])
    positions_BT = np.tile(np.arange(5), (B, 1))
    positions_BT = np.where(positions_BT < done_B[:, None], positions_BT, -1)
    prompts_BT = np.where(positions_BT < 0, 0, m.tokens_BT[:, :5])
    logits_BTV, cache = decode(m.params, prompts_BT, positions_BT, m.merge(m.params).init_cache(B, T))
    for b in range(B):
        assert_same(logits_BTV[b, : done_B[b]], expected[b, : done_B[b]], 1e-4)
    for size in chunks:
        positions_BT = done_B[:, None] + np.arange(size)[None]
        chunk_BT = np.take_along_axis(m.tokens_BT, positions_BT, axis=1)
        logits_BTV, cache = decode(m.params, chunk_BT, positions_BT, cache)
        assert_same(logits_BTV, np.take_along_axis(expected, positions_BT[..., None], axis=1), 1e-4)
        done_B = done_B + size
