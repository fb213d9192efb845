"""Gradient x attention beside the definition, with all maps as arrays, and what must hold for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain.methods.attention_gradient import attention_gradient
from model import UserError
from model.inspection import attention_weights
from model.taps import Hook, Taps
from tests.eval.explain.cases import KINDS, B, L, T, case
from tests.tiers import tiered

ATTENDING = tiered([(kind,) for kind in KINDS if "recurrent" not in kind], lambda kind: kind == "gpt-language_model")


def maps(model: Any, inputs: Any, target: Any) -> dict[str, np.ndarray]:
    """E of each layer (L, B, T, S): the gradient by what is added to each weight of each head, of zeros."""
    weights = attention_weights(model, **inputs)

    def said(more: dict[str, jax.Array]) -> jax.Array:
        def hook(name: str) -> Hook:
            def call(state: Any, number: Any, looked: Any) -> Any:
                v_BSHK = jnp.repeat(looked.v_BSGK, looked.q_BTHK.shape[2] // looked.v_BSGK.shape[2], axis=2)
                extra = jnp.einsum("BHTS,BSHK->BTHK", more[name][number], v_BSHK)
                return state, looked.replace(o_BTHK=looked.o_BTHK + extra), None

            return Hook(call)

        return jnp.sum(target.value(model, inputs, Taps({f"{name}.weights": hook(name) for name in more})))

    slopes = jax.jit(jax.grad(said))({name: jnp.zeros_like(x) for name, x in weights.items()})
    return {name: np.maximum(np.float64(weights[name]) * slopes[name], 0).mean(2) for name in weights}


def normed(R: np.ndarray) -> np.ndarray:
    rest = R - np.eye(len(R))
    sums = rest.sum(1, keepdims=True)
    return np.divide(rest, sums, out=np.zeros_like(rest), where=sums > 0) + np.eye(len(R))


@pytest.mark.parametrize("kind", ATTENDING)
def test_it_is_the_product_of_all_layers(kind: str) -> None:
    model, inputs, target = case(kind)
    found, E = attention_gradient(model, inputs, target), maps(model, inputs, target)
    for b in range(B):
        place = int(target.places_BP[b, 0])
        if "pairs" in inputs:
            ss, tt, ts = np.eye(T), np.eye(T), np.zeros((T, T))
            for layer in range(L):
                ss = ss + E["encoder.attention"][layer, b] @ ss
            for layer in range(L):
                own = E["decoder.attention"][layer, b]
                tt, ts = tt + own @ tt, ts + own @ ts
                ts = ts + normed(tt).T @ E["decoder.cross"][layer, b] @ normed(ss)
            want = {"encoder.embedding": ts[place], "decoder.embedding": tt[place]}
        else:
            R = np.eye(T)
            for layer in range(L):
                R = R + E["stack.attention"][layer, b] @ R
            head = getattr(model.config, "head", "")
            want = {"embedding": R[0 if head == "class" else place]}
        for site, row in want.items():
            np.testing.assert_allclose(found[site][b], row, rtol=1e-3, atol=1e-5, err_msg=site)
            assert (np.asarray(found[site][b]) >= 0).all()
            assert np.isfinite(found[site][b]).all()


@pytest.mark.rest
def test_a_mean_of_rows_reads_them_all() -> None:
    model, inputs, target = case("bert-classification", **{"model.pool": "mean"})
    found, E = attention_gradient(model, inputs, target), maps(model, inputs, target)["stack.attention"]
    for b, size in enumerate((T, T - 2, T)):
        R = np.eye(T)
        for layer in range(L):
            R = R + E[layer, b] @ R
        np.testing.assert_allclose(found["embedding"][b], R[:size].mean(0), rtol=1e-3, atol=1e-5)
        assert not np.asarray(found["embedding"])[b, size:].any()


def test_another_answer_has_another_map() -> None:
    model, inputs, target = case("bert-classification")
    other = type(target)(target.places_BP, 2 + target.answers_BP)
    one, two = (np.asarray(attention_gradient(model, inputs, x)["embedding"]) for x in (target, other))
    assert np.abs(one - two).max() > 1e-3


@pytest.mark.rest
def test_a_recurrent_model_is_refused() -> None:
    with pytest.raises(UserError, match=r"^attention_gradient: what a recurrent model has read"):
        attention_gradient(*case("recurrent-language_model"))
