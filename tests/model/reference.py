"""The model once more, in NumPy float64 with loops over rows and heads: what the tests of `model` compare with.

It follows the papers and shares no code with `model`; a variant that is missing here fails the tests that look for it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from model import GPTConfig

Array = np.ndarray
Tree = Mapping[str, Any]

Norm = Callable[[Array, Tree], Array]


def layer_norm(epsilon: float) -> Norm:
    """Ba et al. 2016, equation 4."""

    def norm(x: Array, p: Tree) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p.get("bias", 0.0)

    return norm


def rms_norm(epsilon: float, start: float = 0.0) -> Norm:
    """Zhang and Sennrich 2019, equation 4, with a scale that is counted from `start`."""
    return lambda x, p: x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * (start + p["scale"])


# From an epsilon.
NORM_KINDS: dict[str, Callable[[float], Norm]] = {
    "layer": layer_norm,
    "rms": rms_norm,
    "rms_plus_one": lambda epsilon: rms_norm(epsilon, 1.0),
}
# Each name of norms must occur in one of the expressions.
NORMS: dict[str, Norm] = {name: kind(1e-6) for name, kind in NORM_KINDS.items()} | {
    "layer(1e-5)": layer_norm(1e-5),
    "rms(epsilon=0.01)": rms_norm(0.01),
    "rms_plus_one(1e-12)": rms_norm(1e-12, 1.0),
}


def _gelu(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _exact_gelu(x: Array) -> Array:
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


# The hidden layer of an MLP from what the first projection gives, and the second one where there is one.
MLPS: dict[str, Callable[[Array, Array | None], Array]] = {
    "gelu": lambda up, gate: _gelu(up),
    "gelu_exact": lambda up, gate: _exact_gelu(up),
    "relu": lambda up, gate: np.where(up > 0, up, 0.0),
    "relu2": lambda up, gate: np.where(up > 0, up, 0.0) ** 2,
    "silu": lambda up, gate: _silu(up),
    "geglu": lambda up, gate: _gelu(gate) * up,
    "geglu_exact": lambda up, gate: _exact_gelu(gate) * up,
    "reglu": lambda up, gate: np.where(gate > 0, gate, 0.0) * up,
    "swiglu": lambda up, gate: _silu(gate) * up,
}


@functools.cache
def _drawn_blocks(blocks: int, count: int, seed: int) -> list[set[int]]:
    """For each block of queries, the numbers of the blocks of keys that it sees, drawn row by row."""
    rng = np.random.default_rng(seed)
    return [set(rng.choice(blocks, count, replace=False).tolist()) for _ in range(blocks)]


# Whether query i may see key j. Each name of the language of masks must occur in one of the expressions.
MASKS: dict[str, Callable[[int, int], bool]] = {
    "causal": lambda i, j: j <= i,
    "full": lambda i, j: True,
    "window(2)": lambda i, j: abs(i - j) <= 2,
    "window(3, 1)": lambda i, j: -1 <= i - j <= 3,
    "causal & window(4)": lambda i, j: 0 <= i - j <= 4,
    "window(2, 0) | (causal & window(1, 5))": lambda i, j: 0 <= i - j <= 2,
    "full & window(0, 3) | causal": lambda i, j: j <= i + 3,
    "causal & ~(window(2, 0) & ~window(left=1))": lambda i, j: j <= i and j != i - 2,
    "causal & chunked(4)": lambda i, j: 4 * (i // 4) <= j <= i,
    "causal | prefix(3)": lambda i, j: j <= i or j in (0, 1, 2),
    "causal & (window(1, 0) | sink_columns(2))": lambda i, j: j in {0, 1, i - 1, i} and j <= i,
    "window(1) | global_tokens(2)": lambda i, j: j in {0, 1, i - 1, i, i + 1} or i in (0, 1),
    "causal & window(7, 0) & dilated(3)": lambda i, j: i - j in (0, 3, 6),
    "strided(3)": lambda i, j: i - j in (0, 1, 2, 3, 6, 9, 12, 15),
    "fixed(4, 2)": lambda i, j: j <= i and (j // 4 == i // 4 or j % 4 in (2, 3)),
    "random_blocks(3, 2, 17)": lambda i, j: j // 3 in _drawn_blocks(6, 2, 0)[i // 3],
    "causal & (window(1) | random_blocks(2, count=3, length=14, seed=5))": (
        lambda i, j: j <= i and (i - j < 2 or j // 2 in _drawn_blocks(7, 3, 5)[i // 2])
    ),
}


@functools.cache
def mask_matrix(text: str, num_queries: int, num_keys: int) -> Array:
    """(T, S) booleans of an expression in the table above."""
    return np.array([[MASKS[text](i, j) for j in range(num_keys)] for i in range(num_queries)])


def sinusoid(position: int, width: int) -> Array:
    """The row of Vaswani et al. 2017, section 3.5, sines first."""
    angles = [position / 10000 ** (2 * i / width) for i in range(width // 2)]
    return np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])


# What is added to the embeddings, from (table or None, position, width), and what turns queries and keys.
Added = Callable[[Array | None, int, int], Array | float]
Rotate = Callable[[Array, Array], Array]


def turn(
    frequency: Callable[[int, int], float], columns: float = 1.0, gain: float = 1.0, neighbours: bool = False
) -> Rotate:
    """Rotates pairs (i, i + R/2), or (2i, 2i + 1), of one head's vectors as complex numbers, R being the first share of
    their columns, by position x frequency(i, R).
    """

    def rotate(x_TK: Array, positions_T: Array) -> Array:
        R = int(columns * x_TK.shape[1])
        angles = np.array([[position * frequency(i, R) for i in range(R // 2)] for position in positions_T])
        first = [2 * i if neighbours else i for i in range(R // 2)]
        second = [i + 1 if neighbours else i + R // 2 for i in first]
        turned, y_TK = (x_TK[:, first] + 1j * x_TK[:, second]) * np.exp(1j * angles) * gain, x_TK.copy()
        y_TK[:, first], y_TK[:, second] = turned.real, turned.imag
        return y_TK

    return rotate


def yarn(s: float, L: int, fast: float = 32.0, slow: float = 1.0, base: float = 10000.0) -> Callable[[int, int], float]:
    """The frequency of pair i of R columns as transformers has it (modeling_rope_utils), for factor s and length L."""

    def frequency(i: int, R: int) -> float:
        # Pair d turns L base^(-2d/R) / (2 pi) times: solved for d, and rounded outwards.
        first, last = (R / 2 * math.log(L / (2 * math.pi * turns), base) for turns in (fast, slow))
        low, high = max(math.floor(first), 0), min(math.ceil(last), R - 1)
        high = high + 0.001 if low == high else high
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        return base ** (-2 * i / R) * (1 - ramp) + base ** (-2 * i / R) / s * ramp

    return frequency


def _llama3(i: int, R: int) -> float:
    """As in Meta's llama-models (apply_scaling), for a factor of 8 and a length of 1024."""
    frequency = 500000 ** (-2 * i / R)
    wavelength = 2 * math.pi / frequency
    if wavelength < 1024 / 4:
        return frequency
    if wavelength > 1024 / 1:
        return frequency / 8
    smooth = (1024 / wavelength - 1) / (4 - 1)
    return (1 - smooth) * frequency / 8 + smooth * frequency


def _nothing(table: Array | None, position: int, width: int) -> float:
    return 0.0


def _still(x_TK: Array, positions_T: Array) -> Array:
    return x_TK


# Each name of positions must occur in one of the expressions; heads of 4 columns can be turned by all.
POSITIONS: dict[str, tuple[Added, Rotate]] = {
    "rope": (_nothing, turn(lambda i, R: 10000 ** (-2 * i / R))),
    "rope(fraction=0.5)": (_nothing, turn(lambda i, R: 10000 ** (-2 * i / R), columns=0.5)),
    "rope(0.5, pairs=interleaved)": (_nothing, turn(lambda i, R: 10000 ** (-2 * i / R), columns=0.5, neighbours=True)),
    "rope(base=50)": (_nothing, turn(lambda i, R: 50 ** (-2 * i / R))),
    "rope_linear(3)": (_nothing, turn(lambda i, R: 10000 ** (-2 * i / R) / 3)),
    "rope_ntk(8.0)": (_nothing, turn(lambda i, R: (10000 * 8 ** (R / (R - 2))) ** (-2 * i / R))),
    "rope_yarn(4, length=2048)": (_nothing, turn(yarn(4, 2048), gain=0.1 * math.log(4) + 1)),
    "rope_llama3(8, length=1024)": (_nothing, turn(_llama3)),
    "learned": (lambda table, position, width: table[position], _still),
    "learned(2)": (lambda table, position, width: table[position + 2], _still),
    "sinusoidal": (lambda table, position, width: sinusoid(position, width), _still),
    "none": (_nothing, _still),
}


class Pair(NamedTuple):
    """Query i, key j and head h of H, and the query's place in its document."""

    i: int
    j: int
    place: int
    h: int
    H: int


def _slope(h: int, H: int) -> float:
    """The slopes of Press et al. 2022: geometric for a power of two, and what is missing from those of its double."""
    n = max(n for n in (1, 2, 4, 8, 16) if n <= H)
    return 2 ** (-8 / n * (h + 1)) if h < n else 2 ** (-8 / (2 * n) * (2 * (h - n) + 1))


def t5_bucket(ahead: int, buckets: int, most: int, both: bool) -> int:
    """`_relative_position_bucket` of Raffel et al. 2020, with logarithms compared in whole numbers."""
    first, back = 0, max(-ahead, 0)
    if both:
        buckets, back = buckets // 2, abs(ahead)
        first = buckets if ahead > 0 else 0
    exact = buckets // 2
    if back < exact:
        return first + back
    rest = buckets - exact
    # log(back / exact) / log(most / exact) * rest >= n  <=>  (back / exact)^rest >= (most / exact)^n
    return first + exact + sum(back**rest * exact**n >= most**n * exact**rest for n in range(1, rest))


def _fire(p: Tree, at: Pair) -> float:
    """Li et al. 2024, section 3, with a hidden layer of ReLUs."""
    c, length = math.exp(p["log_c"]), math.exp(p["log_length"])
    x = math.log(c * abs(at.i - at.j) + 1) / math.log(c * max(at.place, length) + 1)
    return sum(max(a * x + b, 0) * w for a, b, w in zip(p["slope"], p["offset"], p["mix"][:, at.h], strict=True))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# What is added to a logit, from the parameters of the bias. Each name of biases must occur in one of the expressions.
BIASES: dict[str, Callable[[Tree, Pair], float]] = {
    "none": lambda p, at: 0.0,
    "alibi": lambda p, at: -_slope(at.h, at.H) * abs(at.i - at.j),
    "t5(buckets=8, max_distance=7)": lambda p, at: p["table"][t5_bucket(at.j - at.i, 8, 7, True), at.h],
    "t5_causal(5, 7)": lambda p, at: p["table"][t5_bucket(at.j - at.i, 5, 7, False), at.h],
    "kerple": lambda p, at: -math.exp(p["log_r1"][at.h]) * math.log(1 + math.exp(p["log_r2"][at.h]) * abs(at.i - at.j)),
    "kerple_power": lambda p, at: -math.exp(p["log_r1"][at.h]) * abs(at.i - at.j) ** (2 * _sigmoid(p["raw_r2"][at.h])),
    "fire(3, length=2.0)": _fire,
}


def bias_array(text: str, p: Tree, H: int, i_T: Array, j_S: Array, places_T: Array | None = None) -> Array:
    """(H, T, S) of an expression in the table above, for queries i and keys j."""
    places_T = i_T if places_T is None else places_T
    queries = list(zip(i_T.tolist(), places_T.tolist(), strict=True))
    rows = [[[Pair(i, j, place, h, H) for j in j_S.tolist()] for i, place in queries] for h in range(H)]
    return np.array([[[BIASES[text](p, at) for at in row] for row in head] for head in rows])


def weights(
    q_TK: Array,
    k_SK: Array,
    mask_TS: Array,
    scale: float,
    bias_TS: Array | float = 0.0,
    soft_cap: float = 0.0,
    sink: float = -np.inf,
) -> Array:
    """Vaswani et al. 2017, equation 1, one row and head: softmax(scale q k^T) over the keys in sight, or zeros."""
    logits_TS = scale * q_TK @ k_SK.T
    logits_TS = (soft_cap * np.tanh(logits_TS / soft_cap) if soft_cap else logits_TS) + bias_TS
    top_T1 = np.max(logits_TS, axis=1, keepdims=True, where=mask_TS, initial=sink)
    e_TS = np.exp(np.where(mask_TS, logits_TS - top_T1, -np.inf))
    total_T1 = e_TS.sum(1, keepdims=True)
    total_T1 = total_T1 if sink == -np.inf else total_T1 + np.exp(sink - top_T1)
    return e_TS / np.where(mask_TS.any(1, keepdims=True), total_T1, 1.0)


def faded(q_TK: Array, k_TK: Array, mask_TT: Array, scale: float, decay: float) -> Array:
    """tests/model/attention/decay.py, one row and head: a state that fades, and is empty where the token before is not
    in sight; its weights are what it makes of the identity.
    """
    state_KT, rows = np.zeros(q_TK.shape[::-1]), []
    for t, (q_K, k_K) in enumerate(zip(q_TK, k_TK, strict=True)):
        kept = _sigmoid(decay) if t and mask_TT[t, t - 1] else 0.0
        state_KT = kept * state_KT + np.outer(k_K, np.eye(len(q_TK))[t])
        rows.append(scale * q_K @ state_KT)
    return np.array(rows)


def _normed(norm: Norm, together: bool) -> "Before":
    def over(p: Tree, x_THK: Array) -> Array:
        T, H, K = x_THK.shape
        return norm(x_THK.reshape(T, -1) if together else x_THK, p).reshape(T, H, K)

    def before(p: Tree, q: Array, k: Array, v: Array, handed: dict[str, Array]) -> tuple[Array, Array, Array]:
        return over(p["query"], q), over(p["key"], k) if "key" in p else k, v

    return before


def _first_values(p: Tree, q: Array, k: Array, v: Array, handed: dict[str, Array]) -> tuple[Array, Array, Array]:
    first = handed.setdefault("first values", v)
    return q, k, (1 - p["mix"]) * v + p["mix"] * first


def _given(p: Tree, q: Array, k: Array, v: Array, handed: dict[str, Array]) -> tuple[Array, Array, Array]:
    handed["keys"], handed["values"] = k, v
    return q, k, v


def _gated(p: Tree, o_THK: Array, v_TGK: Array, x_TD: Array) -> Array:
    kernel = p["gate"]["kernel"]
    kernel = kernel if kernel.ndim == 3 else kernel[..., None]
    return o_THK / (1 + np.exp(-np.einsum("td,dhk->thk", x_TD, kernel)))


def _orthogonal(p: Tree, o_THK: Array, v_TGK: Array, x_TD: Array) -> Array:
    (T, H, _), each = o_THK.shape, o_THK.shape[1] // v_TGK.shape[1]
    o = o_THK.copy()
    for t in range(T):
        for h in range(H):
            direction = v_TGK[t, h // each] / np.linalg.norm(v_TGK[t, h // each])
            o[t, h] -= (o[t, h] @ direction) * direction
    return o


def _untouched(p: Tree, q: Array, k: Array, v: Array, handed: dict[str, Array]) -> tuple[Array, Array, Array]:
    return q, k, v


def _as_is(p: Tree, o_THK: Array, v_TGK: Array, x_TD: Array) -> Array:
    return o_THK


Before = Callable[[Tree, Array, Array, Array, dict[str, Array]], tuple[Array, Array, Array]]
After = Callable[[Tree, Array, Array, Array], Array]

# What is done to queries, keys and values, and to what the core makes of them. Each name of edits must occur; take_kv
# itself is in `attention_layer`.
EDITS: dict[str, tuple[Before, After]] = {
    "none": (_untouched, _as_is),
    "qk_norm": (_normed(NORMS["rms"], together=False), _as_is),
    "qk_norm(layer)": (_normed(NORMS["layer"], together=False), _as_is),
    "qk_norm(rms, all)": (_normed(NORMS["rms"], together=True), _as_is),
    "qk_norm(layer, all)": (_normed(NORMS["layer"], together=True), _as_is),
    "qk_norm(rms_plus_one, epsilon=0.01)": (_normed(rms_norm(0.01, 1.0), together=False), _as_is),
    "output_gate": (_untouched, _gated),
    "output_gate(head)": (_untouched, _gated),
    "value_residual": (_first_values, _as_is),
    "value_residual(0.0)": (_first_values, _as_is),
    "exclusive": (_untouched, _orthogonal),
    "give_kv": (_given, _as_is),
    "take_kv": (_untouched, _as_is),
}


def edits(text: str) -> list[str]:
    """The keys of the table above that are joined in the edits of one layer."""
    return text.split(" & ")


class Layer(NamedTuple):
    """What a layer of attention returns for one row: (T, D), and its weights (H, T, S)."""

    o_TD: Array
    weights_HTS: Array


def attention_layer(
    p: Tree,
    config: Any,
    x_TD: Array,
    y_SD: Array,
    mask_TS: Array,
    positions: tuple[Array, Array],
    gate_H: Array,
    bias_HTS: Array | None = None,
    handed: dict[str, Array] | None = None,
) -> Layer:
    """Queries from x, keys and values from y, each at its positions; `handed` is what the layers before have left."""
    rotate, handed = POSITIONS[config.position][1], {} if handed is None else handed
    q, (k, v) = (
        _heads(p["query"], x_TD),
        [_heads(p[one], y_SD) if one in p else handed[f"{one}s"] for one in ("key", "value")],
    )
    parts = [(p.get(one.partition("(")[0], {}), *EDITS[one]) for one in edits(config.edits)]
    for own, before, _ in parts:
        q, k, v = before(own, q, k, v, handed)
    (_, H, K), G, all_weights, o = q.shape, k.shape[1], [], np.zeros_like(q)
    for h in range(H):
        g = h // (H // G)
        q_TK, k_SK = rotate(q[:, h], positions[0]), rotate(k[:, g], positions[1])
        bias_TS, sink = 0.0 if bias_HTS is None else bias_HTS[h], p["sinks"][h] if "sinks" in p else -np.inf
        if "core" in p:
            weights_TS = faded(q_TK, k_SK, mask_TS, config.scale or K**-0.5, p["core"]["decay"][h])
        else:
            weights_TS = weights(q_TK, k_SK, mask_TS, config.scale or K**-0.5, bias_TS, config.soft_cap, sink)
        all_weights.append(weights_TS)
        o[:, h] = weights_TS @ v[:, g]
    for own, _, after in parts:
        o = after(own, o, v, x_TD)
    o_TD = np.einsum("h,thk,hkd->td", gate_H, o, p["output"]["kernel"]) + p["output"].get("bias", 0.0)
    return Layer(o_TD, np.array(all_weights))


def _heads(p: Tree, x_TD: Array) -> Array:
    return np.einsum("td,dhk->thk", x_TD, p["kernel"]) + p.get("bias", 0.0)


def mlp(p: Tree, kind: str, x_TD: Array) -> Array:
    """Position-wise feed-forward."""

    def linear(name: str, x: Array) -> Array:
        return x @ p[name]["kernel"] + p[name].get("bias", 0.0)

    return linear("down", MLPS[kind](linear("up", x_TD), linear("gate", x_TD) if "gate" in p else None))


# The stream after a block, from the stream x, the branches by name, and the norm n(name, x) of a block.
Branch = Callable[[Array], Array]
Step = Callable[[Array, str, Branch, Callable[[str, Array], Array]], Array]


def _in_turn(step: Step) -> Callable[[Array, dict[str, Branch], Callable[[str, Array], Array]], Array]:
    def run(x: Array, branches: dict[str, Branch], n: Callable[[str, Array], Array]) -> Array:
        for name, f in branches.items():
            x = step(x, name, f, n)
        return x

    return run


PLACES: dict[str, Callable[[Array, dict[str, Branch], Callable[[str, Array], Array]], Array]] = {
    "pre": _in_turn(lambda x, name, f, n: x + f(n(name, x))),
    "post": _in_turn(lambda x, name, f, n: n(name, x + f(x))),
    "output": _in_turn(lambda x, name, f, n: x + n(f"{name}_output", f(x))),
    "sandwich": _in_turn(lambda x, name, f, n: x + n(f"{name}_output", f(n(name, x)))),
    "parallel": lambda x, branches, n: x + sum(f(n(name, x)) for name, f in branches.items()),
    "parallel_shared": lambda x, branches, n: x + sum(f(n("attention", x)) for f in branches.values()),
}
# The vectors before the first layer, from the tokens' vectors, what positions add, and a norm.
EMBEDDINGS: dict[str, Callable[[Array, Array, Branch], Array]] = {
    "plain": lambda x, added, n: x + added,
    "scaled": lambda x, added, n: x * math.sqrt(x.shape[-1]) + added,
    "normed": lambda x, added, n: n(x + added),
}


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
        places, same_TT = np.ix_(positions_BT[b], positions_BT[b]), segment_ids_BT[b][:, None] == segment_ids_BT[b]
        masks = [mask_matrix(config.at(layer).mask, T, T)[places] & same_TT for layer in range(config.num_layers)]
        rows.append(_row(_float64(params), config, tokens_BT[b], masks, positions_BT[b], gate_LH))
    return Output(np.array([row[0] for row in rows]), np.array([row[1] for row in rows]).swapaxes(0, 1))


def _row(
    p: Tree, config: GPTConfig, tokens_T: Array, masks: list[Array], positions_T: Array, gate_LH: Array
) -> tuple[Array, Array]:
    norm, embedding, i_T = NORMS[config.norm], p["embed"]["embedding"], np.arange(len(tokens_T))
    added, table = POSITIONS[config.at(0).position][0], p.get("position", {}).get("table")
    added_TD = np.array([np.zeros(config.width) + added(table, position, config.width) for position in positions_T])
    x = EMBEDDINGS[config.embedding](embedding[tokens_T], added_TD, lambda x: norm(x, p["embedding_norm"]))
    layers: list[Array] = []
    handed: dict[str, Array] = {}
    for number in range(config.num_layers):
        one, block = config.at(number), _take(p["stack"]["blocks"], number, config)
        table = bias_parameters(p, config, one.bias)
        bias_HTT = bias_array(one.bias, table, config.num_heads, i_T, i_T, positions_T)
        turned = positions_T, positions_T
        attend = functools.partial(
            _attend, layers, block["attention"], one, (masks[number], turned, gate_LH[number], bias_HTT, handed)
        )
        x = PLACES[config.norm_place](
            x,
            {"attention": attend, "mlp": functools.partial(mlp, block["mlp"], config.mlp)},
            functools.partial(lambda block, name, y: norm(y, block[f"{name}_norm"]), block),
        )
    x = norm(x, p["norm"]) if config.norm_place != "post" else x
    logits_TV = x @ (embedding.T if config.tied else p["head"]["kernel"]) + p.get("head", {}).get("bias", 0.0)
    cap = config.logits_soft_cap
    return cap * np.tanh(logits_TV / cap) if cap else logits_TV, np.array(layers)


def _attend(found: list[Array], p: Tree, config: Any, rest: tuple[Any, ...], y_TD: Array) -> Array:
    """The attention of a layer to its own input, whose weights it notes."""
    layer = attention_layer(p, config, y_TD, y_TD, *rest)
    found.append(layer.weights_HTS)
    return layer.o_TD


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


def bias_parameters(p: Tree, config: GPTConfig, bias: str) -> Tree:
    """Those of a bias of a cycle: of several that learn something, the second has a 2 behind its name."""
    learned = [text for text in dict.fromkeys(config.cycles["bias"].values) if text not in ("none", "alibi")]
    number = learned.index(bias) if bias in learned else 0
    return p.get("attention_bias" if number == 0 else f"attention_bias_{number + 1}", {})


def _has(name: str, layer: int, config: GPTConfig) -> bool:
    """Whether a layer has what has this name, which may be a parameter or a part with some."""
    names = [one.partition("(")[0] for one in edits(config.cycles["edits"][layer])]
    if name in ("key", "value"):
        return "take_kv" not in names
    if name in {one.partition("(")[0] for one in EDITS}:
        return name in names
    if name == "core":
        return config.cycles["core"][layer] == "decay"
    return name != "sinks" or config.cycles["sinks"][layer]


def _take(tree: Any, layer: int, config: GPTConfig, having: list[int] | None = None) -> Any:
    """The parameters of a layer: its rows of those that it has, which are stored for the layers that have them."""
    having = list(range(config.num_layers)) if having is None else having
    if not isinstance(tree, Mapping):
        return tree[having.index(layer)]
    some = {name: [n for n in having if _has(name, n, config)] for name in tree}
    return {name: _take(part, layer, config, some[name]) for name, part in tree.items() if layer in some[name]}
