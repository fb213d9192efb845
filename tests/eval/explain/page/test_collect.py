"""What a page shows of a model is what the model and the methods say."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain.capture import BUDGET
from eval.explain.methods.rollout import rollout
from eval.explain.methods.table import Asked
from eval.explain.page import Content, collect, quanta, weights
from eval.explain.page import content as content_module
from eval.explain.page.collect import check_page, content_of
from eval.explain.page.quanta import pooled
from eval.explain.targets import places
from model.families.encoder_decoder import Pairs
from model.taps import Taps, head_gates
from tests.eval.explain.cases import L, T, case

pytestmark = pytest.mark.rest
ROW = 1  # which ends in padding


def gathered(kind: str, budget: int = BUDGET) -> tuple[Any, Content]:
    model, inputs, target = case(kind)
    if "pairs" in inputs:  # of which the two sides are of other lengths
        sources_BS, tokens_BT, *ids = inputs["pairs"]
        inputs = {"pairs": Pairs(sources_BS, tokens_BT[:, :4], ids[0], ids[1][:, :4])}
    real = {site: int(np.asarray(x)[ROW].sum()) for site, x in places(inputs).items()}
    pieces = {site: [f"t{at}" for at in range(size)] for site, size in real.items()}
    values = {site: np.arange(size, 0, -1) / 7 for site, size in real.items()}
    result: Any = SimpleNamespace(method="rollout", signed=False, values=values, pieces=pieces)
    asked = Asked(model, inputs, target, {})
    return asked, content_of(asked, [result], ROW, text=kind, budget=budget)


@pytest.mark.parametrize("kind", ["gpt-language_model", "encoder_decoder-translation"])
def test_weights_that_are_too_many_are_pooled(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what pooling all of them gives; the rest of the page is the same, and it says what is missing."""
    for module in (weights, content_module, quanta):
        monkeypatch.setattr(module, "SIDE", 3)
    asked, whole = gathered(kind)
    _, small = gathered(kind, budget=sum(x.nbytes for x in whole.weights.values()) - 1)
    assert {*small.weights} == {*whole.weights}
    for place, x_LHTS in whole.weights.items():
        want = np.stack([pooled(x_HTS, 3) for x_HTS in x_LHTS])
        assert want.shape[2:] == tuple(min(3, size) for size in x_LHTS.shape[2:])
        np.testing.assert_allclose(small.weights[place], want, rtol=1e-6, atol=1e-7)
    assert {*small.rollout} == {*whole.rollout}
    for name, x_LTS in whole.rollout.items():
        np.testing.assert_allclose(small.rollout[name], x_LTS, rtol=1e-5, atol=1e-7)
    assert len(small.left_out) == len(whole.left_out) + 2
    assert small.left_out[-2].startswith("Whole maps of heads: all take ")
    _, least = gathered(kind, budget=500)
    assert not least.rollout
    assert "The rollout by layers" in least.left_out[-1]


def test_what_may_have_a_sign_is_pooled_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a loop over time come as an array; only the first queries and keys are no padding."""
    monkeypatch.setattr(weights, "SIDE", 3)
    x_BHTS = np.random.default_rng(0).standard_normal((2, 2, 5, 7), np.float32)
    found = weights.pooled_weights(4, 6)(jnp.asarray(x_BHTS))
    np.testing.assert_array_equal(found, [pooled(x_HTS[:, :4, :6], 3) for x_HTS in x_BHTS])
    assert (np.asarray(found) < 0).any()


@pytest.mark.parametrize(
    ("kind", "place"), [("gpt-language_model", "stack.attention"), ("encoder_decoder-translation", "decoder.cross")]
)
def test_every_row_that_is_shown_must_fit_its_page(kind: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as it comes to be; of a matrix that is the last row alone."""
    model, inputs, target = case(kind)
    tokens = {
        site: [[0] * int(np.asarray(real_T).sum()) for real_T in np.asarray(real_BT)[[0, 1, 2]]]
        for site, real_BT in places(inputs).items()
    }
    given = list[Any]()
    monkeypatch.setattr(collect, "page", lambda *told: given.append(told))
    heads = [(place, 0, 0)]
    for matrix in (False, True):
        check_page([(Asked(model, inputs, target, {}), tokens)] * 2, heads, 1234, matrix=matrix)
    (every, *more), (last, *_) = given
    assert more == [heads, 1234]
    want = [(L, 4, T, T), (L, 4, T - 2, T - 2), (L, 4, T, T)]
    assert [one.weights[place].shape for one in every] == want * 2
    assert [one.weights[place].shape for one in last] == want[-1:] * 2


def one_row(asked: Any) -> tuple[dict[str, Any], Any]:
    row: Any = jax.tree.map(lambda x: x[ROW : ROW + 1], (asked.inputs, asked.target))
    return row


@pytest.mark.parametrize("kind", ["gpt-language_model", "encoder_decoder-translation"])
def test_the_last_layer_of_the_rollout_is_the_rollout(kind: str) -> None:
    asked, content = gathered(kind)
    whole = rollout(asked.model, **one_row(asked)[0])
    assert {*whole} == {*content.rollout}
    for name, x_LTS in content.rollout.items():
        T, S = x_LTS.shape[1:]
        np.testing.assert_allclose(x_LTS[-1], np.asarray(whole[name])[0, :T, :S], rtol=1e-4, atol=1e-6)
        assert not np.allclose(x_LTS[0], x_LTS[-1], atol=1e-3)


def test_importance_is_what_a_little_less_of_a_head_changes() -> None:
    asked, content = gathered("gpt-language_model")
    inputs, target = one_row(asked)
    x_LH = content.statistics["stack.attention"]["importance"]

    def value(gates_LH: jax.Array) -> float:
        return float(target.value(asked.model, inputs, Taps({"stack.attention.heads": head_gates(gates_LH)}))[0])

    for layer, head in ((0, 1), (x_LH.shape[0] - 1, 0)):
        step = 1e-2
        up, down = (value(jnp.ones(x_LH.shape).at[layer, head].add(by)) for by in (step, -step))
        assert x_LH[layer, head] == pytest.approx(abs(up - down) / (2 * step), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("kind", ["gpt-language_model", "encoder_decoder-translation"])
def test_scaled_products_of_queries_and_keys_make_the_weights(kind: str) -> None:
    _, content = gathered(kind)
    own = content.products
    assert own is not None
    weights_TS = content.weights[own.place][own.layer, own.head]
    logits_TS = np.where(weights_TS > 0, own.scale * own.q_TK @ own.k_SK.T, -np.inf)
    made_TS = np.exp(logits_TS - logits_TS.max(1, keepdims=True))
    np.testing.assert_allclose(made_TS / made_TS.sum(1, keepdims=True), weights_TS, rtol=1e-4, atol=1e-6)


def test_the_flow_goes_from_the_place_that_answers_to_what_counts_most() -> None:
    asked, content = gathered("gpt-language_model")
    assert content.flow is not None
    assert content.flow.i == content.place == int(asked.target.places_BP[ROW, 0])
    assert content.flow.j == 0
    cut, i = content.flow.cut, content.flow.i
    assert cut.value > 0
    assert cut.flow_Lnn[-1, i].sum() == pytest.approx(cut.value)
