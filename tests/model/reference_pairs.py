"""The encoder-decoder once more, in NumPy float64, row by row, from the parts of tests/model/reference.py."""

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from model.families.encoder_decoder import EncoderDecoderConfig, Pairs
from tests.model import reference
from tests.model.reference import Array, Tree


class Output(NamedTuple):
    """Logits (B, T, V), and the weights (L, B, H, ...) of each site."""

    logits_BTV: Array
    weights: dict[str, Array]


class Sequence(NamedTuple):
    """One side of one row: its tokens, the numbers of their pairs (0: padding), and where each stands in its own."""

    tokens_T: Array
    ids_T: Array
    positions_T: Array


def encoder_decoder(params: Tree, config: EncoderDecoderConfig, pairs: Pairs) -> Output:
    """The whole model; `params` is the pure dict of its parameters."""
    p, rows = reference._float64(params), []
    for b in range(len(pairs.tokens_BT)):
        source = _sequence(b, pairs.sources_BS, pairs.source_segment_ids_BS, pairs.source_positions_BS)
        rows.append(_row(p, config, source, _sequence(b, pairs.tokens_BT, pairs.segment_ids_BT, pairs.positions_BT)))
    weights = {site: np.array([row[1][site] for row in rows]).swapaxes(0, 1) for site in rows[0][1]}
    return Output(np.array([row[0] for row in rows]), weights)


def _sequence(b: int, tokens_BT: Any, ids_BT: Any, positions_BT: Any) -> Sequence:
    T = len(tokens_BT[b])
    ids_T = np.ones(T, int) if ids_BT is None else ids_BT[b]
    return Sequence(tokens_BT[b], ids_T, np.arange(T) if positions_BT is None else positions_BT[b])


def _row(p: Tree, config: EncoderDecoderConfig, source: Sequence, written: Sequence) -> tuple[Array, dict[str, Array]]:
    table = p["embed"]["embedding"]
    memory_SD, encoder = _side(p["encoder"], config.encoder, table, source)
    x_TD, decoder = _side(p["decoder"], config, table, written, (memory_SD, source.ids_T))
    x_TD = x_TD * (config.logits_scale or config.width**-0.5)
    logits_TV = x_TD @ (table.T if config.tied else p["head"]["kernel"]) + p.get("head", {}).get("bias", 0.0)
    cap = config.logits_soft_cap
    found = {"encoder": encoder["attention"], "decoder": decoder["attention"], "cross": decoder["cross"]}
    return cap * np.tanh(logits_TV / cap) if cap else logits_TV, found


def _side(
    p: Tree, config: Any, table_VD: Array, own: Sequence, memory: tuple[Array, Array] | None = None
) -> tuple[Array, dict[str, Array]]:
    """What one stack makes of one row, and the weights (L, H, ...) of its attention and cross-attention."""
    norm, T, real_T1 = reference.NORMS[config.norm], len(own.tokens_T), own.ids_T[:, None] != 0
    added, learned = reference.POSITIONS[config.at(0).position][0], p.get("position", {}).get("table")
    added_TD = np.array([np.zeros(config.width) + added(learned, n, config.width) for n in own.positions_T])
    x = reference.EMBEDDINGS[config.embedding](
        np.where(real_T1, table_VD[own.tokens_T], 0),
        np.where(real_T1, added_TD, 0),
        lambda x: norm(x, p["embedding_norm"]),
    )
    places, handed, none_H = np.ix_(own.positions_T, own.positions_T), dict[str, Array](), np.ones(config.num_heads)
    found: dict[str, list[Array]] = {"attention": [], "cross": []}
    for number in range(config.num_layers):
        one, block = config.at(number), reference._take(_without_cross(p), number, config)
        mask_TT = reference.mask_matrix(one.mask, T, T)[places] & (own.ids_T[:, None] == own.ids_T) & real_T1.T
        bias = reference.bias_parameters(p, config, one.bias)
        bias_HTT = reference.bias_array(one.bias, bias, config.num_heads, np.arange(T), np.arange(T), own.positions_T)
        rest = mask_TT, (own.positions_T, own.positions_T), none_H, bias_HTT, handed
        attend = functools.partial(reference._attend, found["attention"], block["attention"], one, rest)
        branches = {"attention": attend}
        if memory is not None:
            cross = p["stack"]["blocks"]["cross"]
            branches["cross"] = functools.partial(_look, found["cross"], cross, number, config, memory, own.ids_T)
        branches["mlp"] = functools.partial(reference.mlp, block["mlp"], config.mlp)

        def normed(name: str, y: Array, block: Tree = block) -> Array:
            return norm(y, block[f"{name}_norm"])

        x = reference.PLACES[config.norm_place](x, branches, normed)
    x = norm(x, p["norm"]) if config.norm_place != "post" else x
    return x, {site: np.array(layers) for site, layers in found.items()}


def _without_cross(p: Tree) -> dict[str, Any]:
    return {name: part for name, part in p["stack"]["blocks"].items() if name != "cross"}


def _look(
    found: list[Array],
    p: Tree,
    number: int,
    config: EncoderDecoderConfig,
    memory: tuple[Array, Array],
    ids_T: Array,
    y_TD: Array,
) -> Array:
    """What a layer takes of the memory: of its own pair, and no padding."""
    (memory_SD, ids_S), cycles = memory, {key: config.cycles[f"cross_{key}"] for key in config.CROSS}
    one = SimpleNamespace(position="none", **{key: cycle[number] for key, cycle in cycles.items()})
    own = reference._take(p, number, SimpleNamespace(num_layers=config.num_layers, cycles=cycles))
    mask_TS, nowhere = (ids_T[:, None] == ids_S) & (ids_S != 0), (np.arange(len(y_TD)), np.arange(len(ids_S)))
    layer = reference.attention_layer(own, one, y_TD, memory_SD, mask_TS, nowhere, np.ones(config.num_heads))
    found.append(layer.weights_HTS)
    return layer.o_TD
