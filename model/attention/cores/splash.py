"""The splash core: the Pallas kernel for TPUs that ships with JAX, with our masks, padding, sinks and ALiBi."""

import functools
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as kernel_masks

from model.attention.biases.base import Bias
from model.attention.biases.distance import Alibi
from model.attention.contract import Refusals, Request, needs
from model.attention.cores import splash_mask
from model.attention.cores.blockwise import cleaned
from model.attention.cores.sharded import per_device, uneven
from model.attention.masks.base import Mask
from model.attention.masks.places import speaks_of_places
from model.attention.scores import Scores

_LANES = 128  # a block of keys is a multiple of a register's lanes, and so is one of queries in the backward pass
_HEAD_BYTES = 1024  # a head of width 256 in float32, for which the table below is made
_PLACE_COLUMNS, _MOST_PLACES = 4, 2**16  # places that are the sum of two numbers of 8 bits
_NO_SINK = -1e30  # lower than any logit, above what the kernel gives to hidden ones


class Sizes(NamedTuple):
    """The largest blocks: queries, keys that are fetched, and keys of one matrix product."""

    queries: int = 512
    keys: int = 512
    compute: int = 512


# By the chip's name, for heads of up to 1,024 bytes. Not tuned: they fit its vector memory, by its compiler
# (tests/train/test_tpu.py), and no chip has ranked them yet.
SIZES = {
    "TPU v4": Sizes(512, 512, 512),
    "TPU v5 lite": Sizes(512, 512, 512),
    "TPU v5": Sizes(512, 512, 512),
    "TPU v6 lite": Sizes(512, 1024, 512),
    "TPU7x": Sizes(512, 1024, 512),
}


def splash(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores) -> jax.Array:
    """softmax(scale * q k^T) v by JAX's splash attention kernel, on each device of the mesh; returns o_BTHK.

    Blocks that the static part of the mask empties are not computed, forward and backward; packing and padding are
    masked exactly and skip nothing.
    """
    width = q_BTHK.shape[-1] + (0 if scores.bias is None else _PLACE_COLUMNS)
    sizes = fitting(SIZES.get(_chip(), Sizes()), width * q_BTHK.dtype.itemsize)
    return run(q_BTHK, k_BSGK, v_BSGK, scores, sizes=sizes, interpret=False)


def fitting(sizes: Sizes, head_bytes: int) -> Sizes:
    """The sizes for a head of so many bytes: smaller by as much as it is wider than 1,024."""
    return Sizes(*(max(_LANES, size // -(-head_bytes // _HEAD_BYTES) // _LANES * _LANES) for size in sizes))


def run(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores, *, sizes: Sizes, interpret: bool
) -> jax.Array:
    """`splash` with blocks of at most these sizes; `interpret` runs the kernel on any device, slowly, for tests."""
    call = functools.partial(_on_device, sizes=sizes, interpret=interpret)
    k_BSGK, v_BSGK = scores.without_hidden(k_BSGK, v_BSGK, q_BTHK.shape[1])
    return per_device(call, q_BTHK, k_BSGK, v_BSGK, scores)


def _on_device(
    q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores, sizes: Sizes, interpret: bool
) -> jax.Array:
    (B, T, H, K), S, parts = q_BTHK.shape, k_BSGK.shape[1], splash_mask.split(scores.mask)
    kernel, shape = make_kernel(parts.static, T, S, sizes, K, scores.soft_cap, interpret)
    inputs = q_BTHK, k_BSGK, v_BSGK
    q_BTHK = (q_BTHK * scores.scale).astype(q_BTHK.dtype)
    if isinstance(scores.bias, Alibi):
        q_BTHK, k_BSGK = with_places(q_BTHK, k_BSGK, scores.bias.slopes_H)
    q_BHTK = _padded(q_BTHK.swapaxes(1, 2), shape[0])
    k_BGSK, v_BGSK = (_padded(x.swapaxes(1, 2), shape[1]) for x in (k_BSGK, v_BSGK))
    # A row without a key would give the mean of the values that it was told not to see, or 0/0 where none of its blocks
    # is computed. A sink that is lower than any logit takes all of such a row's weight and none, exactly, of another's:
    # its output and gradients are exactly zero.
    sinks_H = jnp.full(H, _NO_SINK, jnp.float32) if scores.sinks_H is None else _wide_gradient(scores.sinks_H)
    ids = splash_mask.segment_ids(parts, B, T, S, shape)
    o_BHTK = cast(jax.Array, jax.vmap(kernel, (0, 0, 0, 0, None))(q_BHTK, k_BGSK, v_BGSK, ids, sinks_H))
    o_BTHK = o_BHTK[:, :, :T].swapaxes(1, 2)
    return o_BTHK if scores.bias is None else _with_slopes(o_BTHK, scores.bias, *inputs, scores)


def make_kernel(
    mask: Mask, T: int, S: int, sizes: Sizes, K: int, soft_cap: float = 0.0, interpret: bool = False
) -> tuple[kernels.SplashAttentionKernel, tuple[int, int]]:
    """The kernel for (H, T, K) queries under a static mask, and the lengths that queries and keys are padded to."""
    rows, columns = _block(T, sizes.queries), _block(S, sizes.keys)
    if columns > sizes.compute and columns % sizes.compute:
        columns = _block(S, sizes.compute)
    compute = min(columns, sizes.compute)
    # Arrays are stored in rows of 128 numbers. For narrow heads these are places, not columns, or all that is kept for
    # the backward pass would take twice its memory. (GPT-2's step, K = 64: 4.9 GB instead of 5.3 on a v5e.)
    layout = kernels.QKVLayout.SEQ_MINOR if 2 * K <= _LANES else kernels.QKVLayout.HEAD_DIM_MINOR
    # The fused backward kernel is not used: it keeps a gradient of all queries for each block of keys.
    blocks = kernels.BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_kv_compute=compute,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_kv_dkv_compute=compute,
        block_q_dq=rows,
        block_kv_dq=columns,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )
    shape = -(-T // rows) * rows, -(-S // columns) * columns
    kernel = kernels.make_splash_mha(
        # One mask serves every head.
        kernel_masks.MultiHeadMask([splash_mask.BlockMask(mask, T, S, shape)]),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap or None,
        interpret=interpret,
    )
    return kernel, shape


def _block(length: int, most: int) -> int:
    """The size of equal blocks, as few as `most` allows: 600 places make two of 384, not two of 512."""
    return -(-length // -(-length // most) // _LANES) * _LANES


def _padded(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0))) if length > x.shape[2] else x


def with_places(q_BTHK: jax.Array, k_BSGK: jax.Array, slopes_H: jax.Array) -> tuple[jax.Array, jax.Array]:
    """More columns, whose products add slope * j: the -slope * i that is missing is the same for a whole row.

    A bfloat16 has 8 bits: a place is the sum of two such numbers, exactly, and a slope up to 2^-17 of it.
    """
    (B, T, H, _), (S, G) = q_BTHK.shape, k_BSGK.shape[1:3]
    low_S, slopes_H = np.arange(S) % 256, jax.lax.stop_gradient(slopes_H).astype(jnp.float32)
    coarse_H = jax.lax.reduce_precision(slopes_H, 8, 7)
    q_columns_HP = jnp.stack([coarse_H, coarse_H, slopes_H - coarse_H, slopes_H - coarse_H], axis=-1)
    k_columns_SP = np.stack([np.arange(S) - low_S, low_S] * 2, axis=-1)
    q_more = jnp.broadcast_to(q_columns_HP[None, None].astype(q_BTHK.dtype), (B, T, H, _PLACE_COLUMNS))
    k_more = jnp.broadcast_to(jnp.asarray(k_columns_SP[None, :, None], k_BSGK.dtype), (B, S, G, _PLACE_COLUMNS))
    return jnp.concatenate([q_BTHK, q_more], axis=-1), jnp.concatenate([k_BSGK, k_more], axis=-1)


@jax.custom_vjp
def _wide_gradient(sinks_H: jax.Array) -> jax.Array:
    """The sinks in float32; the kernel gives their gradient in the dtype of the queries, which JAX would pass on."""
    return sinks_H.astype(jnp.float32)


_wide_gradient.defvjp(lambda sinks_H: (sinks_H.astype(jnp.float32), sinks_H), lambda x, grad: (grad.astype(x.dtype),))


@jax.custom_vjp
def _with_slopes(
    o_BTHK: jax.Array, bias: Bias, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, scores: Scores
) -> jax.Array:
    """o as it is, with the gradient of the slopes by `blockwise`, if anybody asks for it.

    That of the columns would be the small difference of large sums, rounded to bfloat16: wrong by a seventh at T = 256.
    """
    return o_BTHK


def _slopes_forward(o_BTHK: jax.Array, *rest: Any) -> tuple[jax.Array, Any]:
    return o_BTHK, rest


def _slopes_backward(rest: Any, do_BTHK: jax.Array) -> tuple[Any, ...]:
    bias, q, k, v, scores = rest
    pull = jax.vjp(lambda bias: cleaned(q, k, v, scores.replace(bias=bias)), bias)[1]
    return do_BTHK, pull(do_BTHK)[0], None, None, None, None


_with_slopes.defvjp(_slopes_forward, _slopes_backward)


def _chip() -> str:
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def refusals(request: Request) -> Refusals:
    """Other platforms and dtypes, dropout, biases but ALiBi, and masks of arrays but packing and padding."""
    scores, ways, other = request.scores, request.ways, "write blockwise"
    yield from needs(request.platform == "tpu", f"its kernel is for TPUs, and this runs on a {request.platform}", other)
    yield from needs(
        request.dtype in (jnp.float32, jnp.bfloat16),
        f"its kernel takes float32 and bfloat16, not {request.dtype}",
        "write --config.model.dtype=bfloat16, or blockwise",
    )
    yield from needs(
        request.K * request.dtype.itemsize <= 4 * _HEAD_BYTES,
        f"its kernel has no room for heads of width {request.K} in {request.dtype}",
        f"{other}, or narrower heads",
    )
    yield from needs(
        ways["length"] == 1,
        f"its kernel takes whole sequences, and the mesh splits them over context={ways['length']}",
        "write ring or ulysses, or --config.mesh.context=1",
    )
    yield from uneven(request)
    yield from needs(
        request.G == 1 or ways["heads"] == ways["kv_heads"],
        f"its kernel needs a head's key head on the same device, and the mesh splits {request.G} key heads over "
        f"{ways['kv_heads']} devices but {request.H} heads over {ways['heads']}",
        "give both the same mesh axes",
    )
    yield from needs(
        scores.query_positions_BT is None, "its kernel takes queries in the order of the sequence", "write dense"
    )
    yield from needs(scores.dropout is None, "its kernel drops no weights", f"{other}, or --config.model.dropout=0")
    yield from _mask_refusals(scores.mask, other)
    if isinstance(scores.bias, Alibi):
        yield from _alibi_refusals(request, other)
    else:
        yield from needs(scores.bias is None, "its kernel adds no bias but ALiBi", other)


def _mask_refusals(mask: Mask, other: str) -> Refusals:
    parts = splash_mask.split(mask)
    yield from needs(
        not speaks_of_places(mask),
        "its kernel plans its blocks before it knows where documents begin, and this mask speaks of places in them",
        f"{other}, or a --config.model.mask of causal, window, dilated and strided alone",
    )
    kinds = ", ".join(type(one).__name__ for one in parts.other if not speaks_of_places(one))
    yield from needs(
        not kinds, f"of masks that hold arrays, its kernel takes `& segments` and `& padding`, not {kinds}", other
    )
    yield from needs(len(parts.segments) < 2, "its kernel takes one `& segments`, not two", f"{other}, or join the ids")


def _alibi_refusals(request: Request, other: str) -> Refusals:
    # Logits then carry slope * j, whose rounding to float32 is seen by a float32 core: of the largest number, 5e-6 at
    # T = 256 and 2e-5 at T = 1024, where 5e-7 is usual. In bfloat16 it is a hundredth of what is usual.
    yield from needs(
        request.dtype == jnp.bfloat16,
        "its kernel computes ALiBi as products, which are exact enough for bfloat16 only",
        f"{other}, or --config.model.dtype=bfloat16",
    )
    yield from needs(request.S <= _MOST_PLACES, f"its kernel computes ALiBi for up to {_MOST_PLACES} keys", other)
    yield from needs(
        splash_mask.looks_back(request.scores.mask),
        "its kernel computes ALiBi where no query sees a key ahead, and this mask is no `causal & ...`",
        other,
    )
    yield from needs(
        not request.scores.soft_cap and request.scores.sinks_H is None,
        "its kernel computes ALiBi up to a number for each row, which a soft cap and sinks would notice",
        other,
    )
