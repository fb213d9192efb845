"""The contract: exact or refused before tracing, a choice that is told, a check at the start, and a true table."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch import attention as attention_command
from launch.configs import load
from launch.train import fit
from model import GPT, GPTConfig
from model.attention import (
    CORES,
    AttentionConfig,
    Core,
    ExplicitBias,
    MultiHeadAttention,
    Request,
    Scores,
    attend,
    causal,
    dropout,
    explicit,
    full,
    padding,
    segments,
)
from model.attention.biases.distance import Alibi
from model.attention.contract import ways
from model.attention.cores import table
from model.attention.cores.conditions import examples
from model.attention.cores.dense import dense
from model.attention.masks.places import Placed
from model.attention.selfcheck import TOLERANCE, errors, judge
from model.attention.values import leaf_axes
from model.axes import platform
from model.errors import UserError
from tests.tiny import call, write_text
from train.attention import check_attention
from train.devices.mesh import make_mesh, make_rules
from train.experiment import make_experiment
from train.sharding import placed

B, T, S, H, G, K = 2, 5, 7, 6, 2, 8


def arrays(**sizes: int) -> list[jax.Array]:
    n = {"B": B, "T": T, "S": S, "H": H, "G": G, "K": K} | sizes
    shapes = (n["B"], n["T"], n["H"], n["K"]), (n["B"], n["S"], n["G"], n["K"]), (n["B"], n["S"], n["G"], n["K"])
    return [jnp.ones(shape) for shape in shapes]


def request(**changes: Any) -> Request:
    return dataclasses.replace(Request.of(*arrays(), Scores(causal(), 1.0)), **changes)


SPLIT = {"batch": 1, "length": 2, "heads": 1, "kv_heads": 1}


@pytest.mark.parametrize(
    ("core", "changes", "sentence"),
    [
        ("fused", {}, "'fused': cuDNN runs on GPUs, not on a cpu; write blockwise."),
        ("fused", {"platform": "gpu"}, "'fused': cuDNN takes bfloat16 and float16, not float32; write blockwise, or "),
        ("splash", {}, "'splash': "),
        ("ring", {}, "'ring': the mesh does not split the sequence"),
        ("ulysses", {}, "'ulysses': the mesh does not split the sequence"),
        (
            "blockwise",
            {"ways": SPLIT},
            "'blockwise': blocks are cut from whole sequences, and the mesh splits them over ",
        ),
    ],
)
def test_a_core_that_is_named_raises_where_it_is_not_exact(core: str, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        table.select_core(core, request(**changes))
    assert str(error.value).startswith(f"--config.model.core={sentence}")
    assert "write" in str(error.value)


def test_auto_takes_the_first_that_is_exact_and_says_why_not_the_others(caplog: pytest.LogCaptureFixture) -> None:
    table._logged.clear()
    with caplog.at_level(logging.INFO, "heed"):
        choices = [table.select_core("auto", request()) for _ in range(2)]
    assert {choice.name for choice in choices} == {"blockwise"}
    assert choices[0].refused.keys() == {"splash", "fused"}
    (line,) = [record.getMessage() for record in caplog.records]  # once
    assert line.startswith("attention core: blockwise, chosen by auto on cpu; not splash: ")
    assert "; not fused: cuDNN runs on GPUs" in line
    assert table.select_core("auto", request(ways=SPLIT, T=8, S=8)).name in ("ulysses", "ring")
    # What a split sequence makes impossible for all others is left to the compiler.
    assert table.select_core("auto", request(ways=SPLIT)).name == "dense"


def test_auto_takes_nothing_that_is_untested() -> None:
    asked = request(platform="gpu", dtype=jnp.dtype("bfloat16"), T=8, S=8)
    assert CORES["fused"].refusal(asked) is None
    choice = table.select_core("auto", asked)
    assert choice.name == "blockwise"
    assert choice.refused["fused"].fix == "write fused to try it all the same"
    assert table.select_core("fused", asked).name == "fused"


@pytest.mark.parametrize(
    ("sizes", "scores", "sentence"),
    [
        ({"G": 4}, {}, "queries (2, 5, 6, 8), keys (2, 7, 4, 8) and values (2, 7, 4, 8) do not agree"),
        ({}, {"mask": padding(np.ones((B, 9), bool))}, "a mask made for 2 x 9 (keys) cannot serve 2 x 7; make it for"),
        (
            {},
            {"mask": causal() & segments(np.ones((B, 9), int), np.ones((B, S), int))},
            "a mask made for 2 x 9 (queries)",
        ),
        ({}, {"bias": ExplicitBias(np.ones((1, H, T, 3)))}, "a bias made for 1 x 6 x 5 x 3"),
        (
            {},
            {"mask": padding(np.ones(S, bool))},
            "a mask made for 7 (keys) cannot serve 2 x 7",
        ),
        ({}, {"mask": padding(np.ones((3, S), bool))}, "a mask made for 3 x 7 (keys) cannot serve 2 x 7"),
        ({}, {"bias": Alibi(np.ones(2))}, "an array (2,) in the scores has not the axes (heads) of 2 rows and 6 heads"),
        ({}, {"sinks_H": np.ones(1, np.float32)}, "sinks made for (1,) cannot serve (6,)"),
        (
            {},
            {"dropout": dropout(0.5, jax.random.split(jax.random.key(0), 1), H)},
            "keys of dropout made for (1, 6, 2)",
        ),
        ({}, {"query_positions_BT": np.ones((B, 3), int)}, "positions of queries made for (2, 3) cannot serve (2, 5)"),
        ({}, {"bias": ExplicitBias(np.ones((1, H, T, 2)))}, "a bias made for 1 x 6 x 5 x 2"),
        ({"S": 0}, {}, "there are 5 queries and 0 keys: give at least one of each."),
    ],
)
@pytest.mark.parametrize("core", ["auto", *CORES])
def test_shapes_that_do_not_agree_are_refused_by_all(
    core: str, sizes: dict[str, int], scores: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as error:
        attend(core, *arrays(**sizes), Scores(**({"mask": causal(), "scale": 1.0} | scores)))
    assert str(error.value).startswith(sentence)


def test_arrays_of_other_ranks_are_refused_before_anything_is_computed() -> None:
    q, k, v = arrays()
    gpt = GPT(GPTConfig(vocab_size=7, max_length=T, num_layers=1, width=8, num_heads=2), rngs=nnx.Rngs(0))
    layer = MultiHeadAttention(AttentionConfig(width=8, num_heads=2, head_width=4), rngs=nnx.Rngs(0))
    x_BTD, tokens_BT = jnp.ones((B, T, 8)), jnp.ones((B, T), int)
    refused: list[tuple[Any, str]] = [
        (
            lambda: attend("auto", q[0], k, v, Scores(full(), 1.0)),
            "queries of shape (5, 6, 8) must have the axes (B, T, ",
        ),
        (
            lambda: attend("auto", q, k[0], v, Scores(full(), 1.0)),
            "keys of shape (7, 2, 8) must have the axes (B, S, G, K)",
        ),
        (
            lambda: attend("dense", q, k, v[..., 0], Scores(full(), 1.0)),
            "values of shape (2, 7, 2) must have the axes ",
        ),
        (lambda: layer(x_BTD[0], causal()), "inputs of shape (5, 8) must have the axes (B, T, D): reshape them."),
        (
            lambda: layer(x_BTD, full(), context_BSD=x_BTD[0]),
            "inputs of keys and values of shape (5, 8) must have the ",
        ),
        (lambda: gpt(tokens_BT[0]), "tokens of shape (5,) must have the axes (B, T): reshape them."),
        (lambda: gpt(tokens_BT, tokens_BT[0]), "segment ids of shape (5,) must have the axes (B, T): reshape them."),
        (lambda: gpt(tokens_BT, None, tokens_BT[:, 1:]), "positions of shape (2, 4) do not fit tokens of shape (2, 5)"),
        (lambda: gpt.decode(tokens_BT[0], tokens_BT, gpt.init_cache(B, T)), "tokens of shape (5,) must have the axes"),
    ]
    for call_it, sentence in refused:
        with pytest.raises(UserError) as error:
            jax.eval_shape(call_it)
        assert str(error.value).startswith(sentence)


def test_a_request_knows_the_mesh_that_it_is_made_in() -> None:
    assert (platform(), ways()) == ("cpu", {"batch": 1, "length": 1, "heads": 1, "kv_heads": 1})
    with placed(make_mesh({"replica": 1, "fsdp": 2, "tensor": 1, "context": 4}), make_rules(1)):
        assert ways() == {"batch": 2, "length": 4, "heads": 1, "kv_heads": 1}
        assert jax.jit(lambda: jnp.array(ways()["length"]))() == 4  # and so it does while it is traced


def packed(**changes: Any) -> Scores:
    ids_BT = np.repeat([[0, 1]], 8, axis=1).reshape(1, 16).repeat(B, 0)
    return Scores(causal() & segments(ids_BT), 0.3, **changes)


def without_segments(q: Any, k: Any, v: Any, scores: Scores) -> jax.Array:
    """The fault that users of every peer met: packed documents see one another."""
    return dense(q, k, v, scores.replace(mask=causal()))


def without_dropout(q: Any, k: Any, v: Any, scores: Scores) -> jax.Array:
    """Evaluates where it should train."""
    return dense(q, k, v, scores.replace(dropout=None))


def with_the_first_row_for_all(q: Any, k: Any, v: Any, scores: Scores) -> jax.Array:
    """The fault of whoever forgets that documents differ from row to row."""
    leaves, tree = jax.tree.flatten(scores)
    first = [
        jnp.broadcast_to(x[:1], x.shape) if n[:1] == ("batch",) else x
        for n, x in zip(leaf_axes(scores), leaves, strict=True)
    ]
    return dense(q, k, v, jax.tree.unflatten(tree, first))


def without_a_cap(q: Any, k: Any, v: Any, scores: Scores) -> jax.Array:
    """A kernel that has none."""
    return dense(q, k, v, scores.replace(soft_cap=0.0))


def without_places(q: Any, k: Any, v: Any, scores: Scores) -> jax.Array:
    """What is said of a document's first tokens is heard of the window's."""

    def inner(mask: Any) -> Any:
        return mask.mask if isinstance(mask, Placed) else mask

    return dense(q, k, v, jax.tree.map(inner, scores, is_leaf=lambda one: isinstance(one, Placed)))


def with_a_wrong_gradient(q: Any, k: Any, v: Any, scores: Scores) -> jax.Array:
    """Right forward; the gradient of the keys is missing."""
    return dense(q, jax.lax.stop_gradient(k), v, scores)


@pytest.mark.rest
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_check_passes_what_is_right_and_finds_what_is_wrong(dtype: str) -> None:
    scores = packed(dropout=dropout(0.2, jax.random.split(jax.random.key(0), B), H), sinks_H=jnp.ones(H))
    sizes, key = (B, 16, H, G, K), jax.random.key(1)

    def found(core: Any) -> dict[str, float]:
        return {
            name: float(error) for name, error in jax.jit(lambda: errors(core, scores, sizes, dtype, key))().items()
        }

    right = found(CORES["blockwise"].call)
    assert right.keys() == {"o", "dq", "dk", "dv", "dsinks"}
    judge("blockwise", right, dtype)
    assert max(right.values()) < TOLERANCE[dtype] / 4
    for core, parts in ((without_segments, {"o", "dq", "dk", "dv"}), (with_a_wrong_gradient, {"dk"})):
        wrong = found(core)
        assert {name for name, error in wrong.items() if error > TOLERANCE[dtype]} >= parts
        with pytest.raises(UserError, match="is not exact on this device: it differs from dense in "):
            judge("x", wrong, dtype)
    with pytest.raises(UserError, match="o by nan"):
        judge("x", {"o": float("nan")}, dtype)


@pytest.mark.parametrize(
    "wrong", [without_segments, without_dropout, with_the_first_row_for_all, without_a_cap, without_places]
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.rest)])
def test_a_run_stops_before_it_learns_with_a_core_that_is_not_exact(
    wrong: Any, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"model.core": "wrong", "model.soft_cap": 30.0, "model.dtype": dtype, "data.length": 128}
    keys["model.mask"] = "causal & (window(20) | sink_columns(2))"
    config = load("base", **(write_text(tmp_path) | keys))
    monkeypatch.setitem(CORES, "wrong", Core(wrong, lambda request: iter(())))
    with pytest.raises(UserError, match="--config.model.core='wrong' is not exact on this device"):
        fit(config, str(tmp_path / "run"))
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"model.bias": "fire"}, marks=pytest.mark.rest),
        pytest.param({"model.bias": "kerple"}, marks=pytest.mark.rest),
        {"model.sinks": True},
    ],
    ids=str,
)
def test_no_seed_refuses_what_is_exact(changes: dict[str, Any]) -> None:
    """Gradients that are sums over all rows nearly cancel now and then; in half precision they would be noise."""
    sizes = {"model.num_heads": 1, "model.dtype": "bfloat16", "data.length": 64}
    experiment = make_experiment(load("gpt:quickstart", **sizes, **changes), 64)
    with placed(experiment.mesh, experiment.rules):
        for seed in range(5):
            check_attention(experiment.model_config, experiment.attention, jax.random.key(seed))


def test_a_length_below_1_is_refused_before_the_check() -> None:
    with pytest.raises(UserError, match="--config.data.length=-5 must be at least 1 "):
        make_experiment(load("gpt:quickstart", **{"data.length": -5}), 64)


def test_flags_that_are_numbers_are_flags() -> None:
    """The masks of other libraries are 0 and 1; `~` and `&` of such numbers would work on their bits."""
    for number in (np.array([[0, 1, 2, 0, 1]]), np.array([[0.0, 1, 1, 0, 1]])):
        flags = number != 0
        for made, wanted in (
            (padding(number), flags[:, None, None]),
            (explicit(number[None, None]), flags[None, None]),
        ):
            for mask, expected in ((made, wanted), (~made, ~wanted), (full() & made, wanted)):
                np.testing.assert_array_equal(np.broadcast_to(mask.block(0, 0, 1, 5), (1, 1, 1, 5)), expected)


def test_what_is_traced_is_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is built with the name of the core that `auto` chose, not with `auto`."""
    asked = []
    monkeypatch.setattr(
        table,
        "choose_core",
        lambda cores, name, request, real=table.choose_core: asked.append(name) or real(cores, name, request),
    )
    experiment = make_experiment(load("gpt:quickstart"), 64)
    chosen = experiment.attention["self"][0].choice.name
    assert (asked, chosen, experiment.model_config.cycles["core"].values) == (["auto"], "blockwise", ("blockwise",))
    jax.eval_shape(experiment.make_state)
    batch = {
        name: jax.ShapeDtypeStruct((8, 256), jnp.int32)
        for name in ("tokens", "targets", "segment_ids", "positions", "weights")
    }
    with placed(experiment.mesh, experiment.rules):
        jax.eval_shape(experiment.step, experiment.abstract, batch)
    assert set(asked[1:]) == {"blockwise"}


def test_no_untested_cell_says_exact() -> None:
    rows = [
        [cell.strip() for cell in line.split(" | ")] for line in attention_command.table().split("\n\n")[0].splitlines()
    ]
    assert rows[0][1:] == [*CORES][:-1] + [f"{[*CORES][-1]} |"]
    for number, core in enumerate(CORES.values(), 1):
        cells = {row[number].removesuffix(" |") for row in rows[4:]}
        word = {"tested": "exact", "interpreted": "exact, interpreted", "untested": "untested"}[core.evidence]
        word = word if core.is_softmax else "another function"
        assert {cell for cell in cells if not cell.startswith("no (")} == {word}
    assert {name.replace("|", "\\|") for name in examples()} == {
        name for row in rows[4:] for name in row[0].removeprefix("| ").split("; ")
    }


def test_the_readme_holds_the_table() -> None:
    readme = Path("model/attention/cores/README.md").read_text()
    assert attention_command.table() in readme, "copy what launch.attention --table prints"


def test_the_command_explains_a_config() -> None:
    done = call(attention_command.main, ["--config=configs/gpt.py:quickstart", "--config.model.core=dense"])
    lines = done.out.splitlines()
    assert done.status == 0, done.err
    assert [line.split()[0] for line in lines[:-1]] == [*CORES]
    assert lines[-1] == "dense takes dense"
    assert lines[[*CORES].index("ring")].startswith("ring       refused: the mesh does not split the sequence")
    for words in ([], ["--table", "--config=configs/gpt.py"], ["--table", "--config.model.core=dense"]):
        done = call(attention_command.main, words)
        assert (done.status, done.err) == (
            2,
            "give one of --table, --race and --config, such as --config=configs/gpt.py:quickstart.\n",
        )


def test_the_race_compares_two_that_compute_the_same() -> None:
    done = call(attention_command.main, ["--race=2x3x32x8", "--rounds=3"])
    assert re.fullmatch(
        r"auto / jax.nn.dot_product_attention \(XLA\) = [\d.]+ \(quartiles [\d.]+ to [\d.]+\)\n", done.out
    ), done.err
    for words, sentence in (
        (["--race=2x3x32"], "--race=2x3x32 is not B x H x T x K"),
        (["--race=2x3x0x8"], "--race=2x3x0x8 is not"),
        (["--race=2x3x32x8", "--rounds=1"], "--rounds=1 must be at least 3 and at most 10000."),
    ):
        done = call(attention_command.main, words)
        assert (done.status, done.err.startswith(sentence)) == (2, True), done.err
