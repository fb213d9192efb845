"""The two ends of a language model, where each token of the vocabulary has a row: its vector, and its logit."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from model import sums
from model.axes import mesh_axes, on_each_device, pin
from model.bounds import rows_of
from model.parameters import Module, parameter
from model.slices import Form, Terms, logits, sliced_terms

SLICE_BYTES = 2**28  # the most that a device's float32 logits of a slice of the vocabulary may take
KEPT_BYTES = 2**30  # and the most that a kernel may take that was gathered for the loss and is kept for the gradients


class Embedded(NamedTuple):
    """What is done to the tokens' vectors before the first layer."""

    scaled: bool = False  # times sqrt(D), in their dtype, before positions are added (Vaswani et al. 2017, section 3.4)
    normed: bool = False  # normalised, after that (BERT: Devlin et al. 2019; BLOOM: Le Scao et al. 2022, section 3.2)


EMBEDDINGS = {"plain": Embedded(), "scaled": Embedded(scaled=True), "normed": Embedded(normed=True)}


class Embedding(Module):
    """A table (V, D) that gives each token its vector, times sqrt(D) where `scaled`, which is rounded as they are."""

    def __init__(self, vocab_size: int, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs, scaled: bool = False):
        self.dtype, self.scale = dtype, math.sqrt(width) if scaled else None
        init = nnx.initializers.normal(1 / math.sqrt(width))
        self.embedding = parameter(rngs, init, (vocab_size, width), ("vocab", "embed"))

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """The vectors of the tokens, (B, T, D); NaN for an id outside of the vocabulary."""
        (B, T), (V, D), names = tokens_BT.shape, self.embedding.shape, ("batch", "length")
        lookup = functools.partial(_lookup, vocab_size=V, dtype=self.dtype)
        (x_BTD,) = on_each_device(lookup, (("vocab", "embed"), names), ((*names, None),))(
            self.embedding[...], tokens_BT
        )
        x_BTD = pin(x_BTD[:B, :T, :D], *names, None)
        return x_BTD if self.scale is None else x_BTD * jnp.asarray(self.scale, self.dtype)


def _lookup(table_VD: jax.Array, tokens_BT: jax.Array, vocab_size: int, dtype: DTypeLike) -> tuple[jax.Array]:
    """On a device that has some rows and columns of the table: its columns of the vectors of its group's tokens, in
    exchange for the other columns of its own tokens. Neither the table nor its gradient is ever gathered.
    """
    columns, rows = mesh_axes("embed")[0], mesh_axes("vocab")[0]
    if columns:
        tokens_BT = jax.lax.all_gather(tokens_BT, columns, tiled=True)
    first = jax.lax.axis_index(rows) * len(table_VD) if rows else 0
    known_BT1 = ((0 <= tokens_BT) & (tokens_BT < vocab_size))[..., None]
    x_BTD = jnp.where(known_BT1, rows_of(table_VD, tokens_BT - first, missing=0), jnp.nan).astype(dtype)
    if columns:
        x_BTD = jax.lax.all_to_all(x_BTD, columns, split_axis=0, concat_axis=2, tiled=True)
    return (jax.lax.psum(x_BTD, rows) if rows else x_BTD,)


@dataclasses.dataclass(frozen=True)
class Readout:
    """What turns vectors into logits: soft_cap(x @ kernel + bias), where soft_cap(y) = c tanh(y / c), or y if c is 0.

    The kernel has the axes (D, V), or (V, D) as the embedding, which `vocab_axis` tells; products are of `dtype`, and
    the bias (V,) is added to them in float32.
    """

    kernel: jax.Array
    vocab_axis: int
    dtype: DTypeLike
    soft_cap: float = 0.0
    bias: jax.Array | None = None

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """Scores of each token of the vocabulary, (B, T, V) in float32."""
        logits_BTV = logits(x_BTD.astype(self.dtype), sums.cast(self.kernel, self.dtype), self.form, self.bias)
        return pin(logits_BTV, "batch", "length", "vocab")

    @property
    def form(self) -> Form:
        """All but the numbers."""
        return Form(self.kernel.shape[self.vocab_axis], self.vocab_axis, jnp.dtype(self.dtype), self.soft_cap)


class Head(Module):
    """The parameters of a readout: a kernel (D, V), unless it is the embedding's table, and perhaps a bias (V,)."""

    def __init__(self, width: int, vocab_size: int, *, tied: bool, bias: bool, rngs: nnx.Rngs):
        axes, init = ("embed", "vocab"), nnx.initializers.normal(1 / math.sqrt(width))
        self.kernel = None if tied else parameter(rngs, init, (width, vocab_size), axes)
        self.bias = parameter(rngs, nnx.initializers.zeros, (vocab_size,), axes[1:]) if bias else None

    def readout(self, embedding: Embedding, soft_cap: float) -> Readout:
        """What turns vectors into logits, tied to this embedding if it has no kernel, in the embedding's dtype."""
        kernel, axis = (embedding.embedding, 0) if self.kernel is None else (self.kernel, 1)
        bias = None if self.bias is None else self.bias[...]
        return Readout(kernel[...], axis, embedding.dtype, soft_cap, bias)


def token_scores(x_BTD: jax.Array, readout: Readout, targets_BT: jax.Array) -> Terms:
    """What a loss needs to know of the logits of `x_BTD`; the target's is NaN for one outside of the vocabulary.

    Where a device's float32 logits are more than two times `SLICE_BYTES`, they are never there at once: they are made
    slice by slice of the vocabulary, and again for the gradients (`model.slices`). What is lost then is forward-mode
    differentiation (`jax.jvp`, `jax.linearize`, Hessians by them), which one slice has.
    """
    (B, T), V = targets_BT.shape, readout.form.vocab_size
    slices = num_slices(B, T, V)
    if slices > 1:
        weights = (readout.kernel,) if readout.bias is None else (readout.kernel, readout.bias)
        return sliced_terms(x_BTD, weights, targets_BT, readout.form, slices, _kept(readout))
    logits_BTV = readout(x_BTD)
    # A negative one would count from the end.
    ids_BT1 = jnp.where(targets_BT < 0, V, targets_BT)[..., None]
    target_BT = jnp.take_along_axis(logits_BTV, ids_BT1, axis=-1, mode="fill")[..., 0]
    largest_BT = jax.lax.stop_gradient(jnp.max(logits_BTV, axis=-1))
    return Terms(jax.nn.logsumexp(logits_BTV, axis=-1), target_BT, jnp.mean(logits_BTV, axis=-1), largest_BT)


def _kept(readout: Readout) -> bool:
    """Whether a device that gathers the kernel for the loss keeps it for the gradients, where it is small enough."""
    return readout.kernel.size // mesh_axes("vocab")[1] * jnp.dtype(readout.dtype).itemsize <= KEPT_BYTES


def num_slices(rows: int, length: int, vocab_size: int) -> int:
    """Into how many slices a device cuts its part of the vocabulary, so that its tokens' float32 logits of one slice
    take at most `SLICE_BYTES`: 1 where the vocabulary is small or the tokens are few. Two would save little, and cost
    as much as many: their products are done again for the gradients.

    The tokens of one seed; of a population all that share a device are there at once.
    """
    tokens, columns = rows * length / mesh_axes("batch", "length")[1], vocab_size // mesh_axes("vocab")[1]
    slices = min(columns, math.ceil(4 * tokens * columns / SLICE_BYTES))
    return slices if slices > 2 else 1
