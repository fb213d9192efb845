"""What holds the parameters of an attention bias, and makes the value that the layers get."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model.attention.biases.base import Bias
from model.attention.biases.distance import Alibi, Bucketed, Fire, Kerple, KerplePower
from model.errors import UserError
from model.parameters import Module, parameter

_HIDDEN = 1024  # of FIRE: each pair of query and key has so many activations
_FARTHEST = 2**16  # each distance up to the largest gets its bucket from a table


class NoBias(Module):
    """Nothing is added; also what the modules that hold a bias's parameters inherit from."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs):
        pass

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias | None:
        """The bias as a value, the same for all layers.

        `positions_BT` are the queries' places in their documents, where those are not their indices.
        """
        return None


class AlibiBias(NoBias):
    """ALiBi's slopes 2^(-8 h / H) for h = 1 .. H; no parameters."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs):
        self.num_heads = num_heads

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias:
        """The distances in the sequence are those in a document."""
        return Alibi(jnp.asarray(alibi_slopes(self.num_heads)))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """2^(-8 h / H); where H is no power of two, those of the next lower one, and every other one of its double."""
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    between = [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return np.array((slopes + between)[:num_heads], np.float32)


class T5Bias(NoBias):
    """T5's table of buckets x heads, one for all layers."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs, *, buckets: int, max_distance: int, causal: bool):
        self.table = parameter(rngs, nnx.initializers.normal(0.02), (buckets, num_heads), ("buckets", "heads"))
        self.max_distance, self.causal = max_distance, causal

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias:
        """The distances in the sequence are those in a document."""
        return Bucketed(self.table[...], self.max_distance, self.causal)


class KerpleBias(NoBias):
    """r1 and r2 of each head as logarithms, first drawn from (0.01, 2) and (0.01, 1)."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs):
        self.log_r1 = parameter(rngs, _log_uniform(2.0), (num_heads,), ("heads",))
        self.log_r2 = parameter(rngs, _log_uniform(1.0), (num_heads,), ("heads",))

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias:
        """The distances in the sequence are those in a document."""
        return Kerple(self.log_r1[...], self.log_r2[...])


class KerplePowerBias(NoBias):
    """r1 of each head as a logarithm, first drawn from (0.01, 2), and r2 = 2 sigmoid(raw), first 1."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs):
        self.log_r1 = parameter(rngs, _log_uniform(2.0), (num_heads,), ("heads",))
        self.raw_r2 = parameter(rngs, nnx.initializers.zeros, (num_heads,), ("heads",))

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias:
        """The distances in the sequence are those in a document."""
        return KerplePower(jnp.exp(self.log_r1[...]), 2 * jax.nn.sigmoid(self.raw_r2[...]))


class FireBias(NoBias):
    """FIRE's MLP with `hidden` units, c first 0.1, and the length below which places are not told apart."""

    def __init__(self, num_heads: int, rngs: nnx.Rngs, *, hidden: int, length: float):
        self.log_c = parameter(rngs, nnx.initializers.constant(math.log(0.1)), (), ())
        self.log_length = parameter(rngs, nnx.initializers.constant(math.log(length)), (), ())
        self.slope = parameter(rngs, _uniform, (hidden,), ("hidden",))
        self.offset = parameter(rngs, _uniform, (hidden,), ("hidden",))
        self.mix = parameter(rngs, nnx.initializers.normal(hidden**-0.5), (hidden, num_heads), ("hidden", "heads"))

    def __call__(self, positions_BT: jax.Array | None = None) -> Bias:
        """A query's place in its document says how its distances are scaled."""
        c, length = jnp.exp(self.log_c[...]), jnp.exp(self.log_length[...])
        places_BT = None if positions_BT is None else positions_BT.astype(jnp.float32)
        return Fire(c, length, self.slope[...], self.offset[...], self.mix[...], places_BT)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(key, shape, minval=-1, maxval=1)


def _log_uniform(most: float) -> Callable[..., jax.Array]:
    return lambda key, shape: jnp.log(jax.random.uniform(key, shape, minval=0.01, maxval=most))


BiasMaker = Callable[[int, nnx.Rngs], NoBias]


def none() -> BiasMaker:
    """No bias."""
    return NoBias


def alibi() -> BiasMaker:
    """ALiBi."""
    return AlibiBias


def t5(buckets: int = 32, max_distance: int = 128) -> BiasMaker:
    """T5's relative bias, as in its encoder: half of the buckets look ahead.

    Raises:
        UserError: the buckets are not an even number of at least 4, or `max_distance` is not above the exact ones.
    """
    if buckets < 4 or buckets % 2 or not buckets // 4 < max_distance <= _FARTHEST:
        raise UserError(
            f"--config.model.bias: t5({buckets}, {max_distance}) needs an even number of buckets, at least 4, and a "
            f"max_distance above a quarter of them and up to {_FARTHEST}."
        )
    return functools.partial(T5Bias, buckets=buckets, max_distance=max_distance, causal=False)


def t5_causal(buckets: int = 32, max_distance: int = 128) -> BiasMaker:
    """T5's relative bias, as in its decoder: all buckets look back.

    Raises:
        UserError: there are less than 2 buckets, or `max_distance` is not above the exact ones.
    """
    if buckets < 2 or not buckets // 2 < max_distance <= _FARTHEST:
        raise UserError(
            f"--config.model.bias: t5_causal({buckets}, {max_distance}) needs at least 2 buckets, and a max_distance "
            f"above half of them and up to {_FARTHEST}."
        )
    return functools.partial(T5Bias, buckets=buckets, max_distance=max_distance, causal=True)


def kerple() -> BiasMaker:
    """KERPLE, the logarithmic variant."""
    return KerpleBias


def kerple_power() -> BiasMaker:
    """KERPLE, the power variant."""
    return KerplePowerBias


def fire(hidden: int = 32, length: float = 512.0) -> BiasMaker:
    """FIRE.

    Raises:
        UserError: hidden units or a length out of range.
    """
    if not (1 <= hidden <= _HIDDEN and 1 <= length < math.inf):
        raise UserError(
            f"--config.model.bias: fire({hidden}, {length}) needs 1 to {_HIDDEN} hidden units and a length of at "
            "least 1."
        )
    return functools.partial(FireBias, hidden=hidden, length=length)
