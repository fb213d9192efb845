"""One run, one result, wherever its arrays lie: meshes against one device, seeds as an axis against single seeds."""

import itertools
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from launch.configs import load
from model import vocabulary
from model.errors import UserError
from tests.small import compiled_step, losses, random_batch, random_batches, small_experiment, windows
from train.devices.mesh import make_mesh, make_rules
from train.devices.placing import local_numbers, place_batch
from train.experiment import Experiment
from train.limits import doubts
from train.sharding import placed
from train.tasks.base import Batch

STEPS = 20
SEED, DATA_SEED = 3, 11
SEEDS = 4
DROPOUT = {"model.dropout": 0.1}
EVERY_DAY = [(2, 2, 2, 1)]
# All of eight devices, and two of fewer.
MESHES = [one for one in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(one) == 8 and one not in EVERY_DAY]
MESHES += [(1, 1, 1, 2), (2, 1, 2, 1)]
COLLECTIVE = (
    r"(?:all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all)"
)
COUNTED = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"


def mesh_keys(replica: int, fsdp: int, tensor: int, context: int) -> dict[str, int]:
    sizes = {"replica": replica, "fsdp": fsdp, "tensor": tensor, "context": context}
    return {f"mesh.{axis}": size for axis, size in sizes.items()}


@cache
def sharded() -> Experiment:
    return small_experiment(**mesh_keys(2, 2, 2, 1), **DROPOUT)


@cache
def one_device() -> tuple[Experiment, jax.stages.Compiled]:
    experiment = small_experiment(**DROPOUT)
    return experiment, compiled_step(experiment)


@cache
def losses_alone() -> np.ndarray:
    """On one device, of random batches."""
    return losses(*one_device(), random_batches(one_device()[0], STEPS))


@cache
def losses_of(seed: int, data_seed: int) -> np.ndarray:
    """Of the run with these seeds on one device. The step is the same for all, as only states and batches differ."""
    experiment = small_experiment(**DROPOUT, **{"train.seed": seed, "data.seed": data_seed})
    return losses(experiment, one_device()[1], first_batches(experiment))


def first_batches(experiment: Experiment) -> Iterator[Batch]:
    return itertools.islice(experiment.batches(windows(experiment), 0), STEPS)


@pytest.mark.parametrize("shape", EVERY_DAY + [pytest.param(one, marks=pytest.mark.rest) for one in MESHES], ids=str)
def test_the_losses_are_the_same_on_every_mesh(shape: tuple[int, ...]) -> None:
    experiment = small_experiment(**mesh_keys(*shape), **DROPOUT)
    found = losses(experiment, compiled_step(experiment), random_batches(experiment, STEPS))
    np.testing.assert_allclose(found, losses_alone(), rtol=1e-5)


@pytest.mark.rest
def test_micro_batches_on_a_mesh_change_nothing() -> None:
    experiment = small_experiment(**mesh_keys(2, 2, 1, 1), **DROPOUT, **{"train.accumulate": 3})
    found = losses(experiment, compiled_step(experiment), random_batches(experiment, STEPS))
    np.testing.assert_allclose(found, losses_alone(), rtol=1e-5)


@pytest.mark.rest
def test_a_loss_in_slices_of_the_vocabulary_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With micro-batches and recomputation on a mesh, in training and in evaluation."""
    known, sums = losses_alone(), nats(one_device()[0])
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", 4 * 32 * 10)  # ten of a device's 28 tokens at once
    experiment = small_experiment(
        **mesh_keys(2, 2, 2, 1), **DROPOUT, **{"train.accumulate": 3, "model.remat": "full", "model.tied": True}
    )
    found = losses(experiment, compiled_step(experiment), random_batches(experiment, STEPS))
    np.testing.assert_allclose(found, known, rtol=1e-5)
    np.testing.assert_allclose(nats(experiment), sums, rtol=1e-5)


# Of five layers, a unit of three and two more: masks, positions, edits and sinks of only some.
UNEQUAL = {
    "model.num_layers": 5,
    "model.mask": "2 * (causal & window(3)) + causal",
    "model.position": "none + 2 * rope",
    "model.edits": "(qk_norm(rms, all) & value_residual) + (output_gate & give_kv) + (exclusive & take_kv)",
    "model.sinks": "2 * false + true",
}


@pytest.mark.rest
@pytest.mark.parametrize("changes", [mesh_keys(1, 4, 2, 1), mesh_keys(1, 2, 2, 2), {"model.unroll": 5}], ids=str)
def test_layers_that_differ_learn_the_same_on_a_mesh_and_without_loops(changes: dict[str, int]) -> None:
    alone, other = (small_experiment(**DROPOUT, **UNEQUAL, **some) for some in ({}, changes))
    found, wanted = (losses(one, compiled_step(one), random_batches(one, STEPS)) for one in (other, alone))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.abs(wanted - losses_alone()).max() > 1e-3


GEMMA = {
    "model.norm": "rms_plus_one(1e-5)",
    "model.norm_place": "sandwich",
    "model.embedding": "scaled",
    "model.head_width": 16,
    "model.num_kv_heads": 4,
    "model.mlp": "geglu",
    "model.use_bias": "qkv & mlp & head",
    "model.logits_soft_cap": 5.0,
}
NEOX = {
    "model.norm": "layer(1e-5)",
    "model.norm_place": "parallel",
    "model.embedding": "normed",
    "model.mlp": "gelu_exact",
    "model.use_bias": "output & norm & head",
    "model.tied": False,
}


@pytest.mark.rest
@pytest.mark.parametrize(("kinds", "shape"), [(GEMMA, (1, 2, 4, 1)), (GEMMA, (1, 2, 2, 2)), (NEOX, (2, 2, 2, 1))])
def test_blocks_of_other_shapes_learn_the_same_on_a_mesh(
    kinds: dict[str, Any], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logits in slices there, and on one device whole."""
    alone, other = (small_experiment(**DROPOUT, **kinds, **some) for some in ({}, mesh_keys(*shape)))
    wanted = losses(alone, compiled_step(alone), random_batches(alone, STEPS))
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", 4 * 32 * 10)
    found = losses(other, compiled_step(other), random_batches(other, STEPS))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.abs(wanted - losses_alone()).max() > 1e-3


@pytest.mark.rest
def test_seeds_of_layers_that_differ_are_trained_as_alone() -> None:
    population = small_experiment(**mesh_keys(2, 2, 1, 1), **UNEQUAL, **{"train.seeds": 2, "data.order": "shared"})
    found = losses(population, compiled_step(population), random_batches(population, STEPS))
    for seed in range(2):
        alone = small_experiment(**UNEQUAL, **{"train.seed": seed})
        wanted = losses(alone, compiled_step(alone), random_batches(alone, STEPS))
        np.testing.assert_allclose(found[:, seed], wanted, rtol=1e-5)


def nats(experiment: Experiment) -> tuple[np.ndarray, np.ndarray]:
    """Of the first batch, by the first parameters."""
    with placed(experiment.mesh, experiment.rules):
        return jax.device_get(experiment.sums(experiment.make_state().params, next(random_batches(experiment, 1))))


def test_the_losses_tell_runs_apart() -> None:
    for others in ((SEED + 1, DATA_SEED), (SEED, DATA_SEED + 1)):
        assert abs(losses_of(SEED, DATA_SEED)[0] - losses_of(*others)[0]) > 1e-3
    assert np.ptp(losses_of(SEED, DATA_SEED)) > 1e-2


@pytest.mark.rest
@pytest.mark.parametrize(("replica", "order"), [(2, "own"), (2, "shared"), (1, "own"), (4, "own")])
def test_each_seed_of_a_population_is_the_run_with_those_seeds(replica: int, order: str) -> None:
    seeds = {"train.seeds": SEEDS, "train.seed": SEED, "data.seed": DATA_SEED, "data.order": order}
    population = small_experiment(**mesh_keys(replica, 2, 1, 1), **DROPOUT, **seeds)
    step = compiled_step(population)
    data_seeds = [DATA_SEED + (i if order == "own" else 0) for i in range(SEEDS)]
    alone_SN = np.stack([losses_of(SEED + i, data_seeds[i]) for i in range(SEEDS)], axis=1)
    np.testing.assert_allclose(losses(population, step, first_batches(population)), alone_SN, rtol=1e-5)
    groups = collective_groups(step.as_text())
    assert groups, "fsdp=2 needs collectives; the pattern has missed them"
    # Devices are numbered along the mesh: those of one replica follow each other.
    crossing = [group for group in groups if len({device // 2 for device in group}) > 1]
    assert crossing == []


def test_a_seed_is_one_replica_even_when_it_is_evaluated() -> None:
    population = small_experiment(**mesh_keys(4, 2, 1, 1), **{"train.seeds": SEEDS})
    with placed(population.mesh, population.rules):
        batch = population.place(random_batch(0, 24, 16))
        lowered = population.sums.lower(population.abstract.params, batch)
        nats_NQ, targets_NQ = population.sums(population.make_state().params, batch)
    groups = collective_groups(lowered.compile().as_text())
    assert [group for group in groups if len({device // 2 for device in group}) > 1] == []
    assert nats_NQ.shape == targets_NQ.shape == (SEEDS, 4)
    assert len(set(np.asarray(nats_NQ[:, 0]).tolist())) == SEEDS


def collective_groups(hlo: str) -> list[list[int]]:
    """The devices of each group of each collective of a compiled program.

    Groups are listed, {{0,1},{2,3}}, or counted, [2,2]<=[2,2]T(1,0) (numbers counted up in one shape, transposed,
    cut into groups), or named, mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'} (devices that differ only in b).
    """
    groups: list[list[int]] = []
    for line in re.findall(rf"^.* {COLLECTIVE}(?:-start)?\(.*$", hlo, re.MULTILINE):
        if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
            groups += [_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        elif counted := re.search(rf"replica_groups=\[([\d,]+)\]<={COUNTED}", line):
            groups += _counted(counted[2], counted[3]).reshape(_numbers(counted[1])).tolist()
        else:
            named = re.search(rf"replica_groups=mesh\[([^\]:]*)\](?:, device_ids=\({COUNTED}\))? \{{([^}}:]*)\}}", line)
            assert named, f"a collective whose groups are written in a fourth way: {line}"
            sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
            inside = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", named[4])]
            shape = list(sizes.values())
            devices = _counted(named[2] or ",".join(map(str, shape)), named[3]).reshape(shape)
            grouped = np.moveaxis(devices, inside, range(-len(inside), 0))
            groups += grouped.reshape(-1, np.prod([shape[axis] for axis in inside])).tolist()
    return groups


def _counted(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    return np.arange(np.prod(sizes)).reshape(sizes).transpose(_numbers(order) if order else range(len(sizes)))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("all-reduce(b), replica_groups={{0,2},{1,3}}, to_apply=add", [[0, 2], [1, 3]]),
        ("all-gather-start(b), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", [[0, 2], [1, 3]]),
        ("all-reduce(b), replica_groups=[1,4]<=[4]", [[0, 1, 2, 3]]),
        ("collective-permute(b), source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("all-reduce(b), replica_groups=mesh['x'=2,'y'=1,'z'=2] {'x','y'}, to_apply=add", [[0, 2], [1, 3]]),
        ("all-reduce(b), replica_groups=mesh['x'=2,'z'=2] {'z'}", [[0, 1], [2, 3]]),
        (
            "all-reduce(b), replica_groups=mesh['x'=2,'z'=4], device_ids=([4,2]T(1,0)) {'x'}",
            [[0, 1], [2, 3], [4, 5], [6, 7]],
        ),
    ],
)
def test_groups_are_read_however_they_are_written(groups: str, expected: list[list[int]]) -> None:
    assert collective_groups(f"ENTRY {{\n  %a = f32[2]{{0}} {groups}\n}}\n") == expected


def test_parameters_and_moments_are_spread_as_their_axes_say() -> None:
    """On fsdp=2 (embed) x tensor=2 (heads, mlp, vocab): L=2, D=48, H=8, K=6, F=40, V=56."""
    state = sharded().make_state()
    attention, mlp = (state.params["stack"]["blocks"][name] for name in ("attention", "mlp"))
    shapes = {
        "embedding": (state.params["embed"]["embedding"], (28, 24)),
        "query": (attention["query"]["kernel"], (2, 24, 4, 6)),
        "value": (attention["value"]["kernel"], (2, 24, 4, 6)),
        "output": (attention["output"]["kernel"], (2, 4, 6, 24)),
        "up": (mlp["up"]["kernel"], (2, 24, 20)),
        "down": (mlp["down"]["kernel"], (2, 20, 24)),
        "norm": (state.params["norm"]["scale"], (48,)),
    }
    found = {name: {shard.data.shape for shard in array.addressable_shards} for name, (array, _) in shapes.items()}
    assert found == {name: {shape} for name, (_, shape) in shapes.items()}
    # AdamW keeps two moments; all that is left of the state are its counts.
    kept = sorted((leaf.shape, str(leaf.sharding.spec)) for leaf in jax.tree.leaves(state.params) if leaf.ndim > 1)
    moments = sorted(
        (leaf.shape, str(leaf.sharding.spec)) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1
    )
    assert moments == sorted(kept * 2)


def test_a_state_is_born_in_its_place() -> None:
    """No device ever holds a whole matrix: the program that makes the state has no array of its shape."""
    experiment = sharded()
    with placed(experiment.mesh, experiment.rules):
        program = jax.jit(experiment.make_state).lower().compile().as_text()
    whole = {leaf.shape for leaf in jax.tree.leaves(experiment.abstract.params) if leaf.size >= 48 * 40}
    local = {
        leaf.sharding.shard_shape(leaf.shape)
        for leaf in jax.tree.leaves(experiment.abstract.params)
        if leaf.size >= 48 * 40
    }
    made = {tuple(_numbers(shape)) for shape in re.findall(r"\b[fu]32\[([\d,]+)\]", program)}
    assert local <= made
    assert whole & made == set()


def test_the_state_keeps_its_place_over_a_step() -> None:
    experiment = sharded()
    out = compiled_step(experiment).output_shardings[0]
    same = jax.tree.map(lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim), experiment.abstract, out)
    assert all(jax.tree.leaves(same))


def test_each_process_loads_the_rows_of_its_devices() -> None:
    experiment = sharded()
    (rows,) = local_numbers(experiment.sharding, (24, 16))
    np.testing.assert_array_equal(rows, np.arange(24))
    batch = random_batch(0, 24, 16)
    backwards = {name: x[::-1] for name, x in batch.items()}
    placed_tokens = experiment.place(batch)["tokens"]
    np.testing.assert_array_equal(placed_tokens, batch["tokens"])
    assert {shard.data.shape for shard in placed_tokens.addressable_shards} == {(6, 16)}
    assert not np.array_equal(placed_tokens, backwards["tokens"])


def test_parts_of_a_batch_go_where_their_numbers_say() -> None:
    """Of seeds and of rows; and a batch without seeds is one that all of them share."""
    population = small_experiment(**mesh_keys(2, 2, 1, 2), **{"train.seeds": 4})
    tokens_NBT = np.random.default_rng(0).integers(0, 56, population.shape)
    numbers = [np.random.default_rng(size).permutation(size) for size in population.shape[:2]]
    loaded = {"tokens": tokens_NBT[np.ix_(*numbers)]}
    whole = place_batch(loaded, population.sharding, population.shape, tuple(numbers))["tokens"]
    np.testing.assert_array_equal(whole, tokens_NBT)
    assert {shard.data.shape for shard in whole.addressable_shards} == {(2, 12, 8)}
    shared = population.place({"tokens": tokens_NBT[0], "targets": tokens_NBT[0]})["tokens"]
    np.testing.assert_array_equal(shared, tokens_NBT[0])
    assert {shard.data.shape for shard in shared.addressable_shards} == {(12, 8)}


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (
            {"replica": 3, "fsdp": -1},
            "replica=3 x fsdp=-1 x tensor=1 x context=1 = 3 devices does not fit the 8 here",
        ),
        (
            {"fsdp": 4, "context": 4},
            "replica=1 x fsdp=4 x tensor=1 x context=4 = 16 devices does not fit the 8 here",
        ),
        (
            {"tensor": 0},
            "replica=1 x fsdp=1 x tensor=0 x context=1 needs sizes of at least 1, and at most one -1",
        ),
        (
            {"fsdp": -1, "tensor": -1},
            "replica=1 x fsdp=-1 x tensor=-1 x context=1 needs sizes of at least 1, and at most one -1",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_arithmetic(sizes: dict[str, int], sentence: str) -> None:
    sentence = f"the mesh {sentence}; change --config.mesh.*."
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        make_mesh({"replica": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes)


def test_a_mesh_takes_what_remains_or_less_and_a_run_says_what_is_idle() -> None:
    sizes = {"replica": 2, "fsdp": -1, "tensor": 2, "context": 1}
    assert dict(make_mesh(sizes).shape) == {"replica": 2, "fsdp": 2, "tensor": 2, "context": 1}
    assert make_mesh(sizes | {"fsdp": 1}).size == 4
    config = load("base")
    assert not list(doubts(config, 8, 8))
    assert list(doubts(config, 4, 8)) == ["the mesh of 4 leaves 4 of 8 devices idle: --config.mesh.* divides them."]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.num_heads": 6, "mesh.tensor": 4},
            "--config.model.num_heads=6 does not divide evenly over the mesh's tensor=4",
        ),
        (
            {"model.num_kv_heads": 2, "mesh.tensor": 4},
            "--config.model.num_kv_heads=2 does not divide evenly over the mesh's tensor=4",
        ),
        (
            {"data.length": 18, "mesh.context": 4},
            "--config.data.length=18 does not divide evenly over the mesh's context=4",
        ),
        (
            {"data.batch_size": 12, "mesh.replica": 2, "mesh.fsdp": 4},
            "--config.data.batch_size / train.accumulate=12 does not divide evenly over the mesh's replica=2 x fsdp=4",
        ),
        (
            {"train.seeds": 3, "mesh.replica": 2},
            "--config.mesh.replica=2 does not divide --config.train.seeds=3",
        ),
        (
            {"train.accumulate": 5},
            "--config.train.accumulate=5 does not divide --config.data.batch_size=24",
        ),
    ],
)
def test_sizes_that_the_mesh_does_not_divide_are_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}[.;]"):
        small_experiment(**changes)


@pytest.mark.parametrize(("key", "bits"), [("train", 32), ("data", 63)])
def test_seeds_that_would_run_out_of_bits_are_refused(key: str, bits: int) -> None:
    for seed in (-1, 2**bits - 3):
        with pytest.raises(UserError, match=f"^--config.{key}.seed={seed} must be between 0 and {2**bits - 4}, "):
            small_experiment(**{f"{key}.seed": seed, "train.seeds": 4})
    last = small_experiment(**{f"{key}.seed": 2**bits - 4, "train.seeds": 4})
    assert next(last.batches(windows(last), 0))["tokens"].shape == (4, 24, 16)
    with pytest.raises(UserError, match="^--config.data.order='theirs' is not one of: own, shared"):
        small_experiment(**{"data.order": "theirs"})


def test_the_order_of_the_data_knows_neither_model_nor_optimizer_nor_mesh() -> None:
    def order(**changes: Any) -> list[np.ndarray]:
        experiment = small_experiment(**{"train.seeds": 2, "data.seed": DATA_SEED, **changes})
        return [
            np.asarray(batch["tokens"]) for batch in itertools.islice(experiment.batches(windows(experiment), 0), 3)
        ]

    others = [
        {"model.width": 96, "model.position": "learned", "model.tied": False, "train.seed": 5},
        {"optimizer.name": "lion", "optimizer.learning_rate": 0.1, "train.accumulate": 3},
        {"train.steps": 7, "mesh.replica": 2, "mesh.fsdp": 4, "data.prefetch": 0},
    ]
    for changes in others:
        np.testing.assert_array_equal(order(**changes), order())
    assert not np.array_equal(order(), order(**{"data.seed": DATA_SEED + 1}))
    np.testing.assert_array_equal(np.stack(order())[:, 1], np.stack(order(**{"data.seed": DATA_SEED + 1}))[:, 0])


def test_replica_carries_seeds_or_shares_the_batch() -> None:
    assert dict(make_rules(1))["batch"] == ("replica", "fsdp")
    assert dict(make_rules(4))["batch"] == "fsdp"
