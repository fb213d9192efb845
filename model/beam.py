"""Beam search: the likeliest continuations by the sum of their tokens' log-probabilities, over any cached decoding."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx

from model.errors import Range, UserError, check_range


class Cache(Protocol):
    """What decoding keeps, of which a beam takes the rows that it goes on with."""

    def taken(self, rows_B: jax.Array) -> Self:
        """The caches of these rows, in their order."""


# From tokens and positions, both (N, 1), and a cache: the logits of the next ones (N, 1, V), and the cache then.
Decode = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


class Form(NamedTuple):
    """How hypotheses of different lengths compare, which finish, and when a search ends.

    Scores are sums divided by `divisor(length, alpha)`, the end counted and the start not. Without `first`, all that
    end finish, the greedy hypothesis stays alive until it ends, whatever comes before it, and a row's search ends when
    nothing alive can come before the worst of k finished ones. With it, only those among the k best candidates of a
    step finish, a row's search ends as soon as k have, and those that reach the limit compete with them.
    """

    divisor: Callable[[Any, float], Any]
    first: bool


FORMS: dict[str, Form] = {
    # Wu et al. 2016, equation 14, without its term of coverage; it ends as in Tensor2Tensor and T5X. That greedy stays
    # alive is ours: else a search is now and then worth less than none (of 857 rows of 5 random tokens, one for k = 4).
    "wu": Form(lambda length, alpha: ((5 + length) / 6) ** alpha, first=False),
    # `early_stopping=True` of transformers 5, whose `length_penalty` is alpha.
    "huggingface": Form(lambda length, alpha: length**alpha, first=True),
}


@dataclasses.dataclass(frozen=True)
class Beam:
    """`size` k hypotheses are kept alive, and k finished ones; see `Form`.

    Raises:
        UserError: a value out of its range, or a form that does not exist.
    """

    size: int = 4
    alpha: float = 0.6
    form: str = "wu"

    def __post_init__(self) -> None:
        check_range("beam", self.size, Range(1, 1024))
        check_range("beam_alpha", self.alpha, Range(0, 10))
        if self.form not in FORMS:
            raise UserError(f"--beam_form={self.form!r} is not one of: {', '.join(FORMS)}.")

    @property
    def rules(self) -> Form:
        """The form's."""
        return FORMS[self.form]

    def score(self, sum_: Any, length: Any) -> Any:
        """The score of hypotheses with these sums of log-probabilities and lengths."""
        return sum_ / self.rules.divisor(length, self.alpha)


class Hypotheses(NamedTuple):
    """k hypotheses of each row, the best first: their tokens with the end and `end` behind it, how many of them, their
    scores, and whether they came to their end within the limit. A score of -infinity says that there is none.
    """

    tokens_BKT: jax.Array
    length_BK: jax.Array
    score_BK: jax.Array
    finished_BK: jax.Array


class _State(NamedTuple):
    """After `step` tokens: live hypotheses with the sums of their log-probabilities, the best first, which of them is
    the greedy one (if any is), the best finished ones, and which rows are done.
    """

    step: jax.Array
    tokens_BKT: jax.Array
    sum_BK: jax.Array
    greedy_BK: jax.Array
    found: Hypotheses
    done_B: jax.Array
    cache: Any


@functools.partial(jax.jit, static_argnames=("graphdef", "beam", "end", "limit"))
def search(
    graphdef: nnx.GraphDef,
    params: Any,
    cache: Any,
    token_B: jax.Array,
    position_B: jax.Array,
    *,
    beam: Beam,
    end: int,
    limit: int,
) -> Hypotheses:
    """`beam_search` with a model of any family that decodes, compiled once for each number of rows and each limit."""
    return beam_search(nnx.merge(graphdef, params).decode, cache, token_B, position_B, beam=beam, end=end, limit=limit)


def beam_search(
    decode: Decode, cache: Any, token_B: jax.Array, position_B: jax.Array, *, beam: Beam, end: int, limit: int
) -> Hypotheses:
    """The best continuations of each row, of at most `limit` tokens.

    `cache` knows what stands before `token_B`, each row's newest token, at `position_B`. It must have room for `limit`
    positions from there on.
    """
    (B,), k = token_B.shape, beam.size
    none = Hypotheses(
        jnp.full((B, k, limit), end, jnp.int32),
        jnp.zeros((B, k), jnp.int32),
        jnp.full((B, k), -jnp.inf),
        jnp.zeros((B, k), bool),
    )
    # One hypothesis is alive; else all would be the same.
    sum_BK = jnp.full((B, k), -jnp.inf).at[:, 0].set(0.0)
    rows_N = jnp.repeat(jnp.arange(B), k)
    greedy_BK = (sum_BK == 0) & (not beam.rules.first)
    state = _State(jnp.int32(0), none.tokens_BKT, sum_BK, greedy_BK, none, jnp.zeros(B, bool), cache.taken(rows_N))

    def unfinished(state: _State) -> jax.Array:
        return (state.step < limit) & ~jnp.all(state.done_B)

    def take(state: _State) -> _State:
        newest_BK = state.tokens_BKT[:, :, jnp.maximum(state.step - 1, 0)]
        newest_BK = jnp.where(state.step == 0, token_B[:, None], newest_BK)
        position_N = jnp.repeat(position_B, k) + state.step
        logits_N1V, cache = decode(newest_BK.reshape(-1, 1), position_N[:, None], state.cache)
        return _taken(state, logits_N1V[:, 0].reshape(B, k, -1), cache, beam, end, limit)

    last = jax.lax.while_loop(unfinished, take, state)
    if beam.rules.first:
        return last.found
    # What is still alive fills the places that nothing finished has.
    alive = _hypotheses(last.tokens_BKT, last.sum_BK, last.step, beam, jnp.zeros((B, k), bool))
    return _filled(last.found, alive, k)


def _taken(state: _State, logits_BKV: jax.Array, cache: Any, beam: Beam, end: int, limit: int) -> _State:
    """The state with one more token in each live hypothesis."""
    B, k, V = logits_BKV.shape
    sums_BKV = state.sum_BK[..., None] + jax.nn.log_softmax(logits_BKV.astype(jnp.float32), axis=-1)
    # The greedy one goes on by its likeliest token, before all others: infinite here, and as it is behind.
    likeliest_BKV = jnp.argmax(logits_BKV, axis=-1)[..., None] == jnp.arange(V)[None, None]
    greedy_BM = (state.greedy_BK[..., None] & likeliest_BKV).reshape(B, -1)
    sum_BM = sums_BKV.reshape(B, -1)
    # Of 2k candidates at most k end, so that k live ones remain.
    _, index_BC = jax.lax.top_k(jnp.where(greedy_BM, jnp.inf, sum_BM), min(2 * k, k * V))
    sum_BC, greedy_BC = (jnp.take_along_axis(x, index_BC, axis=1) for x in (sum_BM, greedy_BM))
    beam_BC, token_BC = index_BC // V, (index_BC % V).astype(jnp.int32)
    tokens_BCT = jnp.take_along_axis(state.tokens_BKT, beam_BC[..., None], axis=1).at[:, :, state.step].set(token_BC)
    ends_BC, step = token_BC == end, state.step + 1
    leaves_BC = ends_BC
    if beam.rules.first:
        # At the limit those that are alive compete, too.
        leaves_BC = (ends_BC | (step == limit)) & (jnp.arange(ends_BC.shape[1]) < k)[None] & ~state.done_B[:, None]
    leaving_BC = jnp.where(leaves_BC, sum_BC, -jnp.inf)
    found = _best(state.found, _hypotheses(tokens_BCT, leaving_BC, step, beam, ends_BC), k)
    going_BC = jnp.where(ends_BC, -jnp.inf, jnp.where(greedy_BC, jnp.inf, sum_BC))
    chosen_BK = jax.lax.top_k(going_BC, k)[1]
    sum_BK = jnp.take_along_axis(jnp.where(ends_BC, -jnp.inf, sum_BC), chosen_BK, axis=1)
    order_BK = jnp.argsort(-sum_BK, axis=1, stable=True)
    sum_BK, chosen_BK = (jnp.take_along_axis(x, order_BK, axis=1) for x in (sum_BK, chosen_BK))
    greedy_BK = jnp.take_along_axis(greedy_BC & ~ends_BC, chosen_BK, axis=1)
    beams_BK = jnp.take_along_axis(beam_BC, chosen_BK, axis=1)
    tokens_BKT = jnp.take_along_axis(tokens_BCT, chosen_BK[..., None], axis=1)
    worst_B, best_B = found.score_BK[:, -1], sum_BK[:, 0]
    # With k finished ones, what lives cannot come before the worst of them: sums only fall.
    over_B = worst_B > (-jnp.inf if beam.rules.first else beam.score(best_B, limit))
    rows_BK = jnp.arange(B)[:, None] * k + beams_BK
    done_B = state.done_B | over_B | (best_B == -jnp.inf)
    return _State(step, tokens_BKT, sum_BK, greedy_BK, found, done_B, cache.taken(rows_BK.reshape(-1)))


def _hypotheses(
    tokens_BCT: jax.Array, sum_BC: jax.Array, step: jax.Array, beam: Beam, ends_BC: jax.Array
) -> Hypotheses:
    return Hypotheses(tokens_BCT, jnp.full_like(sum_BC, step, jnp.int32), beam.score(sum_BC, step), ends_BC)


def _best(one: Hypotheses, other: Hypotheses, k: int) -> Hypotheses:
    """The k best of both."""
    return _picked(one, other, lambda both: jax.lax.top_k(both.score_BK, k)[1])


def _filled(finished: Hypotheses, alive: Hypotheses, k: int) -> Hypotheses:
    """The finished ones, then the best of those that are alive; both are in order."""

    def order(both: Hypotheses) -> jax.Array:
        rank_BK = jnp.where(both.finished_BK, 0, jnp.where(both.score_BK > -jnp.inf, 1, 2))
        return jnp.argsort(rank_BK, axis=1, stable=True)[:, :k]

    return _picked(finished, alive, order)


def _picked(one: Hypotheses, other: Hypotheses, order: Callable[[Hypotheses], jax.Array]) -> Hypotheses:
    both = Hypotheses(*(jnp.concatenate(parts, axis=1) for parts in zip(one, other, strict=True)))
    chosen_BK = order(both)
    return Hypotheses(*(jnp.take_along_axis(x, _like(chosen_BK, x), axis=1) for x in both))


def _like(chosen_BK: jax.Array, x: jax.Array) -> jax.Array:
    return chosen_BK.reshape(*chosen_BK.shape, *(1,) * (x.ndim - 2))
