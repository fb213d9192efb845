"""Biases that depend on the distance of query and key."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from model.attention.biases.base import Bias, Relative
from model.attention.masks.arrays import gather
from model.attention.masks.base import Index
from model.attention.values import array, static, value


@value
class Alibi(Relative):
    """-slope x |j - i|, with a slope for each head (Press et al. 2022, section 3)."""

    slopes_H: jax.Array = array("heads")

    def of(self, distance: Index) -> jax.Array:
        """The slope times the distance, either way."""
        (slopes,) = _per_head(distance, self.slopes_H)
        return -slopes * jnp.abs(distance)[None]


@value
class Bucketed(Relative):
    """A learned number for each bucket of distances and each head (Raffel et al. 2020, section 2.1); see `bucket`."""

    table_NH: jax.Array = array(None, "heads")
    max_distance: int = static()
    causal: bool = static()

    def of(self, distance: Index) -> jax.Array:
        """The row of the distance's bucket; distances from `max_distance` on share the last one."""
        most, N = self.max_distance, self.table_NH.shape[0]
        buckets = np.array([bucket(d, N, most, self.causal) for d in range(-most, most + 1)])
        xp = np if isinstance(distance, np.ndarray) else jnp
        rows = jnp.take(jnp.asarray(buckets), xp.clip(distance, -most, most) + most)
        return jnp.moveaxis(jnp.take(self.table_NH, rows, axis=0), -1, 0)


def bucket(distance: int, buckets: int, max_distance: int, causal: bool) -> int:
    """The bucket of a distance j - i: the near half exact, the far half logarithmic up to `max_distance`.

    Causal: all buckets look back, and keys ahead share bucket 0; else the second half of the buckets looks ahead.
    """
    if not causal:
        half = buckets // 2
        return bucket(-abs(distance), half, max_distance, True) + (half if distance > 0 else 0)
    back, exact = max(-distance, 0), buckets // 2
    if back < exact:
        return back
    # Where the quotient is a whole number, it may come out a rounding below it.
    part = math.log(back / exact) / math.log(max_distance / exact) + 1e-9
    return min(buckets - 1, exact + int(part * (buckets - exact)))


@value
class Kerple(Relative):
    """-r1 log(1 + r2 |j - i|), r1, r2 > 0 for each head, given as logarithms (Chi et al. 2022, section 4)."""

    log_r1_H: jax.Array = array("heads")
    log_r2_H: jax.Array = array("heads")

    def of(self, distance: Index) -> jax.Array:
        """Logarithmic in the distance, either way."""
        r1, r2 = (jnp.exp(one) for one in _per_head(distance, self.log_r1_H, self.log_r2_H))
        return -r1 * jnp.log1p(r2 * jnp.abs(distance)[None])


@value
class KerplePower(Relative):
    """-r1 |j - i|^r2, r1 > 0 and 0 < r2 <= 2 for each head (Chi et al. 2022, section 4)."""

    r1_H: jax.Array = array("heads")
    r2_H: jax.Array = array("heads")

    def of(self, distance: Index) -> jax.Array:
        """A power of the distance, either way; at distance 0 it is 0, and so are its gradients."""
        r1, r2 = _per_head(distance, self.r1_H, self.r2_H)
        return -r1 * jnp.power(jnp.abs(distance)[None], r2)


@value
class Fire(Bias):
    """f(psi(|i - j|) / psi(max(p, length))), with psi(x) = log(c x + 1) (Li et al. 2024, section 3).

    p is the query's place in its document: `places_BT`, or without them i. f(x) = relu(slope x + offset) . mix is an
    MLP with F hidden units; it lacks the constant of its last layer, which softmax does not see.
    """

    c: jax.Array = array()
    length: jax.Array = array()
    slope_F: jax.Array = array(None)
    offset_F: jax.Array = array(None)
    mix_FH: jax.Array = array(None, "heads")
    places_BT: jax.Array | None = array("batch", None, default=None)

    def at(self, i: Index, j: Index) -> jax.Array:
        """Distances are those in the sequence, which within a document are its own."""
        place = i if self.places_BT is None else gather(self.places_BT, i)
        most = jnp.log1p(self.c * jnp.maximum(place, self.length))
        x = (jnp.log1p(self.c * jnp.abs(i - j)) / most)[..., None]
        slope, offset = (one.reshape(1, 1, 1, 1, -1) for one in (self.slope_F, self.offset_F))
        return jnp.einsum("BZTSF,FH->BHTS", jax.nn.relu(slope * x + offset), self.mix_FH)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """Places of other queries."""
        if self.places_BT is None or tuple(self.places_BT.shape) in ((B, T), (1, T)):
            return None
        made = " x ".join(map(str, self.places_BT.shape))
        return f"a bias made for {made} (rows and queries) cannot serve {B} x {T}"


def _per_head(distance: Index, *numbers_H: jax.Array) -> list[jax.Array]:
    return [jnp.asarray(one).reshape(-1, *(1,) * distance.ndim) for one in numbers_H]
