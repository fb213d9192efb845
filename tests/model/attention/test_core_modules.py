"""Cores with parameters of their own and with a state, by one that lives beside this file: trained, decoded, refused.

That its full pass, gradients, weights and decoding are those of a recurrence in NumPy, also in a cycle, is shown by the
case `states` of tests/model/test_cycles.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.runs import open_run
from launch import evaluate as evaluate_command
from launch import train as train_command
from launch.bench import contenders
from launch.configs import load
from model import UserError
from model.attention import CORES, Core, HeadSizes, RecurrentCore, Scores, attend, select_core, window
from model.attention.contract import Refusals, Request, needs
from model.attention.cores.table import anywhere
from model.parameters import parameter
from tests.model import reference
from tests.model.attention import decay
from tests.model.test_gpt import B, G, H, K, T, compiled, model
from tests.small import compiled_step, losses, random_batches, small_experiment
from tests.tiers import tiered
from tests.tiny import call, metrics, words, write_text
from train.attention import check_attention, described, said
from train.experiment import Experiment
from train.optimizers import OPTIMIZERS
from train.sharding import placed

HYBRID = {"model.core": "2 * decay + dense", "model.num_layers": 5}


def halved(q: jax.Array, k: jax.Array, v: jax.Array, scores: Scores) -> jax.Array:
    """A function that is no softmax: half of each value, at once."""
    return jnp.repeat(v / 2, q.shape[2] // v.shape[2], axis=2)


def in_order(request: Request) -> Refusals:
    """What `halved` refuses."""
    yield from needs(request.scores.query_positions_BT is None, "it knows no positions", "write another core")


@pytest.fixture(autouse=True)
def _cores() -> Iterator[None]:
    """First of all, where `auto` would meet them."""
    others = dict(CORES)
    CORES.clear()
    CORES.update({"decay": decay.CORE, "halved": Core(halved, in_order, reference=None)} | others)
    yield
    CORES.clear()
    CORES.update(others)


def test_decoding_in_pieces_is_the_full_pass() -> None:
    """Rows of different lengths; a state, a rolling cache and a full one; padding before, between and after; a row that
    begins anew; and one that goes back, which a state cannot, and which is told."""
    m = model(num_layers=5, core="2 * decay + 2 * dense", mask="3 * causal + (causal & window(4))", bias="none")
    lengths_B, grid_BT = np.array([T, T - 3, 6, 2, 1]), np.arange(T)[None]
    positions_BT = np.where(grid_BT < lengths_B[:, None], grid_BT, -1)
    decode = compiled(lambda p, *args: m.merge(p).decode(*args))
    cache, found = m.merge(m.params).init_cache(B, T), []
    for at in (slice(0, 5), slice(5, 10), slice(10, T)):
        # With padding behind the first token.
        places_Bt, tokens_Bt = (np.insert(x_BT[:, at], 1, -1, axis=1) for x_BT in (positions_BT, m.tokens_BT))
        logits_BtV, cache = decode(m.params, np.maximum(tokens_Bt, 0), places_Bt, cache)
        found.append(np.delete(logits_BtV, 1, axis=1))
    expected_BTV, there_BT = reference.gpt(m.params, m.config, m.tokens_BT).logits_BTV, positions_BT >= 0
    got_BTV = np.concatenate(found, 1)
    np.testing.assert_allclose(got_BTV[there_BT], expected_BTV[there_BT], atol=2e-5 * np.abs(expected_BTV).max())
    assert np.isnan(got_BTV[~there_BT]).all()
    state, full, rolling = cache.stacks
    assert (state.state.shape, full.k_BSGK.shape, rolling.k_BRGK.shape) == (
        (3, B, H, K, K),
        (1, B, T, G, K),
        (1, B, 5, G, K),
    )
    assert state.newest_B.tolist() == [(lengths_B - 1).tolist()] * 3
    again_BT = np.tile(np.array([[0, 1]]), (B, 1))
    again_BTV, cache = decode(m.params, m.tokens_BT[:, :2], again_BT, cache)
    only = lengths_B <= 5  # a rolling cache that has rolled cannot begin anew
    np.testing.assert_allclose(again_BTV[only], expected_BTV[only, :2], atol=2e-5 * np.abs(expected_BTV).max())
    back_BTV, _ = decode(m.params, m.tokens_BT[:, :2], np.array([[1, 2], [3, 4], [2, 1], [0, 2], [0, 1]]), cache)
    assert np.isnan(back_BTV).any((1, 2)).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.mask": "causal & window(4)"},
            "='decay': a state fades, and takes no other mask than causal; write --c",
        ),
        ({"model.mask": "2 * (causal & window(4)) + causal"}, "='decay': a state fades, and takes no other mask"),
        ({"model.mask": "causal & sink_columns(2)"}, "='decay': a state fades, and takes no other mask"),
        ({"model.bias": "alibi"}, "='decay': a state knows no distances to add a bias to; write --config.model.bias"),
        ({"model.soft_cap": 3.0}, "='decay': it has no scores to cap; write --config.model.soft_cap=0."),
        ({"model.sinks": True}, "='decay': it has no sum that sinks would join; write --config.model.sinks=false."),
        ({"model.dropout": 0.1}, "='decay': it has no weights to drop; write --config.model.dropout=0."),
        ({"mesh.context": 2}, "='decay': a state runs along the whole sequence; write --config.mesh.context=1."),
    ],
)
def test_what_it_refuses_it_refuses_by_the_contract(changes: dict[str, Any], sentence: str) -> None:
    """In one place of a cycle, before anything is traced; where only the other layers ask for it, all is well."""
    with pytest.raises(UserError) as refused:
        small_experiment(**HYBRID | changes)
    assert str(refused.value).startswith(f"--config.model.core{sentence}")
    key, value = next(iter(changes.items()))
    if key != "mesh.context" and "+" not in str(value) and key != "model.dropout":
        none = {"model.mask": "causal", "model.bias": "none", "model.soft_cap": "0.0", "model.sinks": "false"}[key]
        written = f"({value})" if key == "model.mask" else str(value).lower()
        mixed = small_experiment(**HYBRID | {key: f"2 * {none} + {written}"})
        assert mixed.attention["self"][0].choice.name == "decay"


def test_decoding_is_refused_as_training_is() -> None:
    tokens_BT = np.zeros((2, 3), np.int32)
    for core, changes, sentence in (
        ("decay", {"mask": "causal & window(4)"}, "='decay': a state fades, and takes no other mask than causal"),
        ("halved", {}, "='halved': it knows no positions; write another core."),
    ):
        m = model(core=core, num_layers=1, **changes)
        one = m.merge(m.params)
        with pytest.raises(UserError, match=sentence):
            jax.eval_shape(one.decode, tokens_BT, np.tile(np.arange(3), (2, 1)), one.init_cache(2, 7))
    x_BTHK = jnp.ones((1, 2, H, K))
    with pytest.raises(UserError, match="='decay' has parameters; call it as a part of MultiHeadAttention."):
        attend("decay", x_BTHK, x_BTHK, x_BTHK, Scores(window(1) & window(1, 0), 1.0).replace(mask=decay.causal()))


def test_auto_takes_softmax_attention() -> None:
    """And asks no other core; a run that is read elsewhere may be computed by another core, if that is the same."""
    x_BTHK = jnp.ones((1, 2, H, K))
    choice = select_core("auto", Request.of(x_BTHK, x_BTHK, x_BTHK, Scores(decay.causal(), 1.0)))
    assert next(iter(CORES)) == "decay"
    assert choice.name == "blockwise"
    assert not {"decay", "halved"} & choice.refused.keys()
    assert anywhere("2 * decay + blockwise") == "2 * decay + auto"
    assert anywhere("2 * dense + blockwise") == anywhere("auto") == "auto"


def test_a_race_with_another_function_is_refused() -> None:
    with pytest.raises(UserError, match="core='decay': the bare function is written for softmax attention only."):
        contenders(load("gpt:bench", **{"model.core": "decay"}), 64)


class Wide(RecurrentCore):
    """With a parameter of the decay's name and another shape."""

    def __init__(self, sizes: HeadSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, rngs=rngs)
        self.decay = parameter(rngs, decay.fresh, (sizes.H, sizes.K), ("heads", "head"))


def test_a_parameter_of_two_shapes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CORES, "wide", Core(Wide, decay.refusals, reference=None))
    with pytest.raises(UserError) as refused:
        small_experiment(**{"model.core": "decay + wide"})
    assert str(refused.value) == (
        "attention/core/decay would have the shapes (8,) and (8, 6) in layers that differ; change the cycle in "
        "--config.model, so that all that have it have the same."
    )


def checked(experiment: Experiment) -> tuple[dict[str, Any], str]:
    """What the passport and the screen say of a run's attention."""
    with placed(experiment.mesh, experiment.rules):
        errors = check_attention(experiment.model_config, experiment.attention, jax.random.key(0))
    (line,) = said(experiment.attention, errors)
    return described(experiment.config.model, experiment.model_config, experiment.attention, errors)["self"], line


@pytest.mark.parametrize("dtype", tiered([("float32",), ("bfloat16",)], lambda one: one == "float32"))
def test_the_passport_says_what_it_was_compared_with(dtype: str) -> None:
    passport, line = checked(
        small_experiment(**{"model.core": "decay + halved + dense", "model.num_layers": 3, "model.dtype": dtype})
    )
    nothing = "nothing, for halved computes another function than dense and has no reference of its own"
    assert passport["compared_with"] == {"decay": "decay's own reference", "halved": nothing, "dense": "dense"}
    by_decay, by_halved, by_dense = passport["places"]
    assert by_decay["self_check"].keys() == {"o", "dq", "dk", "dv", "dcore.decay"}
    assert all(0 < error < (1e-5 if dtype == "float32" else 2e-2) for error in by_decay["self_check"].values())
    assert (by_halved["compared_with"], by_halved["self_check"]) == ({"halved": nothing}, {})
    assert by_dense["self_check"].keys() == {"o", "dq", "dk", "dv"}
    size, all_keys, states = jnp.dtype(dtype).itemsize, 16 * 2 * 48, 8 * 6 * 6  # H = 8, K = 6, T = 16
    assert [one["cache_bytes"] for one in passport["places"]] == [4 * states + 4, size * all_keys, size * all_keys]
    assert [one["flops_per_token"] for one in passport["places"]] == [12 * states, 12 * 48 * 17 / 2, 12 * 48 * 17 / 2]
    assert passport["cache_bytes"] == 4 * states + 4 + 2 * size * all_keys
    first, second, third = line.split(", compared with ")[0], nothing, line.rsplit(", ", 1)[1]
    assert passport["asked"] == "decay + halved + dense"
    assert first.endswith(" from decay's own reference on this device")
    assert third.endswith(" from dense on this device")
    assert f"compared with {second}" in line


@pytest.mark.rest
def test_one_that_is_not_its_reference_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(core: decay.Decay, *inputs: Any) -> jax.Array:
        other = nnx.merge(*nnx.split(core))
        other.decay = nnx.Param(1.01 * core.decay[...])
        return decay.Decay.reference(other, *inputs)

    monkeypatch.setitem(CORES, "decay", decay.CORE._replace(reference=slower))
    with pytest.raises(UserError, match="it differs from decay's own reference in .*; mend the one that is wrong"):
        checked(small_experiment(**{"model.core": "decay", "model.num_layers": 1}))


@pytest.mark.rest
def test_a_hybrid_learns_the_same_on_one_device_and_on_eight() -> None:
    """Three steps of packed rows."""
    found = []
    for mesh in ({}, {"mesh.fsdp": 4, "mesh.tensor": 2}):
        experiment = small_experiment(**HYBRID | mesh)
        found.append(losses(experiment, compiled_step(experiment), random_batches(experiment, 3)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
    assert not np.allclose(found[0][0], found[0][1], rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_parameters_lie_with_their_layers(name: str) -> None:
    """Stored, split and optimised for the layers that have them alone, in each optimizer; other models know nothing."""
    experiment = small_experiment(**HYBRID | {"optimizer.name": name, "mesh.fsdp": 4, "mesh.tensor": 2})
    leaf = experiment.abstract.params["stack"]["blocks"]["attention"]["core"]["decay"]
    assert (leaf.shape, leaf.sharding.spec[1]) == ((4, 8), "tensor")
    paths = jax.tree_util.tree_leaves_with_path(experiment.abstract.opt_state)
    rows = [x.shape[0] for path, x in paths if "'decay'" in jax.tree_util.keystr(path)]
    assert rows
    assert set(rows) == {4}
    dense = small_experiment(**{"model.num_layers": 5, "model.core": "dense"})
    assert "core" not in dense.abstract.params["stack"]["blocks"]["attention"]


@pytest.mark.rest
def test_seeds_of_a_population_are_their_own_runs() -> None:
    changes = HYBRID | {"model.remat": "full", "model.num_kv_heads": 4}
    together = small_experiment(**changes, **{"train.seeds": 2, "data.order": "shared"})
    both_SN = losses(together, compiled_step(together), random_batches(together, 3))
    for number in range(2):
        alone = small_experiment(**changes, **{"train.seed": together.config.train.seed + number})
        one_S = losses(alone, compiled_step(alone), random_batches(alone, 3))
        np.testing.assert_allclose(both_SN[:, number], one_S, rtol=1e-5)


@pytest.mark.rest
def test_a_run_with_states_is_trained_evaluated_and_written_on(tmp_path: Path) -> None:
    """By the commands; whoever reads the run elsewhere keeps what is no softmax, and nobody goes on without it."""
    run, keys = str(tmp_path / "run"), write_text(tmp_path) | {"model.core": "decay + blockwise", "model.dropout": 0.0}
    keys |= {"model.num_layers": 3, "train.steps": 4, "train.checkpoint_every": 2, "train.evaluate_every": 4}
    done = call(train_command.main, words(run, keys))
    assert done.status == 0, done.err
    assert re.search(r"attention by decay \+ blockwise, .* from decay's own reference on this device", done.err)
    assert "sample (" in done.out
    measured = metrics(tmp_path / "run")[-1]["val/loss"]
    scored = call(evaluate_command.main, [f"--workdir={run}"])
    assert scored.status == 0, scored.err
    assert f"{measured:.4f}" in scored.out
    assert open_run(run).config.model.core == "decay + auto"
    other = call(train_command.main, words(run, keys | {"model.core": "blockwise"}))
    assert (other.status, "learns something else (model.core: 'decay + blockwise' -> 'blockwise'" in other.err) == (
        2,
        True,
    )
