"""Attention: masks and scores as values, cores behind one call, and the module around them."""

from model.attention.cores import CORES, Core, select_core
from model.attention.expressions import MASKS, parse_mask
from model.attention.masks import BlockState, Mask, causal, full, padding, segments, window
from model.attention.module import KVCache, MultiHeadAttention
from model.attention.scores import Scores

__all__ = [
    "CORES",
    "MASKS",
    "BlockState",
    "Core",
    "KVCache",
    "Mask",
    "MultiHeadAttention",
    "Scores",
    "causal",
    "full",
    "padding",
    "parse_mask",
    "segments",
    "select_core",
    "window",
]
