"""Beam search beside all sequences there are, beside a loop over lists, and cached beside the full pass."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model import GPTConfig, UserError
from model.beam import FORMS, Beam, Hypotheses, beam_search, search
from model.families.encoder_decoder import EncoderDecoderConfig, Pairs
from tests.model import reference
from tests.tiers import tiered

V, LIMIT, END, START = 5, 4, 2, 1
# How likely a token is after a prefix, which a number stands for: nothing is forgotten, and no two agree.
TABLE = np.random.default_rng(0).normal(scale=1.5, size=(7 * V ** (LIMIT + 1), V)).astype(np.float32)
Scores = Callable[[list[int]], np.ndarray]  # from the tokens of a row, its start first, to log-probabilities (V,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefixes:
    """A cache that knows the number of each row's prefix."""

    number_N: jax.Array

    def taken(self, rows_B: jax.Array) -> "Prefixes":
        return Prefixes(self.number_N[rows_B])


def decode(tokens_N1: jax.Array, positions_N1: jax.Array, cache: Prefixes) -> tuple[jax.Array, Prefixes]:
    number_N = (cache.number_N * V + tokens_N1[:, 0]) % len(TABLE)
    return jnp.asarray(TABLE)[number_N][:, None], Prefixes(number_N)


def table_scores(row: int) -> Scores:
    def scores(tokens: list[int]) -> np.ndarray:
        number = row
        for token in tokens:
            number = (number * V + token) % len(TABLE)
        return log_softmax(TABLE[number])

    return scores


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    x = logits_V.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@functools.partial(jax.jit, static_argnames=("beam", "limit"))
def found(numbers_B: jax.Array, beam: Beam, limit: int) -> Hypotheses:
    start_B = jnp.full(len(numbers_B), START)
    return beam_search(decode, Prefixes(numbers_B), start_B, jnp.zeros_like(start_B), beam=beam, end=END, limit=limit)


class Written(NamedTuple):
    """A hypothesis as a list, with its end."""

    tokens: list[int]
    score: float
    finished: bool


def divided(total: float, length: int, beam: Beam) -> float:
    """Wu et al. 2016, equation 14, or the power of the length; the end is counted, and the start is not."""
    return total / (((5 + length) / 6) ** beam.alpha if beam.form == "wu" else length**beam.alpha)


def looped(scores: Scores, beam: Beam, limit: int) -> list[Written]:
    """The same search over lists, which in the default form goes on to the limit: its stop may change nothing."""
    live: list[tuple[list[int], float]] = [([], 0.0)]
    done: list[Written] = []
    for step in range(1, limit + 1):
        if beam.form == "huggingface" and len(done) == beam.size:
            break
        new = [
            ([*tokens, token], total + more)
            for tokens, total in live
            for token, more in enumerate(scores([START, *tokens]))
        ]
        new.sort(key=lambda one: -one[1])
        # In the default form the greedy one is never the one that is left out.
        best = greedy(scores, limit)[0][:step] if beam.form == "wu" else []
        kept = [one for one in new if one[0] == best]
        new = ordered([*kept, *(one for one in new if one[0] != best)][: 2 * beam.size])
        for place, (tokens, total) in enumerate(new):
            ends = tokens[-1] == END
            may = ends if beam.form == "wu" else place < beam.size and (ends or step == limit)
            if may:
                done.append(Written(tokens, divided(total, step, beam), ends))
        done = sorted(done, key=lambda one: -one.score)[: beam.size]
        alive = [one for one in new if one[0][-1] != END]
        kept = [one for one in alive if one[0] == best]
        live = ordered([*kept, *(one for one in alive if one[0] != best)][: beam.size])
    if beam.form == "wu":
        done += [Written(tokens, divided(total, limit, beam), False) for tokens, total in live]
    return done[: beam.size]


def ordered(hypotheses: list[tuple[list[int], float]]) -> list[tuple[list[int], float]]:
    return sorted(hypotheses, key=lambda one: -one[1])


def as_lists(found: Hypotheses, row: int) -> list[Written]:
    parts = zip(*(np.asarray(x)[row] for x in found), strict=True)
    return [Written(t[:n].tolist(), float(s), bool(f)) for t, n, s, f in parts if s > -np.inf]


def assert_written(one: list[Written], other: list[Written]) -> None:
    assert [(x.tokens, x.finished) for x in one] == [(x.tokens, x.finished) for x in other]
    np.testing.assert_allclose([x.score for x in one], [x.score for x in other], rtol=1e-5)


# In the last three, plain beams of 2 or 3 lose sight of the greedy one.
ROWS = np.array([1, 2, 3, 4, 283, 463, 715])
BEAMS = [
    Beam(size, alpha, form)
    for size, (form, alpha) in itertools.product(
        (1, 2, 3, 7), (("wu", 0.6), ("wu", 3.0), ("huggingface", 0.0), ("huggingface", 2.0))
    )
]


def test_a_beam_that_holds_every_prefix_finds_what_is_best_of_all() -> None:
    for form in FORMS:
        beam = Beam(170, 0.6, form)
        hypotheses = found(jnp.asarray(ROWS[:2]), beam, LIMIT)
        for row, number in enumerate(ROWS[:2]):
            scores, everything = table_scores(number), []
            for length in range(1, LIMIT + 1):
                for tokens in itertools.product(range(V), repeat=length):
                    ends = tokens[-1] == END
                    if END in tokens[:-1] or not (ends or length == LIMIT):
                        continue
                    total = sum(scores([START, *tokens[:n]])[tokens[n]] for n in range(length))
                    everything.append(Written(list(tokens), divided(total, length, beam), ends))
            # In the default form what has not ended stands behind all that has.
            everything.sort(key=lambda one: (form == "wu" and not one.finished, -one.score))
            assert sum(one.finished for one in everything) == 85
            assert_written(as_lists(hypotheses, row), everything[:170])


@pytest.mark.parametrize("beam", tiered([(beam,) for beam in BEAMS], lambda beam: beam.size == 3), ids=str)
def test_it_finds_what_a_loop_finds(beam: Beam) -> None:
    """Rows end at different times."""
    hypotheses = found(jnp.asarray(ROWS), beam, 9)
    for row, number in enumerate(ROWS):
        assert_written(as_lists(hypotheses, row), looped(table_scores(number), beam, 9))


def test_a_row_alone_stops_when_nothing_can_be_lost() -> None:
    """Beside others it goes on until all are done; where long ones count for much, it may not stop early."""
    for number in range(25):
        written = as_lists(found(jnp.array([number]), Beam(2, 3.0), 9), 0)
        assert_written(written, looped(table_scores(number), Beam(2, 3.0), 9))


@pytest.mark.parametrize("beam", [BEAMS[8], BEAMS[10]], ids=str)
def test_each_hypothesis_is_there_once_and_ends_once(beam: Beam) -> None:
    hypotheses = found(jnp.asarray(ROWS), beam, 9)
    for row in range(len(ROWS)):
        written = as_lists(hypotheses, row)
        assert len({tuple(one.tokens) for one in written}) == len(written) == beam.size
        for one, tokens_T in zip(written, np.asarray(hypotheses.tokens_BKT)[row], strict=True):
            assert END not in one.tokens[:-1]
            assert one.finished == (one.tokens[-1] == END)
            assert one.finished or len(one.tokens) == 9
            assert np.all(tokens_T[len(one.tokens) :] == END)


def greedy(scores: Scores, limit: int) -> tuple[list[int], float]:
    tokens: list[int] = []
    total = 0.0
    while len(tokens) < limit and (not tokens or tokens[-1] != END):
        now = scores([START, *tokens])
        tokens.append(int(now.argmax()))
        total += now.max()
    return tokens, total


def test_a_beam_of_one_is_greedy_in_the_form_where_the_first_may_finish() -> None:
    numbers = np.arange(200)
    beam = Beam(1, 0.6, "huggingface")
    hypotheses = found(jnp.asarray(numbers), beam, 9)
    for row, number in enumerate(numbers):
        tokens, total = greedy(table_scores(number), 9)
        expected = Written(tokens, divided(total, len(tokens), beam), tokens[-1] == END)
        assert_written(as_lists(hypotheses, row), [expected])


@pytest.mark.parametrize("size", tiered([(1,), (2,), (4,)], lambda size: size == 2))
def test_no_search_of_the_default_form_is_worth_less_than_greedy(size: int) -> None:
    """Where greedy ends; among these rows are some in which plain beams of 2 and 4 lose sight of it."""
    numbers, ended = np.arange(1000), 0
    hypotheses = found(jnp.asarray(numbers), Beam(size), 9)
    best = [as_lists(hypotheses, row)[0] for row in range(len(numbers))]
    for one, number in zip(best, numbers, strict=True):
        tokens, total = greedy(table_scores(number), 9)
        if tokens[-1] == END:
            ended += 1
            assert one.finished
            assert one.score >= divided(total, len(tokens), Beam()) - 1e-5
    assert ended == 857


@functools.cache
def translator() -> tuple[Any, Any, Pairs]:
    """A small encoder-decoder far from uniform, and three sources of different lengths."""
    sizes: dict[str, Any] = {"vocab_size": 7, "max_length": 11, "num_layers": 2, "width": 12, "num_heads": 3}
    config = EncoderDecoderConfig(**sizes, mask="causal + (causal & window(2))", bias="t5_causal(5, 7)", tied=False)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))
    params = reference.random_params(nnx.to_pure_dict(shapes), np.random.default_rng(6))
    sources_BS = np.random.default_rng(6).integers(0, 7, (3, 11))
    ids_BS = (np.arange(11)[None] < np.array([[11], [1], [6]])).astype(np.int32)
    return graphdef, jax.tree.map(lambda x: 1.5 * x, params), Pairs(sources_BS, np.full((3, 1), START), ids_BS)


@functools.cache
def writer() -> tuple[Any, Any]:
    """A small GPT whose caches roll over."""
    sizes: dict[str, Any] = {"vocab_size": 7, "max_length": 11, "num_layers": 2, "width": 12, "num_heads": 3}
    config = GPTConfig(**sizes, mask="causal & window(2)", tied=False)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))
    params = reference.random_params(nnx.to_pure_dict(shapes), np.random.default_rng(6))
    return graphdef, jax.tree.map(lambda x: 1.5 * x, params)


def full_pass(logits: Callable[[np.ndarray], Any], row: int) -> Scores:
    """Of a row of what `logits` makes of (3, 11) tokens, padded behind where nothing looks."""

    def scores(tokens: list[int]) -> np.ndarray:
        tokens_BT = np.zeros((3, 11), int)
        tokens_BT[row, : len(tokens)] = tokens
        return log_softmax(np.asarray(logits(tokens_BT))[row, len(tokens) - 1])

    return scores


@pytest.mark.rest
@pytest.mark.parametrize("form", FORMS)
def test_cached_is_the_full_pass_of_an_encoder_decoder(form: str) -> None:
    """Each beam looks at its own row's source, and goes on from its own past; one program serves all."""
    (graphdef, params, pairs), beam = translator(), Beam(3, 1.0, form)

    @jax.jit
    def start(params: Any, pairs: Pairs) -> Any:
        model = nnx.merge(graphdef, params)
        return model.init_cache(model.encode(pairs), pairs.source_segment_ids_BS, 10)

    @jax.jit
    def logits(tokens_BT: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(pairs._replace(tokens_BT=tokens_BT))

    run = functools.partial(search, graphdef, params, beam=beam, end=END, limit=10)
    starts = np.full(3, START), np.zeros(3, np.int32)
    hypotheses = run(start(params, pairs), *starts)
    for row in range(3):
        assert_written(as_lists(hypotheses, row), looped(full_pass(logits, row), beam, 10))
    programs, turned = search._cache_size(), Pairs(*(None if x is None else x[::-1] for x in pairs))
    again = run(start(params, turned), *starts)
    assert search._cache_size() == programs
    np.testing.assert_array_equal(again.tokens_BKT[::-1], hypotheses.tokens_BKT)


@pytest.mark.rest
def test_cached_is_the_full_pass_of_a_decoder_behind_its_prompts() -> None:
    (graphdef, params), beam = writer(), Beam(3)
    logits = jax.jit(lambda tokens_BT: nnx.merge(graphdef, params)(tokens_BT))
    prompts = [[4, 5, 3, START], [START], [6, START]]
    tokens_BT, positions_BT = np.zeros((3, 4), int), np.full((3, 4), -1)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, : len(prompt)], positions_BT[b, : len(prompt) - 1] = prompt, range(len(prompt) - 1)

    @jax.jit
    def prefilled(tokens_BT: jax.Array, positions_BT: jax.Array) -> Any:
        model = nnx.merge(graphdef, params)
        return model.decode(tokens_BT, positions_BT, model.init_cache(3, 11))[1]

    positions_B = np.array([len(prompt) - 1 for prompt in prompts])
    cache = prefilled(tokens_BT, positions_BT)
    hypotheses = search(graphdef, params, cache, np.full(3, START), positions_B, beam=beam, end=END, limit=7)
    for row, prompt in enumerate(prompts):
        scores = full_pass(logits, row)
        expected = looped(lambda tokens, scores=scores, prompt=prompt: scores([*prompt, *tokens[1:]]), beam, 7)
        assert_written(as_lists(hypotheses, row), expected)


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"size": 0}, "--beam=0 must be at least 1 and at most 1024."),
        ({"alpha": -1.0}, "--beam_alpha=-1.0 must be at least 0 and at most 10."),
        ({"form": "fairseq"}, "--beam_form='fairseq' is not one of: wu, huggingface."),
    ],
)
def test_refusals(choices: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Beam(**choices)
    assert str(error.value) == sentence
