"""What a model would say behind each layer, and which of its parts has said how much of what it says in the end.

Both take the residual stream as a sum that the readout reads, which it is where no norm stands on the stream itself.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from eval.explain.targets import Target, given, in_float32
from model.errors import UserError
from model.families.family import Model
from model.inspection import seen
from model.parameters import flat_params
from model.stack.residuals import NORM_PLACES

LINEAR = ("next_token", "target", "tag", "span")  # heads whose logits are a linear map of the last norm's output
PLAIN = ("pre", "parallel", "parallel_shared")  # where a branch's own output is what it adds to the stream


class Lens(NamedTuple):
    """The likeliest answers behind each layer, the likeliest first, and their probabilities: (L, B, T, k), or (L, B, k)
    of a model that answers for a whole row.
    """

    answers: jax.Array
    probabilities: jax.Array


class Attribution(NamedTuple):
    """The target's value (B,) as a sum: `bias_B` of the readout and all `values`, by the parts that add to the stream.

    `embedding` (B,), with positions; `attention` (L, B, H), and `cross`, of each head behind its edits; `mlp` (L, B);
    `attention.bias` (L, B), and `cross.bias`, of output projections that have one; `norm.bias` (B,), if there is one.
    """

    values: dict[str, jax.Array]
    total_B: jax.Array
    bias_B: jax.Array


def top(logits: jax.Array, k: int = 5) -> Lens:
    """The k likeliest answers of logits, or all if there are fewer."""
    probabilities, answers = jax.lax.top_k(jax.nn.softmax(logits), min(k, logits.shape[-1]))
    return Lens(answers, probabilities)


def logit_lens(model: Model, inputs: dict[str, Any], reduce: Callable[[jax.Array], Any] = top) -> Any:
    """What the model would say if each layer were its last, the final norm and all behind it applied to the stream
    there (nostalgebraist 2020): `reduce` of the logits, for each layer (L, ...). The last layer's are the model's.

    Raises:
        UserError: a model whose stream is not what the readout reads.
    """
    _check_stream(model, "logit_lens")
    return _lens(*nnx.split(model), inputs, reduce)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _lens(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], reduce: Callable[[jax.Array], Any]) -> Any:
    model, (stack, last) = nnx.merge(graphdef, params), _names(inputs)
    x_LBTD = seen(model, {f"{stack}.residual": lambda x_BTD: x_BTD}, **inputs)[f"{stack}.residual"]
    # What is put behind the layers leaves nothing for them to do: XLA drops them.
    return jax.lax.map(lambda x_BTD: reduce(model(**inputs, taps=given({last: x_BTD}))), x_LBTD)


def residual_parts(model: Model, inputs: dict[str, Any], places_BP: jax.Array) -> dict[str, jax.Array]:
    """What is added to the stream at places, in float32: arrays (..., B, P, D) with the names and leading axes of
    `Attribution.values`, which sum to what the last norm gets. (L, B, H, P, D) of heads: o W, their part of the output
    projection.

    Raises:
        UserError: a model in which a norm stands between a branch and the stream.
    """
    _check_stream(model, "residual_parts", PLAIN)
    return _parts(*nnx.split(in_float32(model)), inputs, places_BP)


@functools.partial(jax.jit, static_argnums=0)
def _parts(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], places_BP: jax.Array) -> dict[str, jax.Array]:
    model, (stack, _) = nnx.merge(graphdef, params), _names(inputs)
    blocks = flat_params((model.decoder if stack == "decoder" else model).stack.blocks)
    branches = [name for name in ("attention", "cross") if (name, "output", "kernel") in blocks]

    def there(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, places_BP.reshape(*places_BP.shape, *(1,) * (x.ndim - 2)), axis=1)

    start, mlp, *heads = [f"{stack}.{name}" for name in ("attention_norm.input", "mlp.output")] + [
        f"{stack}.{branch}.heads" for branch in branches
    ]
    found = seen(model, dict.fromkeys((start, mlp, *heads), there), **inputs)
    parts = {"embedding": found[start][0], "mlp": found[mlp]}
    for branch, site in zip(branches, heads, strict=True):
        kernel_LHKD = blocks[branch, "output", "kernel"][...]
        parts[branch] = jnp.einsum("LBPHK,LHKD->LBHPD", found[site], kernel_LHKD)
        if (branch, "output", "bias") in blocks:
            bias_LD = blocks[branch, "output", "bias"][...]
            parts[f"{branch}.bias"] = jnp.broadcast_to(bias_LD[:, None, None], found[mlp].shape)
    return parts


def logit_attribution(model: Model, inputs: dict[str, Any], target: Target) -> Attribution:
    """How much of the target's value each part has written into the stream itself (direct logit attribution: Elhage et
    al. 2021): its product with what the readout looks for, where the last norm divides by what it does divide by.

    It is computed in float32. What a part does by way of later ones is counted as theirs.

    Raises:
        UserError: a model whose value is no such sum.
    """
    _check_stream(model, "logit_attribution", PLAIN)
    head = getattr(model.config, "head", "") or model.config.HEADS[0]
    if head not in LINEAR:
        raise UserError(
            f"logit_attribution: between the stream and what the head {head!r} says stands more than a linear map; "
            f"take logit_lens, or a model for one of: {', '.join(LINEAR)}."
        )
    if target.of_all or getattr(model.config, "logits_soft_cap", False):
        raise UserError(
            "logit_attribution: log-probabilities, and logits under --config.model.logits_soft_cap, are no sum over "
            "parts; take a target of logits, or of one answer against another."
        )
    return _attribution(*nnx.split(in_float32(model)), inputs, target)


@functools.partial(jax.jit, static_argnums=0)
def _attribution(graphdef: nnx.GraphDef, params: Any, inputs: dict[str, Any], target: Target) -> Attribution:
    model, (stack, last) = nnx.merge(graphdef, params), _names(inputs)
    norm, places_BP1 = (model.decoder if stack == "decoder" else model).norm, target.places_BP[..., None]
    found = seen(model, {last: lambda x: x, "vectors": lambda x: x}, **inputs)

    def value(vectors_BTD: jax.Array) -> jax.Array:
        return target.value(model, inputs, given({"vectors": vectors_BTD}))

    bias_B = value(jnp.zeros_like(found["vectors"]))
    total_B, back = jax.vjp(value, found["vectors"])
    (slope_BTD,) = back(jnp.ones_like(total_B))  # of rows that know nothing of each other
    # A place that is asked for twice has the slope of both.
    times_BP1 = jnp.sum(places_BP1 == target.places_BP[:, None], axis=-1, keepdims=True)
    slope_BPD = jnp.take_along_axis(slope_BTD, places_BP1, axis=1) / times_BP1
    slope_BPD = slope_BPD * (getattr(model.config, "logits_scale", 1.0) or model.config.width**-0.5)
    x_BPD = jnp.take_along_axis(found[last], places_BP1, axis=1)
    x_BPD = x_BPD - jnp.mean(x_BPD, axis=-1, keepdims=True) if norm.centred else x_BPD
    rate_BP1 = jax.lax.rsqrt(jnp.mean(x_BPD * x_BPD, axis=-1, keepdims=True) + norm.epsilon)
    scale_11D = (norm.scale[...] + norm.from_one)[None, None]
    along_BPD = slope_BPD * scale_11D * rate_BP1
    along_BPD = along_BPD - jnp.mean(along_BPD, axis=-1, keepdims=True) if norm.centred else along_BPD
    parts = _parts(graphdef, params, inputs, target.places_BP)
    values = {name: jnp.einsum("...PD,...PD->...", x, _beside(along_BPD, name, x)) for name, x in parts.items()}
    if norm.bias is not None:
        values["norm.bias"] = jnp.sum(slope_BPD * norm.bias[...][None, None], axis=(1, 2))
    return Attribution(values, total_B, bias_B)


def _beside(along_BPD: jax.Array, name: str, x: jax.Array) -> jax.Array:
    """What a part is multiplied by, with its axes: heads stand behind rows."""
    along = along_BPD[:, None] if name in ("attention", "cross") else along_BPD
    return jnp.broadcast_to(along, x.shape)


def _names(inputs: dict[str, Any]) -> tuple[str, str]:
    """Of the stack whose stream is read, and of the site behind it."""
    return ("decoder", "decoder.norm.input") if "pairs" in inputs else ("stack", "norm.input")


def _check_stream(model: Model, method: str, allowed: tuple[str, ...] = ()) -> None:
    place = getattr(model.config, "norm_place", None)
    if place is None:
        raise UserError(f"{method}: a recurrent model has no residual stream that its layers add to; take gradients.")
    allowed = allowed or tuple(name for name, one in NORM_PLACES.items() if one.last)
    if place not in allowed:
        raise UserError(
            f"{method}: with norm_place={place!r} what a branch has said goes through a norm of its layer, so the "
            f"stream is no sum of it; that is defined for --config.model.norm_place of: {', '.join(allowed)}."
        )
