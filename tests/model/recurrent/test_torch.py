"""LSTM and GRU beside those of torch, with the same weights: several layers, both directions, rows of some lengths."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from model.recurrent.cells import Cell
from model.recurrent.documents import find_documents
from model.recurrent.layers import BothWays, Layers
from tests.model import reference
from tests.model.asking import MARKS, ask
from tests.model.recurrent.cases import nll

pytestmark = MARKS
B, T, D, V, FORGET = 5, 13, 6, 11, 1.0
LENGTHS = np.array([13, 1, 7, 12, 4])
# Cell, layers, in both directions.
CASES = [(cell, layers, both) for cell, both in itertools.product(("lstm", "gru"), (False, True)) for layers in (1, 3)]
Case = tuple[str, int, bool]


def layers(case: Case) -> Layers:
    cell, count, both = case
    keys: Any = {"forget_bias": FORGET, "dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0)}
    return Layers(count, (lambda: BothWays(cell, D, **keys)) if both else (lambda: Cell(cell, D, D, **keys)), 0.0)


def given(case: Case) -> tuple[Any, dict[str, np.ndarray]]:
    """Our weights, and inputs of standard size."""
    rng = np.random.default_rng(CASES.index(case))
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: layers(case)), nnx.Param))
    arrays = {
        "x": rng.standard_normal((B, T, D)).astype(np.float32),
        "readout": rng.standard_normal((D, V)).astype(np.float32),
        "targets": rng.integers(0, V, (B, T)),
        "lengths": LENGTHS,
    }
    return reference.random_params(shapes, rng), arrays


def directions(case: Case, params: Any) -> dict[str, Any]:
    """Torch's suffix of each layer and direction to our parameters of it."""
    blocks, (_, count, both) = params["blocks"], case
    sides = {"": blocks["forward"], "_reverse": blocks["backward"]} if both else {"": blocks}
    return {
        f"l{number}{suffix}": jax.tree.map(lambda x, number=number: np.asarray(x)[number], side)
        for suffix, side in sides.items()
        for number in range(count)
    }


def theirs(case: Case, params: Any) -> dict[str, np.ndarray]:
    """The same weights under torch's names, which has two biases for each gate, of which one counts."""
    found = {}
    for name, own in directions(case, params).items():
        for side, inner in (("ih", "input"), ("hh", "hidden")):
            kernel_DGH = own[inner]["kernel"]
            found[f"weight_{side}_{name}"] = kernel_DGH.reshape(len(kernel_DGH), -1).T
        bias_GH, other_GH = own["input"]["bias"].copy(), np.full_like(own["input"]["bias"], 0.25)
        bias_GH[1] += FORGET  # f of i, f, g, o and z of r, z, n
        bias_GH -= other_GH
        if case[0] == "gru":
            bias_GH[2], other_GH[2] = own["input"]["bias"][2], own["hidden"]["bias"]
        found |= {f"bias_ih_{name}": bias_GH.ravel(), f"bias_hh_{name}": other_GH.ravel()}
    return found


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    asked: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for number, case in enumerate(CASES):
        cell, count, both = case
        hidden = D // 2 if both else D
        asked[f"{number}"] = {
            "kind": "recurrent",
            "cell": cell,
            "width": D,
            "hidden": hidden,
            "layers": count,
            "both_ways": both,
        }
        params, inputs = given(case)
        arrays |= {f"{number}/{name}": x for name, x in (theirs(case, params) | inputs).items()}
    return ask(asked, arrays, tmp_path_factory.mktemp("torch"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_states_loss_and_gradients_are_torchs(answers: dict[str, np.ndarray], case: Case) -> None:
    params, arrays = given(case)
    found = {name.partition("/")[2]: x for name, x in answers.items() if name.startswith(f"{CASES.index(case)}/")}
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: layers(case)))
    valid_BT = np.arange(T)[None] < LENGTHS[:, None]
    documents = find_documents((B, T), None, jnp.asarray(valid_BT))

    def loss(params: Any, x_BTD: jax.Array, readout_DV: jax.Array) -> Any:
        made: Any = nnx.merge(graphdef, params)
        states_BTD, _ = made(x_BTD, documents, made.empty(B))
        return nll(states_BTD @ readout_DV, arrays["targets"], valid_BT), states_BTD

    inputs = np.where(valid_BT[..., None], arrays["x"], 0.5), arrays["readout"]
    (total, states_BTD), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, *inputs)
    np.testing.assert_allclose(total, found["loss"], rtol=1e-5)
    np.testing.assert_allclose(np.asarray(states_BTD)[valid_BT], found["states"][valid_BT], rtol=1e-4, atol=1e-5)
    assert_near(gradients[1], found["x"])
    assert_near(gradients[2], found["readout"])
    assert not np.asarray(gradients[1])[~valid_BT].any()
    for name, own in directions(case, gradients[0]).items():
        for side, inner in (("ih", "input"), ("hh", "hidden")):
            kernel_DGH = own[inner]["kernel"]
            assert_near(kernel_DGH.reshape(len(kernel_DGH), -1).T, found[f"weight_{side}_{name}"])
        assert_near(own["input"]["bias"].ravel(), found[f"bias_ih_{name}"])
        if case[0] == "gru":
            assert_near(own["hidden"]["bias"], found[f"bias_hh_{name}"].reshape(3, -1)[2])


def assert_near(ours: Any, wanted: np.ndarray) -> None:
    """As a part of the largest number."""
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
