"""Attention and its gradients in NumPy float64, by hand: what every core is compared with.

It shares no code with `model`; masks, biases and dropout come as arrays, which have tests of their own.
"""

from typing import Any

import numpy as np

Array = np.ndarray


def attention(
    q_BTHK: Array,
    k_BSGK: Array,
    v_BSGK: Array,
    do_BTHK: Array,
    *,
    scale: float,
    allowed: Array,
    bias: Array | float = 0.0,
    soft_cap: float = 0.0,
    sinks_H: Array | None = None,
    keep: Array | None = None,
    rate: float = 0.0,
) -> dict[str, Any]:
    """The output o, and the gradients of sum(o * do) by q, k, v, each logit's bias and the sinks.

    weights = softmax over the keys in sight (and the sink) of cap tanh(scale q k^T / cap) + bias; those that are kept
    are divided by 1 - rate. `allowed`, `bias` and `keep` broadcast to (B, H, T, S). A logit of +infinity is the largest
    of float64, whose weight is 1, or an equal part; it has no gradient.
    """
    q, k, v, do = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK, do_BTHK))
    (B, H, T, _), (G, S) = q.shape, k.shape[1:3]
    k, v = (np.repeat(x, H // G, axis=1) for x in (k, v))
    raw = scale * q @ k.swapaxes(2, 3)
    capped = soft_cap * np.tanh(raw / soft_cap) if soft_cap else raw
    logits = np.where(np.broadcast_to(allowed, (B, H, T, S)), capped + np.asarray(bias, np.float64), -np.inf)
    infinite, most = logits == np.inf, np.finfo(np.float64).max
    sinks = np.full((1, H, 1, 1), -np.inf) if sinks_H is None else np.asarray(sinks_H, np.float64).reshape(1, H, 1, 1)
    free_H = np.isfinite(sinks.reshape(H))
    # Halved, so that no difference of two of them overflows.
    logits, sinks = np.minimum(logits, most / 2), np.minimum(sinks, most / 2)
    top = np.maximum(logits.max(-1, keepdims=True), sinks)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(logits - top).sum(-1, keepdims=True) + np.exp(sinks - top)
    total = np.where(total > 0, total, 1.0)  # a row without a key: no weights at all
    weights = np.exp(logits - top) / total
    factor = 1.0 if keep is None else np.broadcast_to(keep, (B, H, T, S)) / (1 - rate)
    o = (factor * weights) @ v
    dweights = factor * (do @ v.swapaxes(2, 3))
    delta = (dweights * weights).sum(-1, keepdims=True)
    dlogits = np.where(infinite, 0, weights * (dweights - delta))
    draw = scale * dlogits * (1 - (capped / soft_cap) ** 2 if soft_cap else 1.0)
    found = {"dk": draw.swapaxes(2, 3) @ q, "dv": (factor * weights).swapaxes(2, 3) @ do}
    grouped = {name: x.reshape(B, G, H // G, S, -1).sum(2).swapaxes(1, 2) for name, x in found.items()}
    dsinks = None if sinks_H is None else -((np.exp(sinks - top) / total * delta).sum((0, 2, 3)) * free_H)
    return {"o": o.swapaxes(1, 2), "dq": (draw @ k).swapaxes(1, 2), **grouped, "dbias": dlogits, "dsinks": dsinks}
