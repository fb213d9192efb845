"""What else is measured of maps: how they order tokens, how exactly they foretell losses, and how steady they are."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from scipy import stats

from eval.explain.faithfulness.judging import joined
from eval.explain.methods.gradients import Vectors
from eval.explain.methods.occlusion import without
from eval.explain.methods.table import Asked, Method
from eval.explain.targets import in_float32
from model.families.family import Model
from model.taps import Taps


def tau(one_Bn: np.ndarray, other_Bn: np.ndarray, real_Bn: np.ndarray) -> np.ndarray:
    """Kendall's tau of two maps over the tokens of each example, (B,): with leave-one-out for the other, the
    leave-one-out rank correlation. 0 where a map is constant, and orders nothing.
    """
    found = []
    for one_n, other_n, real_n in zip(one_Bn, other_Bn, real_Bn, strict=True):
        both = one_n[real_n], other_n[real_n]
        found.append(0.0 if min(map(np.ptp, both)) == 0 else float(stats.kendalltau(*both).statistic))
    return np.array(found)


def infidelity(asked: Asked, maps_MBn: np.ndarray, taken_BNn: np.ndarray, scaled: bool = True) -> np.ndarray:
    """The mean over N choices of tokens that are taken out, of (sum of their numbers - what the value loses)^2, (M, B):
    Yeh et al. 2019, definition 2.1, where a perturbation takes tokens to the baseline, and a token's number stands for
    all of its vector. 0: the map foretells what is lost. `scaled`: times the number that makes it least, as a map that
    only compares tokens has no unit.
    """
    values_BN = without(*asked, np.concatenate([np.zeros_like(taken_BNn[:, :1]), taken_BNn], axis=1), "value")
    lost_BN = values_BN[:, :1] - values_BN[:, 1:]
    told_MBN = np.einsum("MBn,BNn->MBN", maps_MBn.astype(np.float64), taken_BNn)
    if scaled:
        squares_MB1 = np.sum(told_MBN**2, axis=-1, keepdims=True)
        best_MB1 = np.sum(told_MBN * lost_BN, axis=-1, keepdims=True) / np.where(squares_MB1 > 0, squares_MB1, 1)
        told_MBN = best_MB1 * told_MBN
    return np.mean((told_MBN - lost_BN) ** 2, axis=-1)


def drawn_choices(real_Bn: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Choices of tokens (B, N, n): each token is in half of them, by a draw of its own."""
    B, n = real_Bn.shape
    return (np.random.default_rng(seed).random((B, count, n)) < 0.5) & real_Bn[:, None]


def largest_sensitivity(asked: Asked, method: Method, shifts: dict[str, np.ndarray]) -> np.ndarray:
    """The largest change of a map, as a part of its length, over N small shifts (B, N, n, D) of the tokens' vectors by
    site, (B,): Yeh et al. 2019, definition 2.2. The change itself where the map is nothing.
    """
    B, N = next(iter(shifts.values())).shape[:2]
    with_none = {site: np.concatenate([np.zeros_like(x[:, :1]), x], 1) for site, x in shifts.items()}
    flat = {site: x.reshape(B * (N + 1), *x.shape[2:]).astype(np.float32) for site, x in with_none.items()}
    inputs, target, baseline = jax.tree.map(
        lambda x: np.repeat(np.asarray(x), N + 1, axis=0), (asked.inputs, asked.target, asked.baseline)
    )
    model = Shifted(in_float32(asked.model))
    maps_Pn = joined(method.call(Asked(model, inputs | {"shifts": flat}, target, baseline)))
    maps_BNn = maps_Pn.reshape(B, N + 1, -1).astype(np.float64)
    length_B1 = np.linalg.norm(maps_BNn[:, :1], axis=-1)
    change_BN = np.linalg.norm(maps_BNn[:, 1:] - maps_BNn[:, :1], axis=-1)
    return np.max(change_BN / np.where(length_B1 > 0, length_B1, 1), axis=1)


def drawn_shifts(vectors: Vectors, radius: float, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Shifts (B, N, n, D) for vectors (B, n, D) by site: each number is even within +- `radius` times the root mean
    square of its example's numbers.
    """
    rng, found = np.random.default_rng(seed), {}
    for site in sorted(vectors):
        x_BnD = np.asarray(vectors[site])
        most_B111 = radius * np.sqrt(np.mean(x_BnD**2, axis=(1, 2)))[:, None, None, None]
        found[site] = most_B111 * rng.uniform(-1, 1, (len(x_BnD), count, *x_BnD.shape[1:]))
    return found


class Shifted(nnx.Module):
    """A model with one more input: `shifts`, (B, n, D) by site, by which the vectors of the tokens are moved."""

    def __init__(self, model: Model) -> None:
        self.config, self.model = model.config, model

    def vectors(self, *, shifts: Vectors, taps: Taps | None = None, **inputs: Any) -> jax.Array:
        """As the model's, of vectors that are moved."""
        found: jax.Array = self.model.vectors(**inputs, taps=_Moving(taps or Taps(), shifts))
        return found

    def __call__(self, *, shifts: Vectors, taps: Taps | None = None, **inputs: Any) -> jax.Array:
        """As the model's, of vectors that are moved."""
        found: jax.Array = self.model(**inputs, taps=_Moving(taps or Taps(), shifts))
        return found

    def readout(self) -> Any:
        """The model's."""
        return self.model.readout()


class _Moving(Taps):
    """Somebody's taps, which get the vectors of tokens moved."""

    def __init__(self, taps: Taps, shifts: Vectors) -> None:
        self.__dict__ = taps.__dict__  # so that what is found is found by the other, too
        self._shifts = shifts

    def __call__(self, site: str, value: Any) -> Any:
        """What goes on from a site."""
        return super().__call__(site, value + self._shifts[site] if site in self._shifts else value)
