"""Maps as few bytes: what a page's script reads.

A row of a map is a scale and a byte for each cell, a whole number of quanta: of 1/255 of the scale, or of 1/127 where
numbers have signs. Scales are float32 without their last 16 bits, rounded up, so that a cell's error is at most half a
quantum of the scale that is read. Causal maps are triangles. All is little-endian, in base64.
"""

import base64

import numpy as np

SIDE = 64  # cells of a side of a pooled map


def pack(x_NTS: np.ndarray, causal: bool = False, signed: bool = False) -> str:
    """Maps one after the other: of each its scales, then its rows; of causal ones their lower triangles."""
    N, T, S = x_NTS.shape
    cells_NTS, scales_NT = _quantised(x_NTS, signed)
    return _text(scales_NT, cells_NTS[:, np.tri(T, S, dtype=bool)] if causal else cells_NTS)


def pack_largest(x_NTS: np.ndarray, k: int, signed: bool = False) -> str:
    """Of each map its scales, then the places of each row's k largest cells, largest first, then their quanta."""
    size_NTS = np.abs(x_NTS)
    at_NTk = np.argpartition(-size_NTS, k - 1, axis=2)[:, :, :k]
    order_NTk = np.argsort(-np.take_along_axis(size_NTS, at_NTk, 2), axis=2, kind="stable")
    at_NTk = np.take_along_axis(at_NTk, order_NTk, 2)
    cells_NTk, scales_NT = _quantised(np.take_along_axis(x_NTS, at_NTk, 2), signed)
    return _text(scales_NT, at_NTk.astype("<u2"), cells_NTk)


def pooled(x_NTS: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The largest weight, with its sign, of each of at most side x side blocks: token t is in block t * side // T."""
    for axis in (1, 2):
        size = x_NTS.shape[axis]
        if size > side:
            starts = -(-np.arange(side) * size // side)
            high = np.maximum.reduceat(x_NTS, starts, axis=axis)
            low = np.minimum.reduceat(x_NTS, starts, axis=axis)
            x_NTS = np.where(-low > high, low, high)
    return x_NTS


def is_causal(x_LHTS: np.ndarray) -> bool:
    """Whether no weight is above the diagonal of any map."""
    T, S = x_LHTS.shape[-2:]
    above_TS = ~np.tri(T, S, dtype=bool)
    return T == S > 1 and not any((x_TS != 0)[above_TS].any() for x_HTS in x_LHTS for x_TS in x_HTS)


def _quantised(x_NTS: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """A byte for each cell, and the scales (N, T), of each of which two bytes are kept."""
    x_NTS = np.asarray(x_NTS, np.float32)
    largest_NT = np.abs(x_NTS).max(axis=2)
    kept_NT = ((largest_NT.view(np.uint32).astype(np.uint64) + 0xFFFF) >> 16).astype("<u2")
    scale_NT = (kept_NT.astype(np.uint32) << 16).view(np.float32)
    quanta_NT = (127 if signed else 255) / np.where(scale_NT > 0, scale_NT, 1)
    return np.rint(x_NTS * quanta_NT[:, :, None]).astype(np.int8 if signed else np.uint8), kept_NT


def _text(*parts: np.ndarray) -> str:
    """The parts of each map one after the other, (N, ...) each."""
    flat = [np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8) for x in parts]
    return base64.b64encode(np.concatenate(flat, axis=1).tobytes()).decode()
