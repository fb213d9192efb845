"""Seed i begins and reads alike in every arm, and unlike seed j; one parameter more changes no other's first value."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.ablation.gates.budget import data_of, opened
from launch.ablation.gates.pairs import Evidence, evidence_of, hashed
from launch.ablation.gates.rules import Gate, gates_of_pairs
from launch.ablation.plan import Plan, config_of
from model.attention.dropout import Dropout
from model.layers import row_bernoulli
from tests.launch.ablation.small_plan import small_plan
from train.data import batches
from train.sharding import placed
from train.state import dropout_keys
from train.tasks.language_model import language_model

SEEDS = (3, 4)
DENSE = {"model.core": "dense"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("text")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """Arms of which one has a parameter more, and one more steps and layers."""
    arms = {
        "base": {},
        "gated": {"model.edits": "output_gate"},
        "deep": {"model.num_layers": 2, "train.steps": 17},
    }
    factor = ("model.edits", "model.num_layers", "train.steps")
    return small_plan(
        folder, arms=arms, factor=factor, seeds=SEEDS, looks=(2,), pack=2, learning_rates=(), shared=DENSE
    )


@pytest.fixture(scope="module")
def evidence(plan: Plan) -> dict[str, Evidence]:
    return evidence_of(plan, plan.seeds)


def closed(gates: list[Gate]) -> dict[str, str]:
    return {gate.name: gate.text for gate in gates if not gate.passed}


def test_true_pairs_are_shown_to_be(plan: Plan, evidence: dict[str, Evidence]) -> None:
    assert closed(gates_of_pairs(plan, evidence)) == {}
    base, gated, deep = evidence.values()
    more = gated.leaves.keys() - base.leaves.keys()
    assert [path for path, _ in more] == ["stack/blocks/attention/output_gate/gate/kernel"]
    assert all(gated.leaves[name] == hashes for name, hashes in base.leaves.items())  # bit for bit
    assert {path for path, _ in base.leaves.keys() & deep.leaves.keys()} == {"embed/embedding", "norm/scale"}
    assert [*base.batches] == [0, 11]  # the last that arms of 12 and of 17 steps both read
    values = [seed for hashes in base.leaves.values() for seed in hashes]
    assert {*values} == {*SEEDS}
    embedding = next(hashes for (path, _), hashes in base.leaves.items() if path == "embed/embedding")
    assert len({*embedding.values()}) == len({*base.draws.values()}) == len({*base.batches[0].values()}) == 2


@pytest.mark.rest
def test_a_seed_has_the_batches_that_its_program_reads(plan: Plan, evidence: dict[str, Evidence]) -> None:
    """Not a reading of its own: those that the experiment of the population puts on the mesh."""
    config = config_of(plan, "base", seeds=2, first_seed=3)
    experiment = opened(config)
    with placed(experiment.mesh, experiment.rules):
        batch = next(experiment.batches(data_of(config).windows("train"), 11))
    own = {3 + place: hashed(*(np.asarray(batch[name])[place] for name in sorted(batch))) for place in range(2)}
    assert own == {seed: evidence["base"].batches[11][seed] for seed in own}


@pytest.mark.rest
@pytest.mark.parametrize(
    ("arm", "keys", "gate"),
    [
        ("order", {"data.seed": 9, "data.order": "shared"}, "batches"),
        ("rows", {"data.batch_size": 6}, "batches"),
        ("other", {"train.evaluate_windows": 3}, "evaluation"),
    ],
)
def test_what_is_no_pair_is_named(folder: Path, arm: str, keys: dict[str, Any], gate: str) -> None:
    factor = (*keys,)
    plan = small_plan(folder, arms={"base": {}, arm: keys}, factor=factor, seeds=SEEDS, looks=(2,), learning_rates=())
    assert gate in closed(gates_of_pairs(plan, evidence_of(plan, SEEDS)))


def test_other_values_and_keys_are_named(plan: Plan, evidence: dict[str, Evidence]) -> None:
    base = evidence["base"]
    for name, hashes in base.leaves.items():
        other = dataclasses.replace(base, leaves={**base.leaves, name: {**hashes, 3: "other"}})
        assert closed(gates_of_pairs(plan, {"a": base, "b": other})).keys() == {"init"}
    leaves = {name: {**hashes, 4: "other"} if "query" in name[0] else hashes for name, hashes in base.leaves.items()}
    for change, gate, words in (
        (
            {"leaves": leaves},
            "init",
            "the first values of stack/blocks/attention/query/kernel are others in b than in a",
        ),
        ({"draws": {**base.draws, 4: "other"}}, "dropout", "dropout is drawn from other keys in b than in a"),
    ):
        found = closed(gates_of_pairs(plan, {"a": base, "b": dataclasses.replace(base, **change)}))
        assert found == {gate: words}


def test_each_two_arms_are_compared(plan: Plan, evidence: dict[str, Evidence]) -> None:
    """Also two of which each is a pair with the one between them, which lacks what they do not share."""
    base, (first, *_) = evidence["base"], evidence["base"].leaves
    less = dataclasses.replace(base, leaves={name: own for name, own in base.leaves.items() if name != first})
    other = dataclasses.replace(base, leaves={**base.leaves, first: {**base.leaves[first], 3: "other"}})
    assert closed(gates_of_pairs(plan, {"a": base, "b": less})) == {}
    assert closed(gates_of_pairs(plan, {"b": less, "c": other})) == {}
    found = closed(gates_of_pairs(plan, {"a": base, "b": less, "c": other}))
    assert found == {"init": f"the first values of {first[0]} are others in c than in a"}


def test_all_seeds_of_a_plan_are_compared(plan: Plan, evidence: dict[str, Evidence]) -> None:
    first = {arm: dataclasses.replace(one, draws={3: one.draws[3]}) for arm, one in evidence.items()}
    with pytest.raises(ValueError, match=r"must be of seeds \(3, 4\)"):
        gates_of_pairs(plan, first)


def test_seeds_that_have_something_in_common_are_named(folder: Path, plan: Plan, evidence: dict[str, Evidence]) -> None:
    base = evidence["base"]
    same = {number: dict.fromkeys(SEEDS, "one") for number in base.batches}
    found = {arm: dataclasses.replace(base, batches=same) for arm in plan.arms}
    assert "several seeds of base have the same order of batches" in closed(gates_of_pairs(plan, found))["sources"]
    shared = {"data.order": "shared"}
    said = small_plan(folder, seeds=SEEDS, looks=(2,), learning_rates=(), shared=shared)
    assert closed(gates_of_pairs(said, dict.fromkeys(said.arms, found["base"]))) == {}
    found = {"base": dataclasses.replace(base, draws=dict.fromkeys(SEEDS, "one"))}
    assert "dropout" in closed(gates_of_pairs(plan, found))["sources"]


def drawn(plan: Plan, arm: str, seed: int, patch: pytest.MonkeyPatch) -> set[bytes]:
    """What is kept by every dropout of a forward pass of an arm's model, at a step of a seed."""
    kept: set[bytes] = set()

    def noted(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def call(*args: Any) -> jax.Array:
            keep = function(*args)
            jax.debug.callback(lambda x: kept.add(np.asarray(x).tobytes()), keep)
            return keep

        return call

    experiment = opened(config_of(plan, arm, first_seed=seed))
    batch = next(batches(data_of(experiment.config).windows("train"), 4, seed, prefetch=0))
    with patch.context() as inside, placed(experiment.mesh, experiment.rules):
        inside.setattr("model.layers.row_bernoulli", noted(row_bernoulli))
        inside.setattr(Dropout, "keep", noted(Dropout.keep))
        state = experiment.make_state()
        model = nnx.eval_shape(lambda: experiment.model_config.build(nnx.Rngs(0)))
        loss, keys_B = language_model(nnx.graphdef(model)), dropout_keys(state.rng, jnp.asarray(7), 4)
        jax.block_until_ready(jax.jit(loss)(state.params, batch, keys_B))
        jax.effects_barrier()
    return kept


@pytest.mark.rest
def test_a_seed_alone_begins_as_in_a_population(plan: Plan, evidence: dict[str, Evidence]) -> None:
    """Bit for bit, and so in whatever packing."""
    alone = evidence_of(dataclasses.replace(plan, pack=1, arms={"base": {}, "gated": plan.arms["gated"]}), SEEDS)
    assert alone["base"].leaves == evidence["base"].leaves
    assert alone["gated"].draws == evidence["gated"].draws


@pytest.mark.rest
def test_every_draw_of_dropout_is_that_of_the_seed_whatever_the_arm(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the embeddings, of each residual branch and of the attention weights; one layer more adds its own."""
    base, gated, deep = (drawn(plan, arm, 4, monkeypatch) for arm in plan.arms)
    assert len(base) == 4
    assert base == gated
    assert base < deep
    assert len(deep) == 7
    assert not base & drawn(plan, "base", 5, monkeypatch)
