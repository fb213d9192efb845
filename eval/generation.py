"""Text from a prompt: one jitted loop over a key/value cache, for many prompts at once."""

import codecs
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.prompting import Given, Rows, check_model, read_prompts, start
from eval.sampling import Sampling
from model.beam import Beam, search
from model.families.family import Model
from train.data import Tokenizer, sentinels
from train.devices.placing import on_host

STREAM_EVERY = 4  # tokens between two visits to the host when streaming: the text flows, and the device rarely waits

Stream = Callable[[int, str], None]


def generate(
    model: Model,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    stream: Stream | None = None,
) -> list[str]:
    """The continuation of each prompt (without the prompt), up to the end of its document or `max_new_tokens`; of a
    model of pairs, what it writes of each prompt as a source.

    A prompt and what follows it are together at most as long as the model's training windows (`config.max_length`),
    with every kind of position; `max_new_tokens=None` means 200, or as many as that leaves room for. Draws depend on
    (seed, index of the prompt, position) alone, so the other prompts of the batch change nothing. `stream(index, text)`
    gets the text while it is made. Bytes that are not UTF-8 become U+FFFD. How tokens are drawn: see
    `eval.sampling.Sampling`.

    Raises:
        UserError: no prompt or an empty one, a character outside of the vocabulary, too many tokens, a value out of its
            range, another model's tokenizer, or a mask that looks ahead.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    check_model(model, tokenizer)
    given = read_prompts(model, tokenizer, [prompts] if isinstance(prompts, str) else prompts, max_new_tokens)
    texts = [Utf8Text(functools.partial(stream or _ignore, index)) for index in range(len(given))]
    every = STREAM_EVERY if stream else max(one.room for one in given)
    for index, tokens in _continue(model, given, sampling, tokenizer.end, jax.random.key(seed), every):
        texts[index].add(b"".join(sentinels.shown(tokenizer, token) for token in tokens))
    return [text.close() for text in texts]


def generate_by_beam(
    model: Model, tokenizer: Tokenizer, prompts: str | Sequence[str], beam: Beam, *, max_new_tokens: int | None = None
) -> list[str]:
    """As `generate`, where nothing is drawn: the text is the best hypothesis of a beam search.

    Raises:
        UserError: as `generate`.
    """
    check_model(model, tokenizer)
    given = read_prompts(model, tokenizer, [prompts] if isinstance(prompts, str) else prompts, max_new_tokens)
    texts = [Utf8Text(functools.partial(_ignore, index)) for index in range(len(given))]
    for index, tokens in _search(model, given, beam, tokenizer.end):
        texts[index].add(b"".join(sentinels.shown(tokenizer, token) for token in tokens))
    return [text.close() for text in texts]


class Utf8Text:
    """Collects bytes as text, and hands on each piece as soon as its last character is whole."""

    def __init__(self, show: Callable[[str], None]):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._show, self._pieces = show, [""]

    def add(self, data: bytes, last: bool = False) -> None:
        """Takes more bytes; those of an unfinished character wait for the next call, unless this is the last."""
        piece = self._decoder.decode(data, last)
        if piece:
            self._pieces.append(piece)
            self._show(piece)

    def close(self) -> str:
        """The whole text."""
        self.add(b"", last=True)
        return "".join(self._pieces)


def _continue(
    model: Model,
    given: list[Given],
    sampling: Sampling,
    end: int,
    key: jax.Array,
    every: int,
) -> Iterator[tuple[int, list[int]]]:
    """Yields (index of the prompt, its next tokens without `end`) after each `every` tokens."""
    graphdef, params = nnx.split(model)
    shown_B = np.array([len(one.tokens) for one in given])
    rows, limit_B = start(model, given, end)
    while not np.all(on_host(rows.done_B)):
        rows = _advance(graphdef, params, rows, limit_B, key, every, sampling=sampling, end=end)
        tokens_BT, position_B = on_host((rows.tokens_BT, rows.position_B))
        known_B = position_B[: len(shown_B)] + 1
        for index, (tokens_T, shown, known) in enumerate(zip(tokens_BT, shown_B, known_B, strict=False)):
            yield index, [token for token in tokens_T[shown:known].tolist() if token != end]
        shown_B = known_B


def _search(model: Model, given: list[Given], beam: Beam, end: int) -> Iterator[tuple[int, list[int]]]:
    """Yields (index of the prompt, the tokens of its best hypothesis without `end`); rows of equal room together."""
    graphdef, params = nnx.split(model)
    for room in sorted({one.room for one in given}):
        some = [index for index, one in enumerate(given) if one.room == room]
        rows, _ = start(model, [given[index] for index in some], end)
        token_B = rows.tokens_BT[np.arange(len(rows.position_B)), rows.position_B]
        found = on_host(search(graphdef, params, rows.cache, token_B, rows.position_B, beam=beam, end=end, limit=room))
        for index, tokens_KT, length_K in zip(some, found.tokens_BKT, found.length_BK, strict=False):
            yield index, [token for token in tokens_KT[0, : length_K[0]].tolist() if token != end]


@functools.partial(jax.jit, static_argnames=("graphdef", "sampling", "end"), donate_argnames="rows")
def _advance(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    rows: Rows,
    limit_B: jax.Array,
    key: jax.Array,
    most: jax.Array,
    *,
    sampling: Sampling,
    end: int,
) -> Rows:
    """Up to `most` more tokens in each row that has neither met `end` nor filled its limit_B tokens."""
    model = nnx.merge(graphdef, params)
    row_B = jnp.arange(len(rows.position_B))
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)

    def unfinished(carry: tuple[jax.Array, Rows]) -> jax.Array:
        taken, rows = carry
        return (taken < most) & ~jnp.all(rows.done_B)

    def take(carry: tuple[jax.Array, Rows]) -> tuple[jax.Array, Rows]:
        taken, (tokens_BT, position_B, done_B, cache) = carry
        # The newest token is fed at its own position. A row that is done feeds its last one again, for nobody.
        newest_B1 = tokens_BT[row_B, position_B][:, None]
        logits_B1V, cache = model.decode(newest_B1, position_B[:, None], cache)
        next_B = sampling.draw(logits_B1V[:, 0], jax.vmap(jax.random.fold_in)(keys_B, position_B + 1))
        # What a finished row draws lies behind its last token, where nobody reads it, or outside of the array.
        tokens_BT = tokens_BT.at[row_B, position_B + 1].set(next_B, mode="drop")
        position_B = jnp.where(done_B, position_B, position_B + 1)
        done_B |= (next_B == end) | (position_B + 1 >= limit_B)
        return taken + 1, Rows(tokens_BT, position_B, done_B, cache)

    return jax.lax.while_loop(unfinished, take, (jnp.int32(0), rows))[1]


def _ignore(index: int, text: str) -> None:
    """Streams to nobody."""
