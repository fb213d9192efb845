"""Attention: masks and scores as values, cores behind one call, and the module around them."""

from model.attention.biases import Bias, ExplicitBias, Relative
from model.attention.contract import Core, Refusal, Request
from model.attention.cores import CORES, attend, select_core
from model.attention.masks import BlockState, Mask, causal, explicit, full, padding, segments, window
from model.attention.module import KVCache, MultiHeadAttention
from model.attention.scores import Dropout, Scores, dropout
from model.attention.tables import BIASES, MASKS, parse_bias, parse_mask

__all__ = [
    "BIASES",
    "CORES",
    "MASKS",
    "Bias",
    "BlockState",
    "Core",
    "Dropout",
    "ExplicitBias",
    "KVCache",
    "Mask",
    "MultiHeadAttention",
    "Refusal",
    "Relative",
    "Request",
    "Scores",
    "attend",
    "causal",
    "dropout",
    "explicit",
    "full",
    "padding",
    "parse_bias",
    "parse_mask",
    "segments",
    "select_core",
    "window",
]
