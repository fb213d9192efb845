"""Who took how much of what: the weights of a core that never has them as an array."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from model.attention.contract import CoreModule
from model.attention.cores.table import attend
from model.attention.scores import Scores, wide

Made = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Looked:
    """What queries have taken of keys, o_BTHK, and what it was made of: the value at the site `weights`.

    Its weights are those that the core really applies, without dropout. What learned sinks take is missing in their
    sums, and what edits make of o is no matter of theirs.
    """

    o_BTHK: jax.Array
    q_BTHK: jax.Array
    k_BSGK: jax.Array
    v_BSGK: jax.Array
    scores: Scores
    core: str
    module: CoreModule | None = None

    def weights(self) -> jax.Array:
        """All of them, (B, H, T, S)."""
        return self.by_slab(lambda weights_BTHS, v_BSHK: weights_BTHS.swapaxes(1, 2))

    def mean(self) -> jax.Array:
        """The mean over the heads, (B, T, S); those of all heads are never in memory together."""
        return self.by_slab(lambda weights_BTHS, v_BSHK: jnp.mean(wide(weights_BTHS), axis=2))

    def by_slab(self, made: Made) -> jax.Array:
        """What `made` makes, (..., k), of the weights (B, T, H, k) and the values (B, k, H, K) of each K keys, joined.

        A core is linear in v: with rows of the identity as values, its output is its matrix.
        """
        (B, S, G, K), H = self.k_BSGK.shape, self.q_BTHK.shape[2]
        scores, slabs = self.scores.replace(dropout=None), []
        for start in range(0, S, K):
            columns_SK = jnp.eye(S, K, -start, dtype=self.k_BSGK.dtype)
            values_BSGK = jnp.broadcast_to(columns_SK[None, :, None], (B, S, G, K))
            weights_BTHK = attend(self.core, self.q_BTHK, self.k_BSGK, values_BSGK, scores, self.module)
            v_BkGK = self.v_BSGK[:, start : start + K]
            k = v_BkGK.shape[1]
            slabs.append(made(weights_BTHK[..., :k], jnp.repeat(v_BkGK, H // G, axis=2)))
        return jnp.concatenate(slabs, axis=-1)

    def with_weights(self, weights_BHTS: jax.Array) -> "Looked":
        """As if these were the weights; where they are those that there are, nothing changes."""
        own_BHTS, H = self.weights(), self.q_BTHK.shape[2]
        v_BSHK = jnp.repeat(self.v_BSGK, H // self.v_BSGK.shape[2], axis=2)
        more_BTHK = jnp.einsum("BHTS,BSHK->BTHK", wide(weights_BHTS) - wide(own_BHTS), wide(v_BSHK))
        return self.replace(o_BTHK=self.o_BTHK + more_BTHK.astype(self.o_BTHK.dtype))

    def replace(self, **changes: Any) -> "Looked":
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)
