"""The model once more, in NumPy float64 with loops over rows and heads: what the tests of `model` compare with.

It follows the papers and shares no code with `model`; a variant that is missing here fails the tests that look for it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from model import GPTConfig

Array = np.ndarray
Tree = Mapping[str, Any]

NORMS: dict[str, Callable[[Array, Tree], Array]] = {
    "layer": lambda x, p: (
        (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p.get("bias", 0.0)
    ),
    "rms": lambda x, p: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"],
}


def _gelu(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


# The hidden layer of an MLP from what the first projection gives, and the second one where there is one.
MLPS: dict[str, Callable[[Array, Array | None], Array]] = {
    "gelu": lambda up, gate: _gelu(up),
    "relu2": lambda up, gate: np.where(up > 0, up, 0.0) ** 2,
    "geglu": lambda up, gate: _gelu(gate) * up,
    "swiglu": lambda up, gate: _silu(gate) * up,
}

# Whether query i may see key j. Each name of the language of masks must occur in one of the expressions.
MASKS: dict[str, Callable[[int, int], bool]] = {
    "causal": lambda i, j: j <= i,
    "full": lambda i, j: True,
    "window(2)": lambda i, j: abs(i - j) <= 2,
    "window(3, 1)": lambda i, j: -1 <= i - j <= 3,
    "causal & window(4)": lambda i, j: 0 <= i - j <= 4,
    "window(2, 0) | (causal & window(1, 5))": lambda i, j: 0 <= i - j <= 2,
    "full & window(0, 3) | causal": lambda i, j: j <= i + 3,
}


def mask_matrix(text: str, num_queries: int, num_keys: int) -> Array:
    """(T, S) booleans of an expression in the table above."""
    return np.array([[MASKS[text](i, j) for j in range(num_keys)] for i in range(num_queries)])


def sinusoid(position: int, width: int) -> Array:
    """The row of Vaswani et al. 2017, section 3.5, sines first."""
    angles = [position / 10000 ** (2 * i / width) for i in range(width // 2)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


def turn(x_TK: Array, positions_T: Array) -> Array:
    """One head's vectors with pairs (i, i + K/2) rotated as complex numbers."""
    K = x_TK.shape[1]
    angles = positions_T[:, None] / 10000 ** (2 * np.arange(K // 2)[None] / K)
    turned = (x_TK[:, : K // 2] + 1j * x_TK[:, K // 2 :]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=1)


# What is added to the embeddings, from (table or None, position, width), and what turns queries and keys.
Added = Callable[[Array | None, int, int], Array | float]
Rotate = Callable[[Array, Array], Array]
POSITIONS: dict[str, tuple[Added, Rotate]] = {
    "rope": (lambda table, position, width: 0.0, turn),
    "learned": (lambda table, position, width: table[position], lambda x, positions: x),
    "sinusoidal": (lambda table, position, width: sinusoid(position, width), lambda x, positions: x),
    "none": (lambda table, position, width: 0.0, lambda x, positions: x),
}


def weights(q_TK: Array, k_SK: Array, mask_TS: Array, scale: float) -> Array:
    """Vaswani et al. 2017, equation 1, one row and head: softmax(scale q k^T) over the keys in sight, or zeros."""
    logits_TS = scale * q_TK @ k_SK.T
    top_T1 = np.max(logits_TS, axis=1, keepdims=True, where=mask_TS, initial=-np.inf)
    e_TS = np.exp(np.where(mask_TS, logits_TS - top_T1, -np.inf))
    return e_TS / np.maximum(e_TS.sum(1, keepdims=True), 1.0)  # the largest of a row is exp(0) = 1


class Gradients(NamedTuple):
    """The output of attention, and the gradients of sum(output * cotangent)."""

    o_BTHK: Array
    dq_BTHK: Array
    dk_BSGK: Array
    dv_BSGK: Array


def attention(q_BTHK: Array, k_BSGK: Array, v_BSGK: Array, mask_BTS: Array, scale: float, do_BTHK: Array) -> Gradients:
    """Attention and its gradients by hand, head by head; query head h reads key/value head h // (H / G)."""
    q, k, v, do = (np.asarray(x, np.float64) for x in (q_BTHK, k_BSGK, v_BSGK, do_BTHK))
    o, dq, dk, dv = np.zeros_like(q), np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        g = h // (q.shape[2] // k.shape[2])
        w_TS = weights(q[b, :, h], k[b, :, g], mask_BTS[b], scale)
        o[b, :, h] = w_TS @ v[b, :, g]
        dw_TS = do[b, :, h] @ v[b, :, g].T
        dlogits_TS = w_TS * (dw_TS - (dw_TS * w_TS).sum(-1, keepdims=True))
        dq[b, :, h] = scale * dlogits_TS @ k[b, :, g]
        dk[b, :, g] += scale * dlogits_TS.T @ q[b, :, h]
        dv[b, :, g] += w_TS.T @ do[b, :, h]
    return Gradients(o, dq, dk, dv)


class Layer(NamedTuple):
    """What a layer of attention returns for one row: (T, D), and its weights (H, T, S)."""

    o_TD: Array
    weights_HTS: Array


def attention_layer(
    p: Tree, config: Any, x_TD: Array, y_SD: Array, mask_TS: Array, positions: tuple[Array, Array], gate_H: Array
) -> Layer:
    """Queries from x, keys and values from y, each at its positions."""
    rotate = POSITIONS[config.position][1]
    (D, H, K), G = p["query"]["kernel"].shape, p["key"]["kernel"].shape[1]
    o_TD, all_weights = np.zeros((len(x_TD), D)) + p["output"].get("bias", 0.0), []
    for h in range(H):
        q_TK = _head(p, "query", x_TD, h, positions[0], rotate)
        k_SK = _head(p, "key", y_SD, h // (H // G), positions[1], rotate)
        v_SK = _head(p, "value", y_SD, h // (H // G), positions[1], lambda x, positions: x)
        all_weights.append(weights(q_TK, k_SK, mask_TS, config.scale or K**-0.5))
        o_TD = o_TD + gate_H[h] * all_weights[-1] @ v_SK @ p["output"]["kernel"][h]
    return Layer(o_TD, np.array(all_weights))


def _head(
    p: Tree, name: str, x_TD: Array, h: int, positions_T: Array, rotate: Callable[[Array, Array], Array]
) -> Array:
    x_TK = x_TD @ p[name]["kernel"][:, h] + (p[name]["bias"][h] if "bias" in p[name] else 0.0)
    if f"{name}_norm" in p:
        x_TK = NORMS["rms"](x_TK, p[f"{name}_norm"])
    return rotate(x_TK, positions_T)


def mlp(p: Tree, kind: str, x_TD: Array) -> Array:
    """Position-wise feed-forward."""

    def linear(name: str, x: Array) -> Array:
        return x @ p[name]["kernel"] + p[name].get("bias", 0.0)

    return linear("down", MLPS[kind](linear("up", x_TD), linear("gate", x_TD) if "gate" in p else None))


class Output(NamedTuple):
    """Logits (B, T, V) and weights (L, B, H, T, T)."""

    logits_BTV: Array
    weights_LBHTS: Array


def gpt(
    params: Tree,
    config: GPTConfig,
    tokens_BT: Array,
    segment_ids_BT: Array | None = None,
    positions_BT: Array | None = None,
    gate_LH: Array | None = None,
) -> Output:
    """The whole model, row by row and layer by layer; `params` is the pure dict of the model's parameters."""
    B, T = tokens_BT.shape
    segment_ids_BT = np.zeros((B, T)) if segment_ids_BT is None else segment_ids_BT
    positions_BT = np.tile(np.arange(T), (B, 1)) if positions_BT is None else positions_BT
    gate_LH = np.ones((config.num_layers, config.num_heads)) if gate_LH is None else gate_LH
    rows = []
    for b in range(B):
        mask_TT = mask_matrix(config.mask, T, T) & (segment_ids_BT[b][:, None] == segment_ids_BT[b][None])
        rows.append(_row(_float64(params), config, tokens_BT[b], mask_TT, positions_BT[b], gate_LH))
    return Output(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]).swapaxes(0, 1))


def _row(
    p: Tree, config: GPTConfig, tokens_T: Array, mask_TT: Array, positions_T: Array, gate_LH: Array
) -> tuple[Array, Array]:
    norm, pre, embedding = NORMS[config.norm], config.norm_place == "pre", p["embed"]["embedding"]
    added, table = POSITIONS[config.position][0], p.get("position", {}).get("table")
    places = zip(tokens_T, positions_T, strict=True)
    x = np.array([embedding[token] + added(table, position, config.width) for token, position in places])
    layers = []
    for number in range(config.num_layers):
        block = _take(p["stack"]["blocks"], number)
        y = norm(x, block["attention_norm"]) if pre else x
        layer = attention_layer(block["attention"], config, y, y, mask_TT, (positions_T, positions_T), gate_LH[number])
        x = x + layer.o_TD if pre else norm(x + layer.o_TD, block["attention_norm"])
        y = mlp(block["mlp"], config.mlp, norm(x, block["mlp_norm"]) if pre else x)
        x = x + y if pre else norm(x + y, block["mlp_norm"])
        layers.append(layer.weights_HTS)
    x = norm(x, p["norm"]) if pre else x
    return x @ (embedding.T if config.tied else p["head"]["kernel"]), np.array(layers)


def cross_entropy(logits_BTV: Array, targets_BT: Array) -> float:
    """Mean negative log-likelihood in nats."""
    top = logits_BTV.max(-1, keepdims=True)
    log_probs = logits_BTV - top - np.log(np.exp(logits_BTV - top).sum(-1, keepdims=True))
    return -float(np.take_along_axis(log_probs, targets_BT[..., None], -1).mean())


def random_params(shapes: Tree, rng: np.random.Generator) -> Any:
    """Random float32 leaves of those shapes: no bias is 0 and no scale is 1, so that each of them counts."""
    leaves = {name: leaf for name, leaf in shapes.items() if not isinstance(leaf, Mapping)}
    drawn = {name: 0.3 * rng.standard_normal(leaf.shape) + (name == "scale") for name, leaf in leaves.items()}
    deeper = {name: random_params(tree, rng) for name, tree in shapes.items() if name not in leaves}
    return {name: drawn[name].astype(np.float32) if name in drawn else deeper[name] for name in shapes}


def _float64(tree: Any) -> Any:
    return {k: _float64(v) for k, v in tree.items()} if isinstance(tree, Mapping) else np.asarray(tree, np.float64)


def _take(tree: Any, layer: int) -> Any:
    return {k: _take(v, layer) for k, v in tree.items()} if isinstance(tree, Mapping) else tree[layer]
