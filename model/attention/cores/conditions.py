"""What a core may be asked for, one example of each: the rows of the table of what is exact, and of its tests.

Masks and biases are found by themselves; their required numbers are 17, 5, 144 in this order.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention.biases.base import ExplicitBias
from model.attention.biases.table import BIASES, parse_bias
from model.attention.contract import Core, Request
from model.attention.dropout import dropout
from model.attention.masks.arrays import explicit, padding, segments
from model.attention.masks.band import causal
from model.attention.masks.places import by_place
from model.attention.masks.table import MASKS, parse_mask
from model.attention.scores import Scores

B, LENGTH, HEADS, WIDTH = 2, 144, 4, 32  # a multiple of 16: eight devices can share the sequence in two parts each
_NUMBERS = (17, 5, LENGTH)


class Example(NamedTuple):
    """One request with its numbers, but for q (B, T, H, K), k and v (B, S, G, K): those are drawn by whoever asks.

    Without a dtype of its own it is asked in the dtype that the core is at home in.
    """

    scores: Scores
    T: int = LENGTH
    S: int = LENGTH
    H: int = HEADS
    G: int = HEADS
    K: int = WIDTH
    dtype: str = ""

    def at_home(self, core: Core) -> Self:
        """The example in a dtype."""
        return self._replace(dtype=self.dtype or core.dtype)

    def request(self, core: Core) -> Request:
        """What the core is asked, where it is at home."""
        ways = {"batch": 1, "length": core.context, "heads": 1, "kv_heads": 1}
        return dataclasses.replace(self.at_home(core)._request(), platform=core.platform, ways=ways)

    def _request(self) -> Request:
        q_BTHK = jax.ShapeDtypeStruct((B, self.T, self.H, self.K), self.dtype)
        k_BSGK = jax.ShapeDtypeStruct((B, self.S, self.G, self.K), self.dtype)
        return Request.of(q_BTHK, k_BSGK, k_BSGK, self.scores)


def examples() -> dict[str, Example]:
    """Name of each condition to its example."""
    made = {f"mask: {text}": _scores(mask=parse_mask(text)) for text in _expressions(MASKS)}
    made |= {name: _scores(**changes) for name, changes in _masks_of_arrays().items()}
    biases = [text for text in _expressions(BIASES) if text != "none"]
    made |= {f"bias: {text}": _scores(bias=_bias(text)) for text in biases}
    rng = np.random.default_rng(2)
    made |= {
        "bias: array": _scores(bias=ExplicitBias(jnp.asarray(_normal(rng, 1, HEADS, LENGTH, LENGTH)))),
        "soft cap": _scores(soft_cap=0.7),
        "sinks": _scores(sinks_H=_normal(rng, HEADS)),
        "dropout": _scores(dropout=dropout(0.3, jax.random.split(jax.random.key(1), B), HEADS)),
    }
    made["bias: array with axes of 1"] = _scores(bias=ExplicitBias(jnp.asarray(_normal(rng, 1, HEADS, 1, LENGTH))))
    shaped: dict[str, dict[str, Any]] = {
        "grouped heads (H=8, G=4)": {"H": 8},
        "one key head (H=4, G=1)": {"G": 1},
        "cross-attention (T=144, S=80)": {"S": 80},
        "odd lengths (T=131, S=157)": {"T": 131, "S": 157},
        **{f"head width {K}": {"K": K} for K in (64, 96, 128, 192, 256)},
        **{dtype: {"dtype": dtype} for dtype in ("float32", "bfloat16", "float16")},
    }
    made |= {name: _scores()._replace(**sizes) for name, sizes in shaped.items()}
    made["bias: alibi, in bfloat16"] = made["bias: alibi"]._replace(dtype="bfloat16")
    positions_BT = np.sort(rng.integers(0, LENGTH, (B, 7))).astype(np.int32)
    made["queries at given positions"] = _scores(query_positions_BT=positions_BT)._replace(T=7)
    return made


def _scores(**changes: Any) -> Example:
    return Example(Scores(**{"mask": causal(), "scale": 0.3, **changes}))


def _expressions(table: dict[str, Callable[..., Any]]) -> list[str]:
    """Each name with a number for every argument that has no default."""
    texts = []
    for name, function in table.items():
        needed = [one for one in inspect.signature(function).parameters.values() if one.default is one.empty]
        numbers = ", ".join(str(number) for number, _ in zip(_NUMBERS, needed, strict=False))
        texts.append(f"{name}({numbers})" if needed else name)
    return texts


def _masks_of_arrays() -> dict[str, dict[str, Any]]:
    rng = np.random.default_rng(3)
    ids_BT = np.sort(rng.integers(0, 5, (B, LENGTH))).astype(np.int32)
    places_BT = np.arange(LENGTH)[None] - np.array([np.searchsorted(ids_T, ids_T) for ids_T in ids_BT])
    sparse = by_place(parse_mask("causal & (window(3) | chunked(17) | sink_columns(2))"), places_BT.astype(np.int32))
    valid_BS = rng.random((B, LENGTH)) < 0.7
    # No key for 7 queries of one row, and for all of the other.
    late_BS = np.arange(LENGTH)[None] >= np.array([[7], [LENGTH]])
    allowed_BHTS = rng.random((B, HEADS, LENGTH, LENGTH)) < 0.4
    return {
        "packing": {"mask": causal() & segments(ids_BT)},
        "packing, mask by place": {"mask": sparse & segments(ids_BT)},
        "packing and padding": {"mask": causal() & segments(ids_BT) & padding(valid_BS)},
        "padding": {"mask": padding(valid_BS)},
        "rows without a key": {"mask": causal() & padding(late_BS)},
        "mask: array, one for each head": {"mask": explicit(allowed_BHTS)},
        "mask: array with axes of 1": {"mask": explicit(allowed_BHTS[:, :1, :1])},
        "mask: causal | padding": {"mask": causal() | padding(valid_BS)},
        "mask: ~(causal & window(5))": {"mask": parse_mask("~(causal & window(5))")},
    }


def _bias(text: str) -> Any:
    graphdef, params = nnx.split(parse_bias(text)(HEADS, nnx.Rngs(0)))
    rng = np.random.default_rng(5)
    # Away from where its parameters begin, so that each of them counts.
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.1 * _normal(rng, *x.shape), params))()


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)
