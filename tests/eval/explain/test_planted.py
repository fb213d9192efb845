"""What a label stands on is found where a model needs it, and by maps that have part in the model alone."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.explain.faithfulness.judging import drawn_anew, judged, verdicts
from eval.explain.methods.table import METHODS, Asked
from eval.explain.planted import FINDERS, Found, precision
from eval.explain.targets import Target
from model.errors import UserError
from tests.eval.explain.by_hand import counting, planted_rows
from tests.tiers import tiered
from train.tasks.rationale import Rationale

EVERY_DAY = ("integrated_gradients", "attention_gradient")
EXACT = (*EVERY_DAY, "gradient_x_input", "leave_one_out")


def batch() -> dict[str, np.ndarray]:
    rows = planted_rows().rows(np.arange(32))
    return {name: x[rows["rationale"].any(1)] for name, x in rows.items()}


def asked() -> Asked:
    """The classes of the texts that have a rationale."""
    some = batch()
    target = Target(jnp.zeros((len(some["labels"]), 1), jnp.int32), jnp.asarray(some["labels"])[:, None])
    return Asked.of(counting(), jax.tree.map(jnp.asarray, Rationale.inputs(some)), target)


def found(name: str) -> float:
    ((_, value),) = finds(name, {7: counting()})(None)
    return float(value)  # type: ignore[arg-type]


def finds(name: str, models: dict[int, Any]) -> Found:
    return Found(None, planted_rows(), 8, models=lambda params: models, task=Rationale(explained_by=name))


def test_the_model_needs_each_token_of_the_rationale_and_no_other() -> None:
    """By brute force: each letter by itself is made one of no group."""
    some = batch()
    (B, T), labels_B = some["tokens"].shape, some["labels"]
    masked_TBT = np.where(np.eye(T, dtype=bool)[:, None], ord("z"), some["tokens"])
    texts_BT = np.concatenate([some["tokens"], masked_TBT.reshape(T * B, T)])
    graphdef, params = nnx.split(counting())
    logits_BC = jax.jit(lambda params, tokens_BT: nnx.merge(graphdef, params)(tokens_BT))(params, texts_BT)
    said_B, said_TB = np.split(np.argmax(logits_BC, axis=1), [B])
    np.testing.assert_array_equal(said_B, labels_B)
    np.testing.assert_array_equal(said_TB.reshape(T, B), np.where(some["rationale"].T, 3, labels_B))


@pytest.mark.parametrize("name", tiered([(name,) for name in EXACT], EVERY_DAY.__contains__))
def test_what_explains_the_model_finds_all_of_it(name: str) -> None:
    assert found(name) == 1.0


@pytest.mark.rest
@pytest.mark.parametrize("name", ["raw_weights", "rollout", "flow"])
def test_weights_that_are_all_alike_tell_nothing(name: str) -> None:
    assert found(name) == pytest.approx(0.15, abs=1e-3)


def test_what_knows_nothing_of_the_model_finds_what_chance_does_or_less() -> None:
    assert found("random") == pytest.approx(0.15, abs=4 * (0.15 * 0.85 / (3 * 24)) ** 0.5)
    assert found("counts") < 0.05
    with pytest.raises(UserError, match="--config.objective.explained_by='flwo' is not one of: random, counts, raw_w"):
        found("flwo")


def test_what_no_model_has_part_in_is_not_faithful() -> None:
    """The rationale itself, as the data have it, lowers what is said, and would be told of any other model; so would
    counts, which lower nothing."""
    one, some = asked(), batch()
    told = judged(one, EVERY_DAY)
    assert {name: verdict.word for name, verdict in told.items()} == dict.fromkeys(EVERY_DAY, "faithful here")
    maps = {
        "exact": METHODS["integrated_gradients"].call(one),
        "planted": {"embedding": some["rationale"].astype(float)},
    }
    maps |= {"counts": {"embedding": FINDERS["counts"](one, some["text"], 0)}}
    other = Asked(drawn_anew(one.model, 0), *one[1:])
    anew = maps | {"exact": METHODS["integrated_gradients"].call(other)}
    told = verdicts(one, maps, anew)
    assert [verdict.word for verdict in told.values()] == ["faithful here", "not faithful here", "not faithful here"]
    assert told["planted"].lower_bound > 0  # it is by the other model that it is told
    assert told["planted"].correlation == 1


def test_precision_is_that_of_all_orders_of_equal_numbers() -> None:
    rng = np.random.default_rng(0)
    map_Bn, text_Bn = rng.integers(0, 3, (11, 7)).astype(float), rng.random((11, 7)) < 0.8
    rationale_Bn = text_Bn & (rng.random((11, 7)) < 0.5)
    rationale_Bn[:, 0] = text_Bn[:, 0] = True
    wanted = []
    for map_n, text_n, rationale_n in zip(map_Bn, text_Bn, rationale_Bn, strict=True):
        k, places = rationale_n.sum(), np.flatnonzero(text_n)
        orders = [sorted(order, key=lambda place, m=map_n: -m[place]) for order in itertools.permutations(places)]
        wanted.append(np.mean([rationale_n[order[:k]].mean() for order in orders]))
    np.testing.assert_allclose(precision(map_Bn, text_Bn, rationale_Bn), wanted)


def test_seeds_are_explained_each_by_itself() -> None:
    other = drawn_anew(counting(), 0)
    both = finds("integrated_gradients", {5: counting(), 6: other})
    ((name, values),) = both(None)
    assert (name, values[0]) == ("val/precision_at_k", 1.0)  # type: ignore[index]
    alone = finds("integrated_gradients", {6: other})
    assert dict(alone(None)) == {name: values[1]}  # type: ignore[index]
    assert list(both(None, lambda: True)) == []
