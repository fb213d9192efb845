"""Attention: masks and scores as values, cores behind one call, and the module around them."""

from model.attention.biases.base import Bias, ExplicitBias, Relative
from model.attention.biases.table import BIASES, parse_bias
from model.attention.cache import KVCache, RollingCache
from model.attention.config import AttentionConfig, AttentionKeys
from model.attention.contract import Core, CoreModule, HeadSizes, RecurrentCore, Refusal, Request
from model.attention.cores.table import CORES, attend, select_core
from model.attention.dropout import Dropout, dropout
from model.attention.edits.base import Edit, Edits, edit
from model.attention.edits.table import EDITS, parse_edits
from model.attention.masks.arrays import explicit, padding, segments
from model.attention.masks.band import causal, causal_at_end, full, window
from model.attention.masks.base import BlockState, Mask
from model.attention.masks.places import by_place
from model.attention.masks.table import MASKS, parse_mask
from model.attention.module import MultiHeadAttention
from model.attention.scores import Scores

__all__ = [
    "BIASES",
    "CORES",
    "EDITS",
    "MASKS",
    "AttentionConfig",
    "AttentionKeys",
    "Bias",
    "BlockState",
    "Core",
    "CoreModule",
    "Dropout",
    "Edit",
    "Edits",
    "ExplicitBias",
    "HeadSizes",
    "KVCache",
    "Mask",
    "MultiHeadAttention",
    "RecurrentCore",
    "Refusal",
    "Relative",
    "Request",
    "RollingCache",
    "Scores",
    "attend",
    "by_place",
    "causal",
    "causal_at_end",
    "dropout",
    "edit",
    "explicit",
    "full",
    "padding",
    "parse_bias",
    "parse_edits",
    "parse_mask",
    "segments",
    "select_core",
    "window",
]
