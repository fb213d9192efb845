"""What is said behind each layer, and what each part adds to it, beside the model itself and NumPy."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain.capture import capture
from eval.explain.methods.lens import Attribution, logit_attribution, logit_lens, residual_parts, top
from eval.explain.targets import Target
from launch.configs import load
from model import UserError
from tests.eval.explain.cases import KINDS, B, L, T, V, case
from train.devices.mesh import AXES, make_mesh, make_rules
from train.experiment import make_model_config
from train.sharding import placed

BIASED = {
    "model.use_bias": "qkv & output & mlp & norm & head",
    "model.norm": "layer",
    "model.tied": False,
    "model.norm_place": "parallel",
    "model.num_kv_heads": 2,
    "model.edits": "output_gate",
}
SHARED = {
    "model.norm_place": "parallel_shared",
    "model.norm": "rms_plus_one",
    "model.embedding": "normed",
    "model.dtype": "bfloat16",
}
PRE = {"model.norm_place": "pre"}
SCALED = {"model.logits_scale": 0.0}
CASES = [
    ("gpt-language_model", BIASED),
    ("gpt-language_model", SHARED),
    ("encoder_decoder-translation", SCALED),
    ("bert-tagging", PRE),
]


def whole(x: jax.Array) -> jax.Array:
    return x


def of(model: Any) -> tuple[Any, str]:
    """The side that answers, and what stands before its sites outside of layers."""
    return (model.decoder, "decoder.") if hasattr(model, "decoder") else (model, "")


def test_what_is_said_is_a_sum_and_the_last_layers_lens() -> None:
    model, inputs, target = case("gpt-language_model")
    said_BTV = np.asarray(jax.jit(lambda: model(**inputs))())
    np.testing.assert_allclose(logit_lens(model, inputs, whole)[-1], said_BTV, rtol=1e-5, atol=1e-5)
    found = logit_attribution(model, inputs, target)
    want_B = said_BTV[np.arange(B), target.places_BP[:, 0], target.answers_BP[:, 0]]
    np.testing.assert_allclose(total(found), want_B, rtol=1e-5, atol=1e-5)


def total(found: Attribution) -> np.ndarray:
    """What all parts say together, (B,)."""
    axes = {1: (), 2: 0, 3: (0, 2)}
    return np.asarray(found.bias_B) + sum(np.sum(x, axes[x.ndim]) for x in found.values.values())


@pytest.mark.rest
@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_parts_sum_to_the_stream_and_to_what_is_said(kind: str, changes: dict[str, Any]) -> None:
    """Of one answer against another at two places, of which one is asked for twice."""
    model, inputs, target = case(kind, **changes)
    places_BP = jnp.concatenate([target.places_BP, target.places_BP, jnp.ones_like(target.places_BP)], axis=1)
    answers_BP = jnp.asarray([[0, 1, 1]] * B, jnp.int32)
    target = Target(places_BP, answers_BP, jnp.asarray([[1, 0, 0]] * B, jnp.int32) if "bert" in kind else None)
    side, before = of(model)
    exact = np.float32 if model.config.dtype == "float32" else None
    parts = {name: np.asarray(x, np.float64) for name, x in residual_parts(model, inputs, places_BP).items()}
    axes = {name: tuple(range(x.ndim - 3)) if x.ndim != 5 else (0, 2) for name, x in parts.items()}
    axes |= dict.fromkeys(("attention", "cross"), (0, 2))
    stream_BPD = sum(x.sum(axes[name]) for name, x in parts.items())
    if exact:
        rows = np.arange(B)[:, None]
        stack = before or "stack."
        names = [f"{before}norm.input", f"{stack}attention.output"]
        seen = capture(model, names, **inputs)
        last, output = (np.asarray(seen[name]) for name in names)
        np.testing.assert_allclose(stream_BPD, last[rows, places_BP], rtol=1e-5, atol=1e-5)
        bias = parts.get("attention.bias", 0)
        got = parts["attention"].sum(2) + bias
        np.testing.assert_allclose(got, output[:, rows, places_BP], rtol=1e-5, atol=1e-5)
    found = logit_attribution(model, inputs, target)
    np.testing.assert_allclose(total(found), found.total_B, rtol=1e-5, atol=1e-5)
    if exact:
        np.testing.assert_allclose(found.total_B, target.value(model, inputs), rtol=1e-5, atol=1e-5)
    # And of each part, with a norm by hand.
    want, bias_B = numpy_products(model, side, target, parts, stream_BPD)
    np.testing.assert_allclose(found.bias_B, bias_B, atol=1e-6)
    assert found.values.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_allclose(found.values[name], x, rtol=1e-4, atol=2e-5, err_msg=name)


def numpy_products(model: Any, side: Any, target: Target, parts: dict[str, Any], stream_BPD: np.ndarray) -> Any:
    """Each part along the columns of the readout, and the readout's bias."""
    config, norm = model.config, side.norm
    if hasattr(model, "readout") and model.head is not None:
        readout = model.readout()
        kernel_DV = np.asarray(readout.kernel, np.float64)
        kernel_DV = kernel_DV.T if readout.vocab_axis == 0 else kernel_DV
        bias_V = np.zeros(kernel_DV.shape[1]) if readout.bias is None else np.asarray(readout.bias)
    else:
        kernel_DV, bias_V = np.asarray(model.answer.kernel[...], np.float64), np.asarray(model.answer.bias[...])
    kernel_DV = kernel_DV * (getattr(config, "logits_scale", 1.0) or config.width**-0.5)
    columns_BPD, bias_B = kernel_DV.T[target.answers_BP], bias_V[target.answers_BP].sum(1)
    if target.against_BP is not None:
        columns_BPD = columns_BPD - kernel_DV.T[target.against_BP]
        bias_B = bias_B - bias_V[target.against_BP].sum(1)
    centre = (lambda x: x - x.mean(-1, keepdims=True)) if norm.centred else (lambda x: x)
    spread_BP1 = np.sqrt((centre(stream_BPD) ** 2).mean(-1, keepdims=True) + norm.epsilon)
    scale_D = np.asarray(norm.scale[...], np.float64) + (1 if norm.from_one else 0)
    said = {}
    for name, x in parts.items():
        at = (slice(None), None) if name in ("attention", "cross") else ()
        said[name] = (centre(x) / spread_BP1[at] * scale_D * columns_BPD[at]).sum((-2, -1))
    if norm.bias is not None:
        said["norm.bias"] = (np.asarray(norm.bias[...]) * columns_BPD).sum((1, 2))
    return said, bias_B


LENSES = [
    ("gpt-language_model", BIASED),
    ("gpt-language_model", {"model.norm_place": "output", "model.logits_soft_cap": 2.0, "model.dtype": "bfloat16"}),
    ("encoder_decoder-translation", SCALED),
    ("bert-masked_lm", PRE),
    ("bert-classification", PRE),
]


@pytest.mark.rest
@pytest.mark.parametrize(("kind", "changes"), LENSES)
def test_the_last_layers_lens_is_what_the_model_says(kind: str, changes: dict[str, Any]) -> None:
    """And an earlier one's what its head makes of the stream there, normed as at the end."""
    model, inputs, _ = case(kind, **changes)
    found = np.asarray(logit_lens(model, inputs, whole))
    half = model.config.dtype == "bfloat16"
    close = {"rtol": 2e-2, "atol": 2e-2} if half else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(found[-1], jax.jit(lambda: model(**inputs))(), **close)
    side, before = of(model)
    site = f"{before or 'stack.'}residual"
    x_BTD = side.norm(capture(model, [site], **inputs)[site][0])
    x_BTD = x_BTD * (getattr(model.config, "logits_scale", 1.0) or model.config.width**-0.5)
    if kind == "bert-classification":
        want = model.answers(x_BTD, None, inputs["valid_BT"])
    else:
        want = model.readout()(model.transform(x_BTD) if kind == "bert-masked_lm" else x_BTD)
    np.testing.assert_allclose(found[0], want, **close)
    assert np.abs(found[0] - found[-1]).max() > 0.05
    likeliest = logit_lens(model, inputs) if kind == "bert-classification" else top(found)
    order = np.argsort(-found, axis=-1)[..., : likeliest.answers.shape[-1]]
    probabilities = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    np.testing.assert_allclose(likeliest.probabilities, np.take_along_axis(probabilities, order, axis=-1), rtol=1e-2)
    assert likeliest.answers.shape == (L, B, *(() if "class" in kind else (T,)), 5)
    if not half:
        np.testing.assert_array_equal(likeliest.answers, order)


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        ("bert-tagging", {}, "with norm_place='post' what a branch has said goes through a norm of its layer, so "),
        ("gpt-language_model", {"model.norm_place": "sandwich"}, "with norm_place='sandwich' what a branch has said g"),
        ("recurrent-language_model", {}, "a recurrent model has no residual stream that its layers add to; take gr"),
        ("bert-masked_lm", PRE, "between the stream and what the head 'token' says stands more than a linear map; "),
        ("gpt-language_model", {"model.logits_soft_cap": 2.0}, "log-probabilities, and logits under --config.model.l"),
    ],
)
def test_what_is_no_sum_is_refused(kind: str, changes: dict[str, Any], sentence: str) -> None:
    family, task = KINDS[kind]
    config = make_model_config(load("base", family=family, task=task, **changes), V, 5)
    model, target = types.SimpleNamespace(config=config), Target(jnp.zeros((1, 1), int), jnp.zeros((1, 1), int))
    with pytest.raises(UserError) as refused:
        logit_attribution(model, {}, target)
    assert str(refused.value).startswith(f"logit_attribution: {sentence}")
    if "post" in sentence or "recurrent" in sentence:
        with pytest.raises(UserError, match=r"^logit_lens: "):
            logit_lens(model, {})
    if kind == "gpt-language_model" and "logits_soft_cap" in str(changes):
        config = dataclasses.replace(config, logits_soft_cap=0.0)
        with pytest.raises(UserError, match=r"^logit_attribution: log-probabilities, and logits under"):
            logit_attribution(types.SimpleNamespace(config=config), {}, dataclasses.replace(target, of_all=True))


@pytest.mark.rest
def test_a_mesh_says_the_same() -> None:
    model, inputs, target = case("gpt-language_model", **BIASED)
    calls = (
        lambda: logit_lens(model, inputs, whole),
        lambda: logit_attribution(model, inputs, target),
        lambda: residual_parts(model, inputs, target.places_BP),
    )
    want = [call() for call in calls]
    with placed(make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True))), make_rules(1)):
        found = [call() for call in calls]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5), want, found)
