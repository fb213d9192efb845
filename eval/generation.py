"""Text from a prompt: one jitted loop over a key/value cache, for many prompts at once."""

import codecs
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.sampling import Sampling
from model.attention.masks.looking import looks_ahead
from model.errors import UserError
from model.family import Model
from model.stack.caches import Caches
from train.data import Tokenizer
from train.devices.placing import batch_ways, on_host

DEFAULT_NEW_TOKENS = 200
STREAM_EVERY = 4  # tokens between two visits to the host when streaming: the text flows, and the device rarely waits
WIDTH = 64  # arrays are padded to multiples of this many tokens, so that few prompts need a compilation of their own

Stream = Callable[[int, str], None]


class Rows(NamedTuple):
    """The state of the loop: row b knows tokens 0 ... position_B[b], padded on the right, and stops when done_B[b]."""

    tokens_BT: jax.Array
    position_B: jax.Array
    done_B: jax.Array
    cache: Caches


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
    """The continuation of each prompt (without the prompt), up to the end of its document or `max_new_tokens`.

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
    _check(model, tokenizer)
    rows = [prompt_tokens(tokenizer, prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
    if not rows:
        raise UserError("there is no prompt; give --prompt=TEXT.")
    room_B = [_room(len(row) - 1, max_new_tokens, model.config.max_length) for row in rows]
    texts = [Utf8Text(functools.partial(stream or _ignore, index)) for index in range(len(rows))]
    every = STREAM_EVERY if stream else max(room_B)
    for index, tokens in _continue(model, rows, room_B, sampling, tokenizer.end, jax.random.key(seed), every):
        texts[index].add(b"".join(tokenizer.token_bytes(token) for token in tokens))
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
    prompts: list[list[int]],
    room_B: list[int],
    sampling: Sampling,
    end: int,
    key: jax.Array,
    every: int,
) -> Iterator[tuple[int, list[int]]]:
    """Yields (index of the prompt, its next tokens without `end`) after each `every` tokens."""
    graphdef, params = nnx.split(model)
    shown_B = np.array([len(prompt) for prompt in prompts])
    limit_B = shown_B + np.array(room_B)
    # Rows that fill up the devices' parts are done before they begin.
    prompts, limit_B = prompts + (fill := -len(prompts) % batch_ways()) * [[end]], np.pad(limit_B, (0, fill))
    rows = _start(graphdef, params, prompts, limit_B, _padded(int(limit_B.max()) - 1, model.config.max_length))
    while not np.all(on_host(rows.done_B)):
        rows = _advance(graphdef, params, rows, limit_B, key, every, sampling=sampling, end=end)
        tokens_BT, position_B = on_host((rows.tokens_BT, rows.position_B))
        known_B = position_B[: len(shown_B)] + 1
        for index, (tokens_T, shown, known) in enumerate(zip(tokens_BT, shown_B, known_B, strict=False)):
            yield index, [token for token in tokens_T[shown:known].tolist() if token != end]
        shown_B = known_B


def _start(
    graphdef: nnx.GraphDef, params: nnx.State, prompts: list[list[int]], limit_B: np.ndarray, length: int
) -> Rows:
    """The prompts in arrays, and their keys and values in a cache of `length` positions."""
    tokens_BT = np.zeros((len(prompts), length + 1), np.int32)  # the last token is never fed back
    for row, prompt in zip(tokens_BT, prompts, strict=True):
        row[: len(prompt)] = prompt
    position_B = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
    width = _padded(int(position_B.max()) + 1, length)
    cache = _prefill(graphdef, params, tokens_BT[:, :width], position_B, length)
    # Plain arrays, which are the same for all of several processes.
    rows: Any = tokens_BT, position_B, limit_B == 0, cache
    return Rows(*rows)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _prefill(
    graphdef: nnx.GraphDef, params: nnx.State, tokens_BT: jax.Array, position_B: jax.Array, length: int
) -> Caches:
    """The cache after all tokens of the prompts but their last, which are fed first; padding is no part of it."""
    model = nnx.merge(graphdef, params)
    positions_1T = jnp.arange(tokens_BT.shape[1])[None]
    positions_BT = jnp.where(positions_1T < position_B[:, None], positions_1T, -1)
    return model.decode(tokens_BT, positions_BT, model.init_cache(len(tokens_BT), length))[1]


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


def _check(model: Model, tokenizer: Tokenizer) -> None:
    if "next_token" not in model.config.HEADS:
        raise UserError("the model is of a kind that does not write; take a run of --config.task=language_model.")
    if model.config.vocab_size != tokenizer.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens and the model {model.config.vocab_size}"
        raise UserError(f"the tokenizer has {sizes}; take both from the same run.")
    for site in model.config.sites.values():
        if any(looks_ahead(site.mask(place), model.config.max_length) for place in range(site.stack.unit)):
            mask = f"--config.model.mask={model.config.mask}"
            raise UserError(f"{mask} looks ahead, so the model cannot write; train it with 'causal'.")


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt as the beginning of a document."""
    if not prompt:
        raise UserError("the prompt is empty; give some text: --prompt=TEXT.")
    return [tokenizer.end, *tokenizer.encode(prompt)]


def _room(prompt: int, max_new_tokens: int | None, max_length: int) -> int:
    """How many tokens may follow a prompt of so many.

    The `end` that opens the document needs no room beside them: the last new token is never fed to the model.
    """
    if prompt >= max_length:
        raise UserError(
            f"the prompt has {prompt} tokens, and the model takes fewer than {max_length}; shorten --prompt."
        )
    if max_new_tokens is None:
        return min(DEFAULT_NEW_TOKENS, max_length - prompt)
    if max_new_tokens < 1:
        raise UserError(f"--max_new_tokens={max_new_tokens} must be at least 1.")
    if prompt + max_new_tokens > max_length:
        total = f"{prompt} + {max_new_tokens} = {prompt + max_new_tokens} tokens"
        raise UserError(
            f"prompt and --max_new_tokens make {total}, and the model takes {max_length}; lower --max_new_tokens."
        )
    return max_new_tokens


def _padded(length: int, most: int) -> int:
    return min(most, -(-length // WIDTH) * WIDTH)


def _ignore(index: int, text: str) -> None:
    """Streams to nobody."""
