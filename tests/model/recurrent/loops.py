"""Recurrent networks in NumPy, float64, one token after the other: what model/recurrent is measured against."""

from typing import Any

import numpy as np

State = tuple[np.ndarray, ...]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm(p: Any, gates_GH: np.ndarray, state: State, forget_bias: float) -> State:
    """The new (h, c), from the input's share of the gates i, f, g, o."""
    h, c = state
    i, f, g, o = (gates_GH[n] + h @ p["hidden"]["kernel"][:, n] for n in range(4))
    c = sigmoid(f + forget_bias) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru(p: Any, gates_GH: np.ndarray, state: State, forget_bias: float) -> State:
    """The new (h,), from the input's share of the gates r, z, n."""
    (h,) = state
    own_r, own_z, own_n = (h @ p["hidden"]["kernel"][:, n] for n in range(3))
    r, z = sigmoid(gates_GH[0] + own_r), sigmoid(gates_GH[1] + own_z + forget_bias)
    n = np.tanh(gates_GH[2] + r * (own_n + p["hidden"]["bias"]))
    return (((1 - z) * n + z * h),)


STEPS = {"lstm": lstm, "gru": gru}


def gates(p: Any, x_D: np.ndarray) -> np.ndarray:
    """The input's share of all gates."""
    return np.einsum("d,dgh->gh", x_D, p["kernel"]) + p.get("bias", 0)


def zeros(cell: str, hidden: int) -> State:
    """The state before the first token."""
    return (np.zeros(hidden),) * (2 if cell == "lstm" else 1)


def through(
    cell: str, p: Any, x_TD: np.ndarray, forget_bias: float, state: State | None = None
) -> tuple[np.ndarray, State]:
    """(the states h after each token, the last state)."""
    state, found = state or zeros(cell, p["hidden"]["kernel"].shape[0]), []
    for x_D in x_TD:
        state = STEPS[cell](p, gates(p["input"], x_D), state, forget_bias)
        found.append(state[0])
    return np.stack(found), state


def both_ways(cell: str, p: Any, x_TD: np.ndarray, forget_bias: float) -> np.ndarray:
    """What was read up to each token beside what was read back to it."""
    there_TH, _ = through(cell, p["forward"], x_TD, forget_bias)
    back_TH, _ = through(cell, p["backward"], x_TD[::-1], forget_bias)
    return np.concatenate([there_TH, back_TH[::-1]], axis=-1)


def row(tree: Any, number: int) -> Any:
    """A layer's parameters."""
    return {k: row(x, number) if isinstance(x, dict) else x[number] for k, x in tree.items()}


def embedded(p: Any, tokens_T: np.ndarray) -> np.ndarray:
    """The tokens' vectors."""
    table_VD = p["embed"]["embedding"]
    return table_VD[tokens_T] * np.sqrt(table_VD.shape[1])


def logits(p: Any, x_TD: np.ndarray) -> np.ndarray:
    """By the head's own kernel, or by the embedding."""
    return x_TD @ (p["head"]["kernel"] if "head" in p else p["embed"]["embedding"].T)


def language_model(
    p: Any, config: Any, tokens_T: np.ndarray, states: list[State] | None = None
) -> tuple[np.ndarray, list[State]]:
    """(logits of one document (T, V), the state of each layer after it)."""
    x_TD, last = embedded(p, tokens_T), []
    for number in range(config.num_layers):
        own, state = row(p["stack"]["blocks"], number), None if states is None else states[number]
        x_TD, state = through(config.cell, own, x_TD, config.forget_bias, state)
        last.append(state)
    return logits(p, x_TD), last


def cross_entropy(logits_TV: np.ndarray, targets_T: np.ndarray) -> float:
    """The sum over the tokens, in nats."""
    top_T1 = logits_TV.max(-1, keepdims=True)
    log_z_T = (top_T1 + np.log(np.exp(logits_TV - top_T1).sum(-1, keepdims=True)))[:, 0]
    return float((log_z_T - logits_TV[np.arange(len(targets_T)), targets_T]).sum())


def encoder_decoder(p: Any, config: Any, source_S: np.ndarray, tokens_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(logits (T, V), attention weights (T, S)) of one pair."""
    cell, forget, first = config.cell, config.forget_bias, p["decoder"]["first"]
    x_SD = embedded(p, source_S)
    for number in range(config.E):
        x_SD = both_ways(cell, row(p["encoder"]["stack"]["blocks"], number), x_SD, forget)
    keys_SA, D = x_SD @ first["attention"]["key"]["kernel"], config.width
    h_D = np.tanh(x_SD[0, D // 2 :] @ first["first"]["kernel"] + first["first"]["bias"])
    state, states, contexts, looks = (h_D, *zeros(cell, D)[1:]), [], [], []
    for x_D in embedded(p, tokens_T):
        query_A = state[0] @ first["attention"]["query"]["kernel"]
        scores_S = np.array(
            [np.tanh(query_A + key_A) @ first["attention"]["score"]["kernel"][:, 0] for key_A in keys_SA]
        )
        weights_S = np.exp(scores_S) / np.exp(scores_S).sum()
        context_D = weights_S @ x_SD
        own = gates(first["cell"]["input"], x_D) + gates(first["context"], context_D)
        state = STEPS[cell](first["cell"], own, state, forget)
        for kept, new in zip((states, contexts, looks), (state[0], context_D, weights_S), strict=True):
            kept.append(new)
    y_TD = np.stack(states)
    for number in range(config.num_layers - 1):
        y_TD, _ = through(cell, row(p["decoder"]["stack"]["blocks"], number), y_TD, forget)
    joined_TC = np.concatenate([y_TD, np.stack(contexts), embedded(p, tokens_T)], axis=-1)
    joined = p["decoder"]["joined"]
    return logits(p, np.tanh(joined_TC @ joined["kernel"] + joined["bias"])), np.stack(looks)
