"""What heads do, beside loops over their weights, and where it is known as they were made by hand."""

import dataclasses
import types
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.explain.methods.heads import HeadStatistics, head_statistics, on_repeated, repeated, specialised
from eval.explain.targets import places
from model import UserError
from model.attention import causal, full
from model.attention.looked import Looked
from model.attention.scores import Scores
from model.inspection import attention_weights
from model.parameters import Module
from model.taps import Taps
from tests.eval.explain.cases import case
from train.devices.mesh import AXES, make_mesh, make_rules
from train.sharding import placed

KINDS = (
    "gpt-language_model",
    "bert-classification",
    "encoder_decoder-translation",
    "recurrent_encoder_decoder-translation",
)


def by_hand(weights_HTS: np.ndarray, tokens: Any, ids: Any, keys: Any, key_ids: Any, repeat: int) -> list[Any]:
    """Sums and numbers of queries of one row, for each statistic a pair of (H,); id 0 is padding."""
    sums = {name: np.zeros((2, len(weights_HTS))) for name in HeadStatistics._fields[:-1]}
    before = {s: keys[s - 1] for s in range(1, len(keys)) if key_ids[s] and key_ids[s] == key_ids[s - 1]}
    for t in range(len(tokens)):
        if not ids[t]:
            continue
        prefix = [s for s in before if s < t and before[s] == tokens[t] and key_ids[s] == ids[t]]
        first = [s for s in range(len(keys)) if key_ids[s] and s not in before]
        for h, w in enumerate(weights_HTS[:, t]):
            if w.sum() == 0:
                continue
            shares = np.array([*w, 1 - w.sum()])
            far = sum(w[s] * abs(s - t) for s in range(len(keys)))
            sums["distance"][:, h] += far, w.sum()
            sums["entropy"][:, h] += -sum(p * np.log(p) for p in shares if p > 1e-6), 1
            sums["first"][:, h] += w[first].sum(), 1
            sums["sink"][:, h] += shares[-1], 1
            if t and ids[t - 1] == ids[t]:
                sums["previous"][:, h] += w[t - 1], 1
            if prefix:
                sums["prefix"][:, h] += w[prefix].sum(), 1
            if repeat and t >= repeat:
                sums["induction"][:, h] += w[t - repeat + 1], 1
    return list(sums.values())


def compare(model: Any, inputs: dict[str, Any], found: dict[str, HeadStatistics], repeat: int = 0) -> None:
    """All statistics with loops over all weights."""
    real = {site: np.asarray(x).astype(int) for site, x in places(inputs).items()}
    for place, weights_LBHTS in jax.jit(lambda: attention_weights(model, **inputs))().items():
        name = "cross" if place.endswith("cross") else place.partition(".")[0]
        if "pairs" in inputs:
            pairs, sides = inputs["pairs"], {"encoder": ("encoder",) * 2, "decoder": ("decoder",) * 2}
            texts = {"encoder": pairs.sources_BS, "decoder": pairs.tokens_BT}
            ids = {side: real[f"{side}.embedding"] for side in texts}
            query, key = sides.get(name, ("decoder", "encoder"))
            given = texts[query], ids[query], texts[key], ids[key]
        else:
            ids_BT = np.asarray(inputs.get("segment_ids_BT", real["embedding"])) * real["embedding"]
            given = (inputs["tokens_BT"], ids_BT) * 2
        given = tuple(np.asarray(x) for x in given)
        for layer, weights_BHTS in enumerate(np.asarray(weights_LBHTS, np.float64)):
            rows = [by_hand(w, *(x[b] for x in given), repeat) for b, w in enumerate(weights_BHTS)]
            for statistic, x in zip(HeadStatistics._fields, zip(*rows, strict=True), strict=False):
                total, count = np.sum(x, axis=0)
                with np.errstate(invalid="ignore"):
                    want = total / count
                if name == "cross" and statistic not in ("entropy", "first", "sink"):
                    want = np.full(len(total), np.nan)
                np.testing.assert_allclose(
                    getattr(found[name], statistic)[layer], want, rtol=1e-4, atol=2e-5, err_msg=f"{name} {statistic}"
                )
            received_BHS = np.einsum("BHTS,BT->BHS", weights_BHTS, given[1] > 0)
            np.testing.assert_array_equal(found[name].most[layer], received_BHS.argmax(-1))


@pytest.mark.rest
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_loops(kind: str) -> None:
    """With padding, for all places of attention of all families."""
    model, inputs, _ = case(kind)
    compare(model, inputs, head_statistics(model, **inputs))


@pytest.mark.rest
def test_documents_and_sinks_are_known() -> None:
    model, inputs, _ = case("gpt-language_model", **{"model.sinks": True, "model.num_kv_heads": 2})
    packed = {"tokens_BT": inputs["tokens_BT"] % 3, "segment_ids_BT": jnp.asarray([[1, 1, 1, 1, 2, 2, 2]] * 3)}
    found = head_statistics(model, **packed)
    compare(model, packed, found)
    assert (found["stack"].sink > 0.01).all()
    again, n = repeated(model, 3, 2)
    assert n == 3
    np.testing.assert_array_equal(again["tokens_BT"][:, :n], again["tokens_BT"][:, n:])
    compare(model, again, on_repeated(model, 3, rows=2), n)


@dataclasses.dataclass(frozen=True)
class Config:
    """Of a model with three heads, made by hand."""

    HEADS: ClassVar = ("next_token",)
    sites: ClassVar = {"self": None}
    mask: Any = causal()
    sinks: bool = False
    vocab_size: int = 997
    max_length: int = 14


class Hand(Module):
    """Its heads look at the place before, at what came after an equal token, and at all alike."""

    def __init__(self, config: Config):
        self.config = config

    def vectors(self, tokens_BT: jax.Array, valid_BT: jax.Array | None = None, taps: Any = None) -> jax.Array:
        table = np.random.default_rng(0).normal(size=(1000, 5))
        table_VK = jnp.asarray(table / np.linalg.norm(table, axis=1, keepdims=True), jnp.float32).at[998].set(0)
        here_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1])[None], tokens_BT.shape)
        before_BT = jnp.pad(tokens_BT[:, :-1], ((0, 0), (1, 0)), constant_values=999)
        q_BTHK = table_VK[jnp.stack([here_BT - 1, tokens_BT, jnp.full_like(here_BT, 998)], axis=2)]
        k_BSGK = table_VK[jnp.stack([here_BT, before_BT, here_BT], axis=2)]
        scores = Scores(self.config.mask, 1e5, sinks_H=jnp.zeros(3) if self.config.sinks else None)
        (taps or Taps()).shown("stack.attention.weights", Looked(q_BTHK, q_BTHK, k_BSGK, k_BSGK, scores, "dense"))
        return q_BTHK[:, :, 0]


def test_heads_that_are_made_by_hand_have_scores_of_one() -> None:
    """By slabs, of which 14 keys have three; places drawn by chance are right as often as chance has it."""
    found = jax.tree.map(lambda x: x[0], on_repeated(Hand(Config()), seed=1)["stack"])
    assert [found.previous[0], found.prefix[1], found.induction[1]] == pytest.approx([1, 1, 1], abs=1e-4)
    assert [found.distance[0], found.distance[2]] == pytest.approx([13 / 14, 3.25], abs=1e-4)
    assert [found.entropy[0], found.entropy[2]] == pytest.approx([0, np.log(np.arange(1, 15)).mean()], abs=1e-4)
    assert found.first[2] == pytest.approx((1 / np.arange(1, 15)).mean(), abs=1e-4)
    assert specialised(Hand(Config()), seed=1) == pytest.approx({"previous": 1, "prefix": 1}, abs=1e-4)
    control = specialised(Hand(Config()), seed=1, shuffled=True)
    assert 0.1 < control["previous"] < 0.4
    assert 0.03 < control["prefix"] < 0.3


@pytest.mark.rest
@pytest.mark.parametrize("sinks", [False, True])
def test_even_weights_have_an_entropy_of_log_n(sinks: bool) -> None:
    found = head_statistics(Hand(Config(full(), sinks)), tokens_BT=jnp.arange(7)[None])["stack"]
    assert float(found.entropy[0, 2]) == pytest.approx(np.log(8 if sinks else 7), rel=1e-5)
    assert float(found.sink[0, 2]) == pytest.approx(1 / 8 if sinks else 0, rel=1e-5)


def test_what_has_no_heads_is_refused() -> None:
    short = types.SimpleNamespace(config=types.SimpleNamespace(HEADS=("next_token",), max_length=3))
    with pytest.raises(UserError, match=r"^length=3 is too short to say two tokens twice; take at least 4"):
        specialised(short)


@pytest.mark.rest
def test_recurrent_models_have_no_heads_of_their_own() -> None:
    with pytest.raises(UserError, match=r"^head_statistics: this model has no attention, and so no heads"):
        head_statistics(case("recurrent-language_model")[0], **case("recurrent-language_model")[1])
    with pytest.raises(UserError, match=r"^specialised: this model attends to its sources alone"):
        specialised(case("recurrent_encoder_decoder-translation")[0])


@pytest.mark.rest
def test_a_mesh_says_the_same() -> None:
    model, inputs, _ = case("gpt-language_model")
    want = head_statistics(model, **inputs)["stack"]
    with placed(make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True))), make_rules(1)):
        found = head_statistics(model, **inputs)["stack"]
    for name, one, other in zip(HeadStatistics._fields, want, found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6, err_msg=name)
