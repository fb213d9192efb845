"""What patches give back, beside setting one thing by hand, and where it is known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain.capture import capture, put, whole
from eval.explain.methods import patching
from eval.explain.methods.patching import patch, patch_attribution
from eval.explain.targets import Target
from model import UserError
from model.taps import Hook, Taps
from tests.eval.explain.cases import B, L, T, V, case
from train.devices.mesh import AXES, make_mesh, make_rules
from train.sharding import placed

METHODS = patch, patch_attribution
SITES = "stack.residual", "stack.1.attention.heads"


def two(kind: str, **changes: Any) -> tuple[Any, dict[str, Any], dict[str, Any], Target]:
    """A model, a clean input, one whose token at place 1 (of the source) is another, and a target."""
    model, clean, target = case(kind, **changes)
    if "pairs" in clean:
        pairs = clean["pairs"]
        other = pairs.sources_BS.at[:, 1].add(1) % V
        return model, clean, {"pairs": pairs._replace(sources_BS=other)}, target
    return model, clean, clean | {"tokens_BT": clean["tokens_BT"].at[:, 1].add(1) % V}, target


def test_all_gives_all_back_and_nothing_gives_nothing() -> None:
    """Of a causal model, bit for bit; and clean into clean changes not a bit; one program serves all."""
    model, clean, corrupt, target = two("gpt-language_model")
    programs = patching._patched._cache_size()
    found = patch(model, clean, corrupt, SITES, target)
    assert patching._patched._cache_size() <= programs + 1
    programs = patching._patched._cache_size()
    scores, changed = found.scores["stack.residual"], found.changed["stack.residual"]
    assert scores.shape == changed.shape == (L, B, T)
    assert found.scores[SITES[1]].shape == (1, B, T)
    np.testing.assert_array_equal(scores[:, :, 0], 0)  # before what differs
    np.testing.assert_array_equal(changed[:, :, 0], 0)
    assert (changed[:, 0, 1:] == 24).all()
    for b, place in enumerate(target.places_BP[:, 0]):
        np.testing.assert_allclose(scores[-1, b], np.eye(T)[place], atol=1e-4)
    assert found.reasons == ("",) * B
    same = patch(model, clean, clean, SITES, target)
    assert patching._patched._cache_size() == programs
    np.testing.assert_array_equal(same.clean_B, found.clean_B)
    for site in SITES:
        assert not same.changed[site].any()
        np.testing.assert_array_equal(
            same.values[site], np.broadcast_to(same.clean_B[:, None], same.values[site].shape)
        )
        assert np.isnan(same.scores[site]).all()
    assert (
        same.reasons[0] == f"the corrupt input's value, {found.clean_B[0]:.6g}, is the clean one's, so nothing was lost"
    )


CASES = [
    ("gpt-language_model", ("stack.residual",), "whole", "value"),
    ("bert-classification", ("stack.attention.weights", "stack.2.attention.key"), "heads", "probability"),
    ("encoder_decoder-translation", ("decoder.cross.weights",), "places", "value"),
]


@pytest.mark.rest
@pytest.mark.parametrize(("kind", "names", "by", "say"), CASES)
def test_each_patch_is_what_setting_one_thing_says(kind: str, names: tuple[str, ...], by: str, say: str) -> None:
    """Of some layers and units; and the first order is that of finite differences."""
    model, clean, corrupt, target = two(kind, **({"model.num_kv_heads": 2} if "bert" in kind else {}))
    found, first = (call(model, clean, corrupt, names, target, by=by, say=say) for call in METHODS)
    old, new = (capture(model, names, **inputs) for inputs in (corrupt, clean))
    lost_B = found.clean_B - found.corrupt_B
    for name in names:
        stack, _, rest = name.partition(".")
        number = [int(part) for part in rest.split(".") if part.isdigit()]
        site = ".".join(part for part in name.split(".") if not part.isdigit())
        layers = number or ([0] if "embedding" in name else range(L))
        assert found.scores[name].shape[:2] == (len(layers), B)
        stacked = not number and "embedding" not in name
        said = saying(model, corrupt, getattr(target, say), site)
        for row in {0, len(layers) - 1}:
            own, other = (np.asarray(x[name][row] if stacked else x[name]) for x in (old, new))
            units = found.scores[name].shape[2]
            for unit in sorted({0, units // 2, units - 1}):
                here = np.zeros(own.shape, bool)
                cut = {"places": 1, "heads": 2}.get(by, 0)
                at = [slice(None)] * own.ndim
                if cut:
                    at[3 - cut if name.endswith("weights") else cut] = unit
                here[tuple(at)] = True
                values = [
                    said(np.where(here, own + step * (other - own), own), layers[row]) for step in (0, 1, 0.02, -0.02)
                ]
                np.testing.assert_allclose(values[0], found.corrupt_B, rtol=1e-5, atol=1e-5)
                got = found.scores[name][row, :, unit] * lost_B, first.scores[name][row, :, unit] * lost_B
                np.testing.assert_allclose(got[0], values[1] - values[0], atol=1e-4)
                np.testing.assert_allclose(got[1], (values[2] - values[3]) / 0.04, rtol=1e-2, atol=1e-3)
        np.testing.assert_array_equal(first.changed[name] > 0, found.changed[name] > 0)
    if by == "whole":  # a causal model has nothing else to know it by
        for name in names:
            np.testing.assert_allclose(found.scores[name], 1, atol=1e-4)


def saying(model: Any, inputs: dict[str, Any], value: Any, site: str) -> Any:
    """What is said with an array at a site of one layer."""

    @jax.jit
    def said(x: jax.Array, layer: Any) -> jax.Array:
        def call(state: None, number: Any, there: Any) -> tuple[None, Any, None]:
            return state, put(jnp.where(number == layer, x, whole(there)))(there, number), None

        return value(model, inputs, Taps({site: Hook(call)}))

    return lambda x, layer: np.asarray(said(x, layer), np.float64)


@pytest.mark.parametrize(
    ("names", "by", "sentence"),
    [
        (
            ("stack.residual",),
            "heads",
            "stack.residual has no heads; patch it by places, or take a site of: query, key",
        ),
        (("stack.residul",), "places", "there is no site stack.residul; the nearest is stack.residual, and eval.expl"),
        (("embedding",), "place", "by='place' is not one of: places, heads, whole."),
    ],
)
def test_what_cannot_be_patched_is_refused(names: tuple[str, ...], by: str, sentence: str) -> None:
    model, clean, corrupt, target = two("gpt-language_model")
    for call in (patch, patch_attribution):
        with pytest.raises(UserError) as refused:
            call(model, clean, corrupt, names, target, by=by)
        assert str(refused.value).startswith(sentence)


def test_inputs_that_are_not_alike_are_refused() -> None:
    model, clean, corrupt, target = two("gpt-language_model")
    short = jax.tree.map(lambda x: x[:, :-1], corrupt)
    with pytest.raises(
        UserError, match=r"^tokens_BT is \(3, 7\) in the clean input and \(3, 6\) in the corrupt one; pad"
    ):
        patch(model, clean, short, SITES, target)
    with pytest.raises(UserError, match=r"^the clean and the corrupt inputs have other arrays; give both the same"):
        patch(model, clean, {"tokens_BT": corrupt["tokens_BT"]}, SITES, target)


@pytest.mark.rest
def test_a_recurrent_models_vectors_are_patched() -> None:
    model, clean, corrupt, target = two("recurrent-language_model")
    found = patch(model, clean, corrupt, ("embedding",), target)
    np.testing.assert_allclose(found.scores["embedding"], np.broadcast_to(np.arange(T) == 1, (1, B, T)), atol=1e-4)
    np.testing.assert_array_equal(found.changed["embedding"][0, :, 1], 24)


@pytest.mark.rest
def test_what_is_not_come_by_and_what_can_only_be_read_are_refused() -> None:
    model, clean, corrupt, _ = two("gpt-language_model")
    with pytest.raises(UserError, match=r"^the target does not come by stack.residual, so nothing would be set th"):
        patch(model, clean, corrupt, SITES[:1], Elsewhere(jnp.zeros((B, 1), jnp.int32), jnp.zeros((B, 1), jnp.int32)))
    model, clean, corrupt, target = two("recurrent_encoder_decoder-translation")
    with pytest.raises(UserError, match=r"^decoder.cross.weights can only be read in a recurrent model; patch its vec"):
        patch(model, clean, corrupt, ("decoder.cross.weights",), target)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Elsewhere(Target):
    """A target that asks the model nothing."""

    def value(self, model: Any, inputs: dict[str, Any], taps: Taps | None = None) -> jax.Array:
        return jnp.zeros(len(self.places_BP))


@pytest.mark.rest
def test_a_mesh_says_the_same() -> None:
    """And half precision is read in single."""
    model, clean, corrupt, target = two("gpt-language_model")
    half = two("gpt-language_model", **{"model.dtype": "bfloat16"})[0]
    want = [call(model, clean, corrupt, SITES, target) for call in METHODS]
    with placed(make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True))), make_rules(1)):
        found = [call(half, clean, corrupt, SITES, target) for call in METHODS]
    for one, other in zip(want, found, strict=True):
        for site in SITES:
            np.testing.assert_array_equal(other.changed[site], one.changed[site])
            np.testing.assert_allclose(other.values[site], one.values[site], rtol=1e-5, atol=1e-5)
