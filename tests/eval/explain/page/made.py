"""Inputs of a page, made of random arrays; and a reader of packed maps, written from the words in quanta.py."""

import base64
from types import SimpleNamespace
from typing import Any

import numpy as np

from eval.explain.methods.flow import pair_flow
from eval.explain.page import Content, Pair, Products, Table

SIGNED = {"raw_weights": False, "rollout": False, "flow": False, "gradient_x_input": True, "integrated_gradients": True}


def weights(L: int, H: int, n: int, seed: int = 0) -> np.ndarray:
    """Causal ones, whose rows sum to 1."""
    x_LHTS = np.random.default_rng(seed).standard_exponential((L, H, n, n), np.float32) ** 3
    x_LHTS *= np.tri(n, dtype=np.float32)
    return x_LHTS / x_LHTS.sum(-1, keepdims=True)


def content(pieces: list[str], L: int = 3, H: int = 5, **changes: Any) -> Content:
    """All that there can be, of one stack."""
    rng, n, x_LHTS = np.random.default_rng(1), len(pieces), weights(L, H, len(pieces))
    maps_Lnn = 0.5 * x_LHTS.mean(1) + 0.5 * np.eye(n, dtype=np.float32)
    rolled = [maps_Lnn[0]]
    for map_nn in maps_Lnn[1:]:
        rolled.append(map_nn @ rolled[-1])
    results = [
        SimpleNamespace(
            method=method, signed=signed, values={"embedding": rng.standard_normal(n) if signed else rng.random(n)},
            baseline="mean" if signed else "", error=0.004, passes=40, seconds=0.1,
        )
        for method, signed in SIGNED.items()
    ]  # fmt: skip
    verdict = {"word": "faithful here", "examples": 64, "lost": 0.25, "p": 0.001}
    fields: dict[str, Any] = {
        "answer": "the next token",
        "place": n - 1,
        "facts": {"model": "gpt"},
        "results": results,
        "verdicts": {"integrated_gradients": verdict, "rollout": verdict | {"word": "not faithful here"}},
        "weights": {"stack.attention": x_LHTS},
        "statistics": {"stack.attention": {"importance": rng.random((L, H)), "entropy": rng.random((L, H))}},
        "rollout": {"stack": np.stack(rolled)},
        "flow": Pair(n - 1, 1, pair_flow(maps_Lnn, n - 1, 1)) if n <= 64 else None,
        "products": Products("stack.attention", 1, 2, rng.standard_normal((n, 7)), rng.standard_normal((n, 7)), 0.5),
        "lens": Table("What each layer would say", ["layer", "first"], [["0", "a"], ["1", "b"]]),
        "commands": {"this page": "python -m launch.explain --workdir=."},
    }
    return Content("".join(pieces), {"embedding": pieces}, **(fields | changes))


def across(**changes: Any) -> Content:
    """A source of 11 tokens and what is written of it, of 7."""
    rng = np.random.default_rng(2)
    pieces = {"encoder.embedding": [f"s{at}" for at in range(11)], "decoder.embedding": [f"t{at}" for at in range(7)]}
    sizes = {"encoder.attention": (11, 11), "decoder.cross": (7, 11)}
    maps = {place: rng.random((2, 3, *size)).astype(np.float32) for place, size in sizes.items()}
    maps["decoder.attention"] = weights(2, 3, 7)
    rolled = {"cross": maps["decoder.cross"][:, 0]}
    return Content("a source", pieces, weights=maps, rollout=rolled, **changes)


def read(
    text: str, N: int, T: int, S: int, causal: bool = False, signed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Packed maps and the half quantum of each row."""
    data, cells, levels = base64.b64decode(text), T * (T + 1) // 2 if causal else T * S, 127 if signed else 255
    x_NTS, half_NT = np.zeros((N, T, S)), np.zeros((N, T))
    for number in range(N):
        own = data[number * (2 * T + cells) : (number + 1) * (2 * T + cells)]
        quantum_T = _scales(own[: 2 * T]) / levels
        numbers = np.frombuffer(own[2 * T :], np.int8 if signed else np.uint8).astype(float)
        start = 0
        for row in range(T):
            size = row + 1 if causal else S
            x_NTS[number, row, :size] = numbers[start : start + size] * quantum_T[row]
            start += size
        half_NT[number] = quantum_T / 2
    return x_NTS, half_NT


def read_largest(text: str, T: int, k: int, signed: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places and numbers (T, k) of one map's largest cells, and the half quantum of each row."""
    data, levels = base64.b64decode(text), 127 if signed else 255
    quantum_T = _scales(data[: 2 * T]) / levels
    at_Tk = np.frombuffer(data[2 * T : 2 * T + 2 * T * k], "<u2").reshape(T, k)
    cells_Tk = np.frombuffer(data[2 * T + 2 * T * k :], np.int8 if signed else np.uint8).reshape(T, k)
    return at_Tk, cells_Tk * quantum_T[:, None], quantum_T / 2


def _scales(data: bytes) -> np.ndarray:
    bits = [(data[at] + 256 * data[at + 1]) * 2**16 for at in range(0, len(data), 2)]
    return np.array(bits, np.uint32).view(np.float32).astype(float)
