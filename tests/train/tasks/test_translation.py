"""Rows of pairs, several in each or one, and what a model writes by itself."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from launch.configs import load
from model import UserError
from model.families.encoder_decoder import Pairs
from model.families.table import FAMILIES
from tests.model.recurrent.cases import products
from tests.tiers import tiered
from train.attention import check_attention, described, said
from train.data.examples import Corpus, Pair
from train.data.examples.opened import ExampleData
from train.data.tokenizers import ByteTokenizer
from train.experiment import make_experiment, make_model_config
from train.flops import flops_per_token
from train.sharding import placed
from train.tasks.language_model import language_model
from train.tasks.pairs import laid
from train.tasks.translation import PackedRows, PairRows, Translation, written

T = 13
KINDS = [name for name, kind in FAMILIES.items() if Translation.HEAD in kind.HEADS]
PAIRS = [
    Pair("abc", "de"),
    Pair("f", "ghijk"),
    Pair("lm", "n"),
    Pair("öp", "q" * 20),
    Pair("r" * 20, "s"),
    Pair("t", "u"),
]


def data(pairs: list[Pair] = PAIRS, length: int = T) -> ExampleData:
    corpus: Corpus[Pair] = Corpus({"train": pairs, "validation": pairs}, "none")
    return ExampleData(corpus, ByteTokenizer().with_marks(Translation.MARKS), length)


def test_rows_are_the_pairs_with_their_start_and_end() -> None:
    tokenizer, rows = data().tokenizer, PairRows(data(), "validation")
    start, end = tokenizer.marks["start"], tokenizer.end
    found = rows.rows(range(len(PAIRS) + 2))
    for number, pair in enumerate(PAIRS):
        source, target = ([*text.encode()] for text in (pair.source, pair.target))
        sources, targets = [*source[: T - 1], end], [*target, end][:T]
        wanted = {"sources": sources, "tokens": [start, *targets[:-1]], "targets": targets}
        wanted |= {"source_positions": [*range(len(sources))], "positions": [*range(len(targets))]}
        wanted |= {"source_segment_ids": [1] * len(sources), "segment_ids": [1] * len(targets)}
        for name, value in (wanted | {"weights": [1.0] * len(targets)}).items():
            np.testing.assert_array_equal(found[name][number], value + [0] * (T - len(value)), err_msg=name)
    assert not any(x[len(PAIRS) :].any() for x in found.values())
    assert rows.told() == "6 examples, of which 2 have more than --config.data.length=13 tokens and are cut"
    assert PairRows(data(PAIRS[:3]), "validation").told() == "3 examples"


def test_answers_are_read_up_to_their_end() -> None:
    rows = PairRows(data(), "validation")
    tokenizer = data().tokenizer
    cut, garbled, marked = np.full(T, ord("x")), np.array([*"é".encode()[:1], tokenizer.end] * 9)[:T], np.full(T, 1)
    marked[:] = [tokenizer.marks["start"], ord("a"), *[tokenizer.end] * (T - 2)]
    assert rows.predicted(np.stack([cut, garbled, marked, np.full(T, tokenizer.end)])) == ["x" * T, "�", "a", ""]


def test_packed_rows_hold_every_pair_once_and_in_order() -> None:
    rows = PackedRows(data(), "train")
    found, alone = rows.rows(range(len(rows) + 1)), PairRows(data(), "train").rows(range(len(PAIRS)))
    assert rows.told() == f"{PairRows(data(), 'train').told()}, in {len(rows)} rows"
    assert 1 < len(rows) < len(PAIRS)
    seen = []
    for row in range(len(rows)):
        for number in range(1, found["segment_ids"][row].max() + 1):
            here, there = (found[name][row] == number for name in ("segment_ids", "source_segment_ids"))
            one = {name: found[name][row][there if name.startswith("source") else here] for name in found}
            seen.append({name: x for name, x in one.items() if "segment" not in name})
    for one, number in zip(seen, range(len(PAIRS)), strict=True):
        for name, value in one.items():
            np.testing.assert_array_equal(value, alone[name][number][: len(value)], err_msg=name)
            assert not alone["weights" if name == "weights" else name][number][len(value) :].any()
    assert not any(x[len(rows)].any() for x in found.values())


@functools.cache
def model(family: str) -> tuple[nnx.GraphDef, Any]:
    keys = {"family": family, "task": "translation", "model.num_layers": 2, "model.width": 16, "data.length": T}
    config = make_model_config(load("base", **keys), 257)
    graphdef, params = nnx.split(config.build(nnx.Rngs(0)))
    return graphdef, nnx.to_pure_dict(params)


@pytest.mark.parametrize("family", tiered([(one,) for one in KINDS], lambda family: family == "encoder_decoder"))
def test_packed_pairs_cost_what_they_cost_one_by_one(family: str) -> None:
    """Loss and gradients, sums and not means."""
    graphdef, params = model(family)
    loss = Translation().loss(graphdef, load("base", task="translation").train)

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda params: loss(params, batch, None)["loss"][0])(params)

    packed = PackedRows(data(), "train")
    some, each = (
        run(params, jax.tree.map(jnp.asarray, rows.rows(range(6))))  # type: ignore[attr-defined]
        for rows in (packed, PairRows(data(), "train"))
    )
    assert packed.rows(range(6))["segment_ids"].max() > 1
    for one, other in zip(jax.tree.leaves(some), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.rest
@pytest.mark.parametrize("family", KINDS)
def test_what_it_writes_is_the_likeliest_token_each_time(family: str) -> None:
    """Beside a loop that reads all again for each token; also where a row ends, and the others go on."""
    graphdef, params = model(family)
    tokenizer, rows = data().tokenizer, PairRows(data(), "validation")
    batch = {name: jnp.asarray(x) for name, x in rows.rows(range(6)).items()}
    answers_BT = np.asarray(jax.jit(Translation().sums(graphdef))(params, batch)["answers"])
    np.testing.assert_array_equal(answers_BT, by_itself(graphdef, params, batch, tokenizer.end))
    common = int(np.bincount(answers_BT.ravel())[:250].argmax())  # an end that some rows meet
    short_BT = jax.jit(lambda params: written(nnx.merge(graphdef, params), Pairs.of(batch), common))(params)
    np.testing.assert_array_equal(short_BT, wanted_BT := by_itself(graphdef, params, batch, common))
    assert (wanted_BT[:, :-1] == common).any()
    # With the vector of a token that it writes, three times as long, the end is written, and the task stops at it.
    sums, table = jax.jit(Translation().sums(graphdef)), params["embed"]["embedding"]
    for token in np.unique(answers_BT):
        ending = params | {"embed": {"embedding": table.at[tokenizer.end].set(3 * table[token])}}
        ended_BT = np.asarray(sums(ending, batch)["answers"])
        if (ended_BT[:, :-1] == tokenizer.end).any():
            break
    assert (ended_BT[:, :-1] == tokenizer.end).any()
    np.testing.assert_array_equal(ended_BT, by_itself(graphdef, ending, batch, tokenizer.end))


def by_itself(graphdef: nnx.GraphDef, params: Any, batch: dict[str, jax.Array], end: int) -> np.ndarray:
    """What it writes, (B, T), with all read again for each token."""
    logits = jax.jit(lambda params, pairs: nnx.merge(graphdef, params)(pairs))
    pairs, rows = Pairs.of(batch), len(batch["tokens"])
    tokens_BT, done_B = np.zeros((rows, T + 1), int), np.zeros(rows, bool)
    tokens_BT[:, 0] = batch["tokens"][:, 0]
    for place in range(T):
        known_BT = jnp.asarray(tokens_BT[:, :T])
        known = pairs._replace(tokens_BT=known_BT, segment_ids_BT=jnp.ones_like(known_BT), positions_BT=None)
        next_B = np.asarray(logits(params, known))[:, place].argmax(axis=-1)
        tokens_BT[:, place + 1] = np.where(done_B, end, next_B)
        done_B |= next_B == end
    return tokens_BT[:, 1:]


SMALL = {"task": "translation", "model.num_layers": 2, "model.width": 16, "data.length": 12, "data.batch_size": 8}


def test_each_site_is_asked_for_its_own_core() -> None:
    """One that is named refuses by the key of its site; the passport has each."""
    keys = {"encoder": "encoder_core", "decoder": "core", "cross": "cross_core"}
    for key in keys.values():
        with pytest.raises(UserError, match=f"^--config.model.{key}='splash': "):
            make_experiment(load("base", family="encoder_decoder", **SMALL | {f"model.{key}": "splash"}))
    changes = {"model.core": "blockwise", "model.encoder_core": "dense + blockwise", "model.cross_core": "dense"}
    experiment = make_experiment(load("base", family="encoder_decoder", **SMALL | changes))
    with placed(experiment.mesh, experiment.rules):
        errors = check_attention(experiment.model_config, experiment.attention, jax.random.key(0))
    found = described(experiment.config.model, experiment.model_config, experiment.attention, errors)
    assert {f"model.{keys[site]}": one["core"] for site, one in found.items()} == changes
    assert {site: one["asked"] for site, one in found.items()} == {site: one["core"] for site, one in found.items()}
    assert all(one["self_check"].keys() == {"o", "dq", "dk", "dv"} for one in found.values())
    kept = 2 * 12 * 2 * 16 * 4  # of both layers, keys and values of 12 tokens, float32
    assert {site: one["cache_bytes"] for site, one in found.items()} == {"encoder": 0, "decoder": kept, "cross": kept}
    pairs = {"encoder": 12, "decoder": 13 / 2, "cross": 12}  # keys that a token sees, on average
    assert {site: one["flops_per_token"] for site, one in found.items()} == {
        site: 2 * 12 * seen * 16 for site, seen in pairs.items()
    }
    lines = [line.partition(",")[0] for line in said(experiment.attention, errors)]
    assert lines == [f"attention of the {site} by {changes[f'model.{key}']}" for site, key in keys.items()]


def test_a_recurrent_model_refuses_to_share_a_sequence() -> None:
    changes = {"model.width": 16, "data.batch_size": 8, "mesh.fsdp": 1, "mesh.context": 2}
    for task, family in (("language_model", "recurrent"), ("translation", "recurrent_encoder_decoder")):
        with pytest.raises(UserError) as refused:
            make_experiment(load("base", task=task, family=family, **changes))
        assert str(refused.value) == (
            f"--config.mesh.context=2 splits sequences, and --config.family={family} takes one token after the other; "
            "set it to 1."
        )


@pytest.mark.parametrize("T", [34, 17])
@pytest.mark.parametrize("family", KINDS)
def test_the_formula_of_operations_is_what_the_program_multiplies(family: str, T: int) -> None:
    """Of every family of pairs, also of short targets; `dense` computes all pairs of tokens, as all masks show them."""
    core = {"core": "dense", "encoder_core": "dense", "cross_core": "dense", "mask": "full"}
    keys = {f"model.{key}": value for key, value in core.items()} if family == "encoder_decoder" else {}
    keys |= {"model.num_layers": 2, "model.encoder_num_layers": 3, "model.width": 24, "data.length": 34}
    config = make_model_config(load("base", task="translation", family=family, **keys), 40)
    config = dataclasses.replace(config, target_length=T)  # type: ignore[call-arg]
    graphdef, params = nnx.split(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))
    rows = laid([], 34, T, data().tokenizer)
    batch = {name: jax.ShapeDtypeStruct((2, x.shape[1]), x.dtype) for name, x in rows.items()}
    loss = language_model(graphdef, inputs=Translation.inputs)
    forward = products(jax.make_jaxpr(lambda params, batch: loss(params, batch, None))(params, batch).jaxpr)
    assert 3 * forward / (2 * 34) == pytest.approx(flops_per_token(config), rel=1e-6)
