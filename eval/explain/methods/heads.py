"""What each head does, told from the weights of its core: how widely and how far it looks, and at what.

Those of a head are added up slab by slab inside of the loops over layers, and never kept.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from eval.explain.targets import places
from model.attention.cores.table import attend
from model.attention.looked import Looked
from model.attention.scores import wide
from model.errors import Range, UserError, check_range
from model.families.encoder_decoder import Pairs
from model.families.family import Model
from model.inspection import seen, sites

LENGTH, ROWS = 64, 8  # of the sequences of random tokens that are repeated


class HeadStatistics(NamedTuple):
    """Of each head of a place of attention, (L, H): means over the queries that hold a token and see one; NaN where
    there is no such query, and of cross-attention where two places of one text are compared.

    `entropy` is in nats, with what a learned sink takes as one more key, and `distance`, in tokens, that from a query
    to where its weights fall. `first` is the share of the first token of each document, `sink` that of a learned sink,
    and `previous` that of the token before. `prefix` is the share of the tokens behind which came after one that is
    equal to the query's, over the queries that have such: what would come next if the text repeated itself (Olsson et
    al. 2022, who find by it heads of induction; where they say how they measure it they name the tokens before, and we
    take those after, as their definition of these heads does). `induction` is that of one token alone: of a sequence of
    n tokens that is given twice, the one n - 1 behind. `most` is the place that all queries together look at most,
    (L, B, H).
    """

    entropy: jax.Array
    distance: jax.Array
    first: jax.Array
    sink: jax.Array
    previous: jax.Array
    prefix: jax.Array
    induction: jax.Array
    most: jax.Array


class _Text(NamedTuple):
    """Tokens, which of them are any, which begin a document, and which document they are of; all (B, n)."""

    tokens: jax.Array
    real: jax.Array
    begins: jax.Array
    document: jax.Array

    @classmethod
    def of(cls, tokens: jax.Array, real: jax.Array, segment_ids: jax.Array | None) -> "_Text":
        ids = real.astype(jnp.int32) if segment_ids is None else jnp.broadcast_to(segment_ids, real.shape)
        ids = jnp.where(real, ids, -1)
        begins = real & (ids != _behind(ids))
        return cls(tokens, real, begins, jnp.cumsum(begins, axis=1))

    @property
    def before(self) -> jax.Array:
        """The token before each, -1 where a document begins."""
        return jnp.where(self.begins, -1, _behind(self.tokens))


def _behind(x: jax.Array) -> jax.Array:
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=-1)


def head_statistics(model: Model, **inputs: Any) -> dict[str, HeadStatistics]:
    """Those of all heads by place of attention: `stack`, or of pairs `encoder`, `decoder` and `cross`.

    Raises:
        UserError: a model without attention.
    """
    return _statistics(*nnx.split(_looking(model, inputs)), inputs, 0, None)


def on_repeated(model: Model, seed: int = 0, *, rows: int = ROWS, length: int = LENGTH) -> dict[str, HeadStatistics]:
    """The same of rows of random tokens, each given twice, with at most `length` places in all; both sides of pairs.

    Tokens are drawn from all of the vocabulary, without a start token.

    Raises:
        UserError: a model without attention, or sequences that are too short to be repeated.
    """
    inputs, n = repeated(model, seed, rows, length)
    return _statistics(*nnx.split(_looking(model, inputs)), inputs, n, None)


def specialised(
    model: Model, seed: int = 0, *, shuffled: bool = False, rows: int = ROWS, length: int = LENGTH
) -> dict[str, float]:
    """The largest `previous` and `prefix` over all heads that look at their own text, where it repeats itself as in
    `on_repeated`. `shuffled`, the control: the same queries, read at a place behind that is drawn by chance for each.

    Raises:
        UserError: as `on_repeated`, and a model that looks at another text alone.
    """
    inputs, n = repeated(model, seed, rows, length)
    texts, rng = _texts(_looking(model, inputs), inputs), np.random.default_rng((seed, 1))
    drawn = {
        place: rng.random(queries.real.shape) * np.arange(queries.real.shape[1]) for place, queries in texts.items()
    }
    chance = {place: jnp.asarray(x, jnp.int32) for place, x in drawn.items()} if shuffled else None
    found = _statistics(*nnx.split(model), inputs, n, chance)
    own = [np.asarray([one.previous, one.prefix]).reshape(2, -1) for place, one in found.items() if place != "cross"]
    if not own:
        raise UserError("specialised: this model attends to its sources alone, and no token looks at those before it.")
    previous, prefix = np.concatenate(own, axis=1).max(axis=1)
    return {"previous": float(previous), "prefix": float(prefix)}


def repeated(model: Model, seed: int, rows: int, length: int = LENGTH) -> tuple[dict[str, Any], int]:
    """(inputs of random tokens that come twice, after how many they begin again).

    Raises:
        UserError: fewer than two can be repeated.
    """
    config = model.config
    most = min(length, config.max_length, getattr(config, "target_length", 0) or config.max_length)
    if most < 4:
        raise UserError(f"length={most} is too short to say two tokens twice; take at least 4, and a model that does.")
    check_range("rows", rows, Range(1))
    n, sides = most // 2, 2 if "target" in config.HEADS else 1
    drawn = np.random.default_rng(seed).integers(0, config.vocab_size, (sides, rows, n), np.int32)
    texts = [jnp.asarray(np.tile(one, 2)) for one in drawn]
    return ({"pairs": Pairs(*texts)} if sides == 2 else {"tokens_BT": texts[0]}), n


def _looking(model: Model, inputs: dict[str, Any]) -> Model:
    if not any(site.endswith(".weights") for site in sites(model, **inputs)):
        raise UserError("head_statistics: this model has no attention, and so no heads.")
    return model


def _texts(model: Model, inputs: dict[str, Any]) -> dict[str, _Text]:
    """Of the queries, by place of attention."""
    real, found = places(inputs), {}
    if "pairs" in inputs:
        pairs = inputs["pairs"]
        found["encoder"] = _Text.of(pairs.sources_BS, real["encoder.embedding"], pairs.source_segment_ids_BS)
        found["decoder"] = _Text.of(pairs.tokens_BT, real["decoder.embedding"], pairs.segment_ids_BT)
        found["cross"] = found["decoder"]
    else:
        found["stack"] = _Text.of(inputs["tokens_BT"], real["embedding"], inputs.get("segment_ids_BT"))
    return found


@functools.partial(jax.jit, static_argnums=(0, 3))
def _statistics(
    graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], repeat: int, chance: dict[str, jax.Array] | None
) -> dict[str, HeadStatistics]:
    model = nnx.merge(graphdef, params)
    texts, read, found = _texts(model, inputs), {}, {}
    for site in sites(model, **inputs):
        place = "cross" if ".cross." in site else site.partition(".")[0]
        if site.endswith(".weights"):
            keys = texts["encoder"] if place == "cross" else texts[place]
            behind = None if chance is None else chance[place]
            read[site] = functools.partial(_of_layer, texts[place], keys, repeat, behind), place
    for site, (sums, counts, most) in seen(model, {site: one for site, (one, _) in read.items()}, **inputs).items():
        place = read[site][1]
        total, entropy, distance, first, sink, *own = jnp.sum(sums, axis=2).swapaxes(0, 1)  # of (L, 8, B, H)
        count, *counts_own = jnp.sum(counts, axis=2).swapaxes(0, 1)
        of_one = [distance / total, *(x / n for x, n in zip(own, counts_own, strict=True))]
        far, previous, prefix, induction = (x * jnp.nan for x in of_one) if place == "cross" else of_one
        shares = first / count, sink / count, previous, prefix, induction
        found[place] = HeadStatistics(entropy / count, far, *shares, most)
    return found


def _of_layer(
    queries: _Text, keys: _Text, repeat: int, behind_BT: jax.Array | None, looked: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(sums over queries and keys (8, B, H), numbers of queries (4, B, H), the place most looked at (B, H))."""
    T, S = queries.real.shape[1], keys.real.shape[1]
    place_1T1, place_BS = jnp.arange(T)[None, :, None], jnp.broadcast_to(jnp.arange(S)[None], keys.real.shape)
    later_1T1 = place_1T1 >= (repeat or T)  # in the second copy

    def after(place_B1k: jax.Array, before_B1k: jax.Array) -> jax.Array:
        """Whether a key is behind, after a token as the query's."""
        return (place_B1k < place_1T1) & (before_B1k == queries.tokens[..., None])

    same_BTS = queries.document[..., None] == keys.document[:, None] if T == S else jnp.ones((1, 1, 1), bool)
    any_BT1 = jnp.any(after(place_BS[:, None], keys.before[:, None]) & same_BTS, axis=-1, keepdims=True)
    has_BT1 = (queries.real & ~queries.begins)[..., None]
    total_BTH = _totals(looked)
    counted_BTH = queries.real[..., None] & (total_BTH > 0)

    def made(weights_BTHk: jax.Array, about_BkR3: jax.Array) -> jax.Array:
        place_B1k, begins_B1k, before_B1k = jnp.moveaxis(about_BkR3[:, None, :, 0], -1, 0)
        back_BTk = place_1T1 - place_B1k
        previous_BTk, prefix_BTk = back_BTk == 1, after(place_B1k, before_B1k)
        if behind_BT is not None:
            previous_BTk = prefix_BTk = place_B1k == behind_BT[..., None]
        w_BTHk = jnp.where(counted_BTH[..., None], wide(weights_BTHk), 0)
        chosen = begins_B1k == 1, has_BT1 & previous_BTk, any_BT1 & prefix_BTk, later_1T1 & (back_BTk == repeat - 1)
        first, *own = (jnp.where(one[:, :, None], w_BTHk, 0) for one in chosen)
        found = w_BTHk, _surprise(w_BTHk), w_BTHk * jnp.abs(back_BTk)[:, :, None], first, *own
        return jnp.stack([jnp.sum(x, axis=1) for x in found])

    about_BS3 = jnp.stack([place_BS, keys.begins.astype(jnp.int32), keys.before], axis=-1)
    each_7BHS = _by_slab(looked, about_BS3, made)
    sums_7BH = jnp.sum(each_7BHS, axis=-1)
    sinks = isinstance(looked, Looked) and looked.scores.sinks_H is not None
    sink_BTH = jnp.where(counted_BTH & sinks, 1 - total_BTH, 0)
    sums_7BH = sums_7BH.at[1].add(jnp.sum(_surprise(sink_BTH), axis=1))
    sums_8BH = jnp.insert(sums_7BH, 4, jnp.sum(sink_BTH, axis=1), axis=0)
    counts = [jnp.sum(counted_BTH & one, axis=1) for one in (True, has_BT1, any_BT1, later_1T1)]
    return sums_8BH, jnp.stack(counts), jnp.argmax(each_7BHS[0], axis=-1)


def _surprise(w: jax.Array) -> jax.Array:
    return jnp.where(w > 0, -w * jnp.log(jnp.where(w > 0, w, 1)), 0)


def _totals(looked: Any) -> jax.Array:
    """What the keys take together, (B, T, H): one pass of the core over values of one."""
    if not isinstance(looked, Looked):
        return jnp.sum(looked.weights(), axis=-1).swapaxes(1, 2)
    scores, ones_BSGK = looked.scores.replace(dropout=None), jnp.ones_like(looked.v_BSGK)
    return wide(attend(looked.core, looked.q_BTHK, looked.k_BSGK, ones_BSGK, scores, looked.module)[..., 0])


def _by_slab(looked: Any, about_BSn: jax.Array, made: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """`made` of weights and, where values would stand, what is known of their keys."""
    about_BS1n = about_BSn[:, :, None]
    if not isinstance(looked, Looked):
        return made(looked.weights().swapaxes(1, 2), about_BS1n)
    return looked.replace(v_BSGK=about_BS1n).by_slab(made)
