"""What is known before a model writes: its prompts as rows of tokens, in a cache."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention.masks.looking import looks_ahead
from model.errors import UserError
from model.families.encoder_decoder import Pairs
from model.families.family import Model
from model.families.table import FAMILIES
from train.data import Tokenizer, sentinels
from train.devices.placing import batch_ways
from train.tasks.table import TASKS

DEFAULT_NEW_TOKENS = 200
WRITING = ("next_token", "target")  # heads of what goes on from a prompt, or writes of a source
WIDTH = 64  # arrays are padded to multiples of this many tokens, so that few prompts need a compilation of their own


class Rows(NamedTuple):
    """The state of the loop: row b knows tokens 0 ... position_B[b], padded on the right, and stops when done_B[b]."""

    tokens_BT: jax.Array
    position_B: jax.Array
    done_B: jax.Array
    cache: Any


class Given(NamedTuple):
    """What is known of a row before anything is written: tokens, its source, if any, and how many tokens may follow."""

    tokens: list[int]
    source: list[int]
    room: int


def read_prompts(model: Model, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int | None) -> list[Given]:
    """The prompts as tokens: as the beginnings of documents, or, of a model of pairs, as sources of which all is to be
    written.

    Raises:
        UserError: there is none, or one that is empty or too long, or too many tokens are asked for.
    """
    if not prompts:
        raise UserError("there is no prompt; give --prompt=TEXT.")
    most, found = model.config.max_length, []
    for prompt in prompts:
        tokens = prompt_tokens(tokenizer, prompt)
        if "target" not in model.config.HEADS:
            found.append(Given(tokens, [], _room(len(tokens) - 1, max_new_tokens, most)))
            continue
        source = [*tokens[1:], tokenizer.end]  # as `train.tasks.translation` gives it
        if len(source) > most:
            raise UserError(
                f"the prompt has {len(source) - 1} tokens, and the model takes fewer than {most}; shorten --prompt."
            )
        found.append(Given([tokenizer.marks["start"]], source, _room(0, max_new_tokens, most)))
    return found


def start(model: Model, given: list[Given], end: int) -> tuple[Rows, np.ndarray]:
    """The prompts in arrays, with what is known of them in a cache; and the tokens that each row may have."""
    graphdef, params = nnx.split(model)
    # Rows that fill up the devices' parts are done before they begin.
    given = given + -len(given) % batch_ways() * [Given([end], [end], 0)]
    limit_B = np.array([len(one.tokens) + one.room if one.room else 0 for one in given])
    length = _padded(int(limit_B.max()) - 1, model.config.max_length)
    tokens_BT = np.zeros((len(given), length + 1), np.int32)  # the last token is never fed back
    for row, one in zip(tokens_BT, given, strict=True):
        row[: len(one.tokens)] = one.tokens
    position_B = np.array([len(one.tokens) - 1 for one in given], np.int32)
    if given[0].source:
        sources_BS = np.full((len(given), model.config.max_length), end, np.int32)
        for row, one in zip(sources_BS, given, strict=True):
            row[: len(one.source)] = one.source
        size_B = np.array([len(one.source) for one in given])
        cache = _remember(graphdef, params, sources_BS, size_B, length)
    else:
        width = _padded(int(position_B.max()) + 1, length)
        cache = _prefill(graphdef, params, tokens_BT[:, :width], position_B, length)
    # Plain arrays, which are the same for all of several processes.
    rows: Any = tokens_BT, position_B, limit_B == 0, cache
    return Rows(*rows), limit_B


@functools.partial(jax.jit, static_argnums=(0, 4))
def _remember(graphdef: nnx.GraphDef, params: nnx.State, sources_BS: jax.Array, size_B: jax.Array, length: int) -> Any:
    """The cache before anything is written of the sources, of which row b has size_B[b] tokens."""
    model = nnx.merge(graphdef, params)
    ids_BS = (jnp.arange(sources_BS.shape[1])[None] < size_B[:, None]).astype(jnp.int32)
    return model.init_cache(model.encode(Pairs(sources_BS, sources_BS, ids_BS)), ids_BS, length)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _prefill(
    graphdef: nnx.GraphDef, params: nnx.State, tokens_BT: jax.Array, position_B: jax.Array, length: int
) -> Any:
    """The cache after all tokens of the prompts but their last, which are fed first; padding is no part of it."""
    model = nnx.merge(graphdef, params)
    positions_1T = jnp.arange(tokens_BT.shape[1])[None]
    positions_BT = jnp.where(positions_1T < position_B[:, None], positions_1T, -1)
    return model.decode(tokens_BT, positions_BT, model.init_cache(len(tokens_BT), length))[1]


def check_model(model: Model, tokenizer: Tokenizer) -> None:
    """Lets a model pass that writes with this tokenizer.

    Raises:
        UserError: it does not write, was trained with another one, or sees what it is to write.
    """
    if not {*WRITING} & {*model.config.HEADS}:
        heads = {head for kind in FAMILIES.values() if {*WRITING} & {*kind.HEADS} for head in kind.HEADS}
        tasks = [name for name, task in TASKS.items() if task.HEAD in heads]
        raise UserError(
            f"the model is of a kind that does not write; take a run whose --config.task is one of: {', '.join(tasks)}."
        )
    if model.config.vocab_size != tokenizer.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens and the model {model.config.vocab_size}"
        raise UserError(f"the tokenizer has {sizes}; take both from the same run.")
    for name, site in model.config.sites.items():
        if name in ("self", "decoder") and any(
            looks_ahead(site.mask(place), model.config.max_length) for place in range(site.stack.unit)
        ):
            mask = f"--config.model.mask={model.config.mask}"
            raise UserError(f"{mask} looks ahead, so the model cannot write; train it with 'causal'.")


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The prompt as the beginning of a document; `<extra_id_0>` in it is the mark, where the tokenizer has it."""
    if not prompt:
        raise UserError("the prompt is empty; give some text: --prompt=TEXT.")
    return [tokenizer.end, *sentinels.encode(tokenizer, prompt)]


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
