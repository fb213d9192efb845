"""What is added to the logits by where query and key stand, as values: any block on demand."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention.masks import Index, Start, gather_BHTS, indices
from model.attention.values import array, value


class Bias:
    """The base of all biases."""

    def at(self, i: Index, j: Index) -> jax.Array:
        """What is added for query i and key j: (B or 1, H or 1, T, S) for index arrays of rank 4."""
        raise NotImplementedError

    def block(self, i0: Start, j0: Start, rows: int, columns: int) -> jax.Array:
        """The part that begins at query i0 and key j0, (B or 1, H or 1, rows, columns); the starts may be traced."""
        return self.at(*indices(i0, j0, rows, columns))

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """What, if anything, the bias was made for that these sizes are not."""
        return None


class Relative(Bias):
    """A bias that depends on the distance j - i alone."""

    def of(self, distance: Index) -> jax.Array:
        """(H, *shape) for whole distances j - i of any shape."""
        raise NotImplementedError

    def at(self, i: Index, j: Index) -> jax.Array:
        """The bias of each distance."""
        return jnp.moveaxis(self.of((j - i)[:, 0]), 0, 1)

    def block(self, i0: Start, j0: Start, rows: int, columns: int) -> jax.Array:
        """A Toeplitz matrix: the rows + columns - 1 distances are looked up once, and laid out by a reshape."""
        # Entry (a, b) is vector[(b - a) mod n]: n entries repeated, read in rows that are one shorter than n.
        n = rows + columns
        steps = np.arange(n)
        vector_Hn = self.of(j0 - i0 + np.where(steps < columns, steps, steps - n))
        flat = jnp.tile(vector_Hn, (1, rows))[:, : rows * (n - 1)]
        return flat.reshape(-1, rows, n - 1)[None, :, :, :columns]


@value
class ExplicitBias(Bias):
    """An array of numbers (B or 1, H or 1, T, S)."""

    bias_BHTS: jax.Array = array("batch", "heads", None, None)

    def at(self, i: Index, j: Index) -> jax.Array:
        """Gathers entries; indices beyond the array answer as its last one does."""
        return gather_BHTS(self.bias_BHTS, i, j)

    def misfit(self, B: int, H: int, T: int, S: int) -> str | None:
        """An array that does not broadcast to (B, H, T, S)."""
        shape, sizes = tuple(self.bias_BHTS.shape), (B, H, T, S)
        if len(shape) == 4 and all(one in (1, size) for one, size in zip(shape[:2], sizes[:2], strict=True)):
            if shape[2:] == sizes[2:]:
                return None
        return f"a bias made for {' x '.join(map(str, shape))} (rows, heads, queries, keys) cannot serve {sizes}"


@value
class Alibi(Relative):
    """-slope x |j - i|, with a slope for each head (Press et al. 2022, section 3)."""

    slopes_H: jax.Array = array("heads")

    def of(self, distance: Index) -> jax.Array:
        """The slope times the distance, either way."""
        slopes = jnp.asarray(self.slopes_H).reshape(-1, *(1,) * distance.ndim)
        return -slopes * abs(distance)[None]


class NoBias(nnx.Module):
    """Nothing is added; also what the modules that hold a bias's parameters inherit from."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs):
        pass

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias | None:
        """The bias as a value, the same for all layers; `positions_BT` are the queries' places in their documents, where
        those are not their indices."""
        return None


class AlibiBias(NoBias):
    """ALiBi's slopes 2^(-8 h / H) for h = 1 .. H; no parameters."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs):
        self.num_heads = num_heads

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias:
        """The distances in the sequence are those in a document."""
        return Alibi(alibi_slopes(self.num_heads))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """2^(-8 h / H); where H is no power of two, those of the next lower one, and every other one of its double."""
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return np.array((slopes + between)[:num_heads], np.float32)


BiasMaker = Callable[[int, nnx.Rngs], NoBias]


def none() -> BiasMaker:
    """No bias."""
    return NoBias


def alibi() -> BiasMaker:
    """ALiBi."""
    return AlibiBias
