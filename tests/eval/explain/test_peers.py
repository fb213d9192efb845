"""Explanations beside those of others: captum's and the attention of `transformers`, with the same weights, and flows
of networkx, igraph and SciPy."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from eval.explain.faithfulness.measures import drawn_choices, drawn_shifts, infidelity, largest_sensitivity
from eval.explain.methods.flow import flow
from eval.explain.methods.gradients import gradient, gradient_x_input
from eval.explain.methods.integrated import NODES, baselines, integrated_gradients
from eval.explain.methods.table import METHODS, Asked
from eval.explain.targets import Target, embedded
from model.families.encoder_decoder import Pairs
from model.inspection import attention_weights
from tests.eval.explain.methods.test_flow import maps
from tests.model import test_bert, test_published, test_published_pairs
from tests.model.asking import MARKS, ask
from tests.model.peer_tables import BERT_TABLES, PAIR_TABLES, TABLES, theirs, theirs_of_pairs
from tests.model.test_published import by_path
from train.experiment import make_model_config

pytestmark = MARKS
B, T, V, END, N = 3, 13, 29, 3, 11
REAL = np.arange(T) < np.array([[T], [T - 4], [T - 1]])
RNG = np.random.default_rng(0)
GPT = next(case for case in test_published.CASES if case.variant == "gpt2")
T5 = next(case for case in test_published_pairs.CASES if case.variant == "t5_v1_1_small")
SPARSE = maps(5, 11, 2.0, causal=False, seed=1) * (RNG.random((5, 11, 11)) < 0.3)
GRAPHS = {
    "random": maps(4, 12, 3.0, causal=False),
    "causal": maps(6, 12, 2.0, causal=True),
    "sparse": SPARSE,
    "one-hot": np.eye(7)[RNG.integers(0, 7, (4, 7))] / 2 + np.eye(7) / 2,
}
NETWORKX = [0, 6]  # rows, as it is slow


def merged(config: Any, params: Any) -> Any:
    return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))), params)


@functools.cache
def made(kind: str) -> tuple[Asked, dict[str, np.ndarray], dict[str, Any]]:
    """What is explained; their weights, and their config."""
    tokens = jnp.asarray(np.random.default_rng(2).integers(0, V, (B, T)))
    inputs = {"tokens_BT": tokens, "valid_BT": jnp.asarray(REAL)}
    answers = Target(jnp.asarray(REAL.sum(1, keepdims=True) - 1), jnp.asarray([[1], [0], [4]]))
    if kind == "bert":
        params = test_bert.params("class")
        params["types"]["table"] *= 0  # which is part of a token's vector here, and there is not
        model, weights = merged(test_bert.config("class"), params), theirs(BERT_TABLES["class"], by_path(params), 2)
        sizes = {"hidden_size": 22, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = {"model_type": "bert", **sizes, "vocab_size": test_bert.V, "max_position_embeddings": 29}
        config |= {"num_labels": test_bert.LABELS, "pad_token_id": None}
    else:
        params, ours = test_published.parameters(GPT), GPT.ours()
        model = merged(make_model_config(ours, V), params)
        weights, config = theirs(TABLES["gpt2"], by_path(params), GPT.layers), GPT.theirs()
    base = baselines(model, inputs, {"end": END})["end"]
    return Asked(model, inputs, answers, base), weights, config


KINDS = "bert", "gpt"
MAP = RNG.standard_normal((B, T)) * REAL
TAKEN = drawn_choices(REAL, N)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """All of them at once: importing torch takes longest."""
    questions, arrays = {}, {}
    for kind in KINDS:
        asked, weights, config = made(kind)
        questions[kind] = {"kind": "explained", "config": config, "classes": kind == "bert", "nodes": NODES}
        given = {"tokens": asked.inputs["tokens_BT"], "rest": REAL.astype(int), "map": MAP, "taken": TAKEN}
        given |= {"baseline": np.full((B, T), END), "shifts": shifts(asked)["embedding"]}
        given |= {"places": asked.target.places_BP[:, 0], "answers": asked.target.answers_BP[:, 0]}
        arrays |= {f"{kind}/{name}": x for name, x in (weights | given).items()}
    tables, ours = PAIR_TABLES["t5_v1_1_small"], by_path(test_published_pairs.parameters(T5))
    given = test_published_pairs.batch()
    given.pop("targets")
    questions["t5"] = {"kind": "pairs", "config": T5.theirs()}
    weights = theirs_of_pairs(tables, ours, test_published_pairs.LAYERS)
    arrays |= {f"t5/{name}": x for name, x in (weights | given).items()}
    for name, graph in GRAPHS.items():
        questions[name] = {"kind": "flows", "rows": NETWORKX}
        arrays[f"{name}/maps"] = graph
    return ask(questions, arrays, tmp_path_factory.mktemp("explained"), "tests.eval.explain.peers")


def shifts(asked: Asked) -> dict[str, np.ndarray]:
    return drawn_shifts(embedded(asked.model, asked.inputs), 0.02, N)


def compared(name: str, ours: Any, wanted: np.ndarray, most: float) -> None:
    error = np.abs(np.asarray(ours) - wanted).max() / np.abs(wanted).max()
    print(f"{name}: {error:.1e}")
    assert error <= most, (name, error)


@pytest.mark.parametrize("kind", KINDS)
def test_what_captum_says_is_what_is_said_here(answers: dict[str, np.ndarray], kind: str) -> None:
    asked = made(kind)[0]
    model, inputs, target, base = asked
    found = integrated_gradients(model, inputs, target, base, most=2 + NODES)  # one panel
    both = [infidelity(asked, MAP[None], TAKEN, scaled=scaled)[0] for scaled in (False, True)]
    ours = {
        "integrated": found.values["embedding"],
        "gradient": gradient(model, inputs, target)["embedding"],
        "gradient_x_input": gradient_x_input(model, inputs, target)["embedding"],
        "sensitivity": largest_sensitivity(asked, METHODS["gradient_x_input"], shifts(asked)),
        "infidelity": both[0],
        "scaled": both[1],
    }
    for name, x in ours.items():
        compared(name, x, answers[f"{kind}/{name}"], 1e-4)


def test_attention_is_that_of_transformers(answers: dict[str, np.ndarray]) -> None:
    """Ours in float32, theirs in float64; rows of padding say nothing."""
    given = test_published_pairs.batch()
    real_BT = given["targets"] >= 0
    pairs = Pairs(given["input_ids"], given["decoder_input_ids"], given["attention_mask"], real_BT.astype(int))
    t5 = merged(T5.ours(), test_published_pairs.parameters(T5))
    stack = {"stack.attention": (REAL, "attention")}
    asked = {kind: (*made(kind)[0][:2], stack) for kind in KINDS}
    rows = given["attention_mask"] > 0, real_BT, real_BT
    names = "encoder.attention", "decoder.attention", "decoder.cross"
    asked["t5"] = t5, {"pairs": pairs}, {name: (real, name) for name, real in zip(names, rows, strict=True)}
    for kind, (model, inputs, known) in asked.items():
        ours = attention_weights(model, **inputs)
        assert ours.keys() == known.keys()
        for name, (real_BT, their) in known.items():
            real_1B1T1 = real_BT[None, :, None, :, None]
            found, wanted = (np.where(real_1B1T1, x, 0) for x in (ours[name], answers[f"{kind}/{their}"]))
            error = np.abs(found - wanted).max()
            print(f"{kind} {name}: {error:.1e}")
            assert error <= 1e-5


@pytest.mark.parametrize("name", GRAPHS)
def test_flows_are_those_of_three_others(answers: dict[str, np.ndarray], name: str) -> None:
    found = flow(GRAPHS[name]).values_Rn
    for solver in ("scipy", "igraph"):
        np.testing.assert_allclose(found, answers[f"{name}/{solver}"], atol=1e-6, err_msg=solver)
    np.testing.assert_allclose(found[NETWORKX], answers[f"{name}/networkx"], atol=1e-6)
