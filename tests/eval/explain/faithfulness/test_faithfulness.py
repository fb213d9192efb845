"""Maps and their faithfulness where all is known, and beside loops."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from eval.explain.faithfulness.judging import drawn_anew, dropped, joined, judged, verdicts
from eval.explain.methods.occlusion import occlusion
from eval.explain.methods.table import METHODS, Asked
from eval.explain.targets import places
from tests.eval.explain.bag import bag, shares
from tests.eval.explain.cases import KIND, B, T, case

SHARES, RANDOM = (0.01, 0.05, 0.1, 0.2, 0.5), 20  # as they are said
EXACT = ("gradient_x_input", "integrated_gradients", "leave_one_out")


def asked(examples: int = 24, T: int = 7) -> tuple[Asked, np.ndarray]:
    """A bag beside zeros, and what each of its tokens adds."""
    model, inputs, target = bag(examples, T)
    zero = {"embedding": jnp.zeros((*inputs["tokens_BT"].shape, 5))}
    return Asked(model, inputs, target, zero), shares(model, inputs, target)


@pytest.mark.parametrize("name", EXACT)
def test_what_each_token_adds_is_found(name: str) -> None:
    one, want_BT = asked()
    np.testing.assert_allclose(METHODS[name].call(one)["embedding"], want_BT, atol=1e-4)


def test_spans_share_what_they_lose() -> None:
    one, each_BT = asked(3)
    found_BT = occlusion(*one, width=2)["embedding"]
    padded = np.pad(each_BT, ((0, 0), (1, 1)))
    spans = padded[:, :-1] + padded[:, 1:]
    real = np.asarray(one.inputs["valid_BT"])
    np.testing.assert_allclose(found_BT, np.where(real, (spans[:, :-1] + spans[:, 1:]) / 2, 0), atol=1e-4)


def test_a_drop_is_that_of_a_loop() -> None:
    one, each_BT = asked(4, 43)
    real_BT = joined(places(one.inputs))
    maps = np.stack([each_BT, -each_BT, np.random.default_rng(0).random(each_BT.shape)])
    found = dropped(one, maps, real_BT)
    for number, map_BT in enumerate(maps):
        for row in range(4):
            size = int(real_BT[row].sum())
            drops = []
            for share in SHARES:
                count = max(round(size * share), 1)
                taken = sorted(range(size), key=lambda place, row=row, m=map_BT: -m[row, place])[:count]
                drops.append(said(one, row, []) - said(one, row, taken))
            assert found[number, row] == pytest.approx(np.mean(drops), abs=1e-5)


def said(one: Asked, row: int, taken: list[int]) -> float:
    """The probability of an example's class without some of its tokens."""
    real_T = np.asarray(one.inputs["valid_BT"])[row].copy()
    real_T[taken] = False
    logits_2 = (np.asarray(one.model.embed(one.inputs["tokens_BT"][row]))[real_T].sum(0)) @ one.model.kernel[...]
    return float(np.exp(logits_2[one.target.answers_BP[row, 0]]) / np.exp(logits_2).sum())


def test_what_is_so_is_told_from_what_is_not() -> None:
    """Exact maps are; the order of the words, which no parameter changes, and noise are not; of few nothing is told."""
    one, each_BT = asked()
    found = judged(one, EXACT)
    assert {verdict.word for verdict in found.values()} == {"faithful here"}
    other = Asked(drawn_anew(one.model, 0), *one[1:])
    anew_BT = shares(other.model, one.inputs, one.target)
    order_BT = np.broadcast_to(np.arange(each_BT.shape[1])[::-1], each_BT.shape).astype(float)
    noise = [np.random.default_rng(seed).random(each_BT.shape) for seed in (5, 6)]
    given = {"exact": each_BT, "planted": each_BT, "order": order_BT, "noise": noise[0]}
    anew = {"exact": anew_BT, "planted": each_BT, "order": order_BT, "noise": noise[1]}
    found = verdicts(one, *({name: {"embedding": x} for name, x in some.items()} for some in (given, anew)))
    assert {name: verdict.word for name, verdict in found.items()} == {
        "exact": "faithful here",
        "planted": "not faithful here",  # it says what the model does, and would say it of any other
        "order": "not faithful here",
        "noise": "not faithful here",
    }
    assert found["order"].correlation == found["planted"].correlation == 1.0
    assert abs(found["noise"].correlation) < 0.5
    few = judged(asked(12)[0], EXACT[:1])
    assert few["gradient_x_input"].word == "not measured"


def test_the_test_is_scipys() -> None:
    one, each_BT = asked()
    real_BT, rng = joined(places(one.inputs)), np.random.default_rng(7)
    each_BT = np.where(real_BT, each_BT, 9 * rng.random(each_BT.shape))  # what stands at padding says nothing
    anew_BT = np.where(real_BT, each_BT + rng.normal(0, 1, each_BT.shape), -each_BT)
    given, anew = {"a": {"embedding": each_BT}, "b": {"embedding": -each_BT}}, {"embedding": anew_BT}
    found = verdicts(one, given, {"a": anew, "b": anew}, seed=3)
    random = np.random.default_rng(3).random((RANDOM, *each_BT.shape))
    drops = dropped(one, np.stack([each_BT, -each_BT, *random]), real_BT)
    for name, more in zip(("a", "b"), drops[:2] - drops[2:].mean(0), strict=True):
        test = stats.ttest_1samp(more, 0, alternative="greater")
        assert found[name].more_than_random == pytest.approx(more.mean())
        assert found[name].lower_bound == pytest.approx(test.confidence_interval(0.95).low)
        alike = [
            stats.spearmanr(each[real], other[real]).statistic
            for each, other, real in zip(each_BT, anew_BT, real_BT, strict=True)
        ]
        assert found[name].correlation == pytest.approx((1 if name == "a" else -1) * np.median(alike))
    (best, _) = (stats.ttest_1samp(one, 0, alternative="greater").pvalue for one in drops[:2] - drops[2:].mean(0))
    assert found["a"].p == pytest.approx(2 * best)


@pytest.mark.rest
@pytest.mark.parametrize("kind", KIND)
def test_every_method_serves_every_model_or_says_that_it_does_not(kind: str) -> None:
    """Finite maps of all sites, nothing at padding where a method knows of it; unserved ones are those of attention."""
    model, inputs, target = case(kind)
    one, real = Asked.of(model, inputs, target), places(inputs)
    for name, method in METHODS.items():
        if not method.serves(model):
            assert method.attention
            continue
        found = method.call(one)
        assert found.keys() == real.keys(), name
        for site, x in found.items():
            assert x.shape == (B, T)
            assert np.isfinite(x).all()
            assert not np.asarray(x)[~real[site]].any(), name
            assert method.signed or (np.asarray(x) >= 0).all()
    found = judged(one, ["gradient"])
    assert found["gradient"].word == "not measured"
