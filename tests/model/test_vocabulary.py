"""The ends of a language model: lookup and loss, in slices and whole, on every mesh, against float64 by hand."""

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from model import GPT, GPTConfig, vocabulary
from model.axes import partition_spec
from model.slices import Form, Terms, sliced_terms
from model.vocabulary import Embedding, Readout, num_slices, token_scores
from tests.small import run
from tests.tiers import tiered
from train.devices.mesh import AXES, make_mesh, make_rules
from train.sharding import placed
from train.tasks.language_model import language_model

SMOOTHING, Z_LOSS = 0.2, 0.01
MESHES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if np.prod(shape) == 8]


class Case:
    """Vectors, a kernel (its vocabulary first where it is tied) and perhaps a bias, targets and weights, drawn with a
    fixed seed.
    """

    def __init__(
        self,
        B: int,
        T: int,
        D: int,
        V: int,
        tied: bool = False,
        cap: float = 0.0,
        dtype: str = "float32",
        bias: bool = False,
    ):
        rng = np.random.default_rng(0)
        x_BTD, kernel_DV = rng.standard_normal((B, T, D)), rng.standard_normal((D, V)) / D**0.5
        kernel = kernel_DV.T if tied else kernel_DV
        # Numbers that the dtype holds, so that an error is one of the loss.
        self.x_BTD, self.kernel = (np.asarray(jnp.asarray(x, dtype), np.float32) for x in (2 * x_BTD, kernel))
        self.targets_BT = rng.integers(0, V, (B, T), np.int32)
        self.targets_BT[0, 0], self.targets_BT[-1, -1] = 0, V - 1
        self.weights_BT = rng.random((B, T)).astype(np.float32)
        self.form = Form(V, 0 if tied else 1, jnp.dtype(dtype), cap)
        self.weights = (self.kernel, np.float32(rng.standard_normal(V))) if bias else (self.kernel,)

    def readout(self, weights: tuple[jax.Array, ...]) -> Readout:
        """Of a kernel, or a kernel and a bias."""
        _, axis, dtype, cap = self.form
        return Readout(weights[0], axis, dtype, cap, *weights[1:])

    def grads(self, terms: Any) -> tuple[Any, ...]:
        """(objective, its gradients by vectors, kernel and bias) where `terms` are made so."""

        def objective(x_BTD: jax.Array, weights: tuple[jax.Array, ...]) -> jax.Array:
            log_z, target, mean, _ = terms(x_BTD, weights, self.targets_BT)
            smooth = (1 - SMOOTHING) * target + SMOOTHING * mean
            return jnp.sum((log_z - smooth + Z_LOSS * log_z**2) * self.weights_BT)

        value, (dx_BTD, dweights) = run(jax.value_and_grad(objective, (0, 1)), self.x_BTD, self.weights)
        return value, dx_BTD, *dweights

    def sliced(self, slices: int) -> tuple[Any, ...]:
        return self.grads(lambda x, weights, targets: sliced_terms(x, weights, targets, self.form, slices))

    def plain(self) -> tuple[Any, ...]:
        """As one slice has it."""
        return self.grads(lambda x, weights, targets: token_scores(x, self.readout(weights), targets))

    def expected(self) -> tuple[Any, ...]:
        """The same in float64, the gradient by its formula."""
        V, axis, _, cap = self.form
        kernel_DV = np.float64(self.kernel.T if axis == 0 else self.kernel)
        raw_BTV = self.x_BTD @ kernel_DV + (self.weights[1][None, None] if len(self.weights) > 1 else 0)
        y_BTV = cap * np.tanh(raw_BTV / cap) if cap else raw_BTV
        log_z_BT1 = np.log(np.exp(y_BTV).sum(axis=-1, keepdims=True))
        share_BTV = (1 - SMOOTHING) * np.eye(V)[self.targets_BT] + SMOOTHING / V
        weights_BT1 = np.float64(self.weights_BT)[..., None]
        value = ((log_z_BT1 + Z_LOSS * log_z_BT1**2 - (share_BTV * y_BTV).sum(-1, keepdims=True)) * weights_BT1).sum()
        dy_BTV = weights_BT1 * (np.exp(y_BTV - log_z_BT1) * (1 + 2 * Z_LOSS * log_z_BT1) - share_BTV)
        draw_BTV = dy_BTV * (1 - np.tanh(raw_BTV / cap) ** 2 if cap else 1)
        dkernel_DV = np.einsum("btd,btv->dv", np.float64(self.x_BTD), draw_BTV)
        grads = value, draw_BTV @ kernel_DV.T, dkernel_DV.T if axis == 0 else dkernel_DV
        return (*grads, draw_BTV.sum((0, 1))) if len(self.weights) > 1 else grads


def errors(found: tuple[Any, ...], expected: tuple[Any, ...]) -> list[float]:
    """Of each array, the largest error as a share of its largest entry."""
    return [float(np.abs(np.float64(a) - b).max() / np.abs(b).max()) for a, b in zip(found, expected, strict=True)]


@pytest.mark.parametrize("cap", [0.0, 3.0])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("slices", [2, 5, pytest.param(23, marks=pytest.mark.rest)])
def test_the_loss_and_its_gradients_in_slices_are_those_of_float64(slices: int, tied: bool, cap: float) -> None:
    """23 tokens: slices that overlap, and those of one token each; every other case has a bias."""
    case = Case(3, 7, 11, 23, tied, cap, bias=tied == bool(cap))
    value, *grads = errors(case.sliced(slices), case.expected())
    assert value < 1e-6
    assert max(grads) < 5e-6


@pytest.mark.parametrize("bias", [False, True])
def test_one_slice_is_as_near(bias: bool) -> None:
    case = Case(3, 7, 11, 23, tied=True, cap=3.0, bias=bias)
    assert len(case.plain()) == len(case.expected()) == 3 + bias
    assert max(errors(case.plain(), case.expected())) < 2.5e-6


@pytest.mark.parametrize("tied", [True, False])
def test_slices_in_bfloat16_are_as_near_as_the_whole(tied: bool) -> None:
    case = Case(8, 32, 64, 503, tied, dtype="bfloat16", bias=tied)
    expected = case.expected()

    def distances(found: tuple[Any, ...]) -> np.ndarray:
        return np.array([np.linalg.norm(np.float64(a) - b) for a, b in zip(found[1:], expected[1:], strict=True)])

    sliced, plain = case.sliced(4), case.plain()
    assert abs(sliced[0] / expected[0] - 1) < 1e-6
    assert (distances(plain)[:2] > 1e-4).all(), "else it is not half"
    assert (distances(sliced)[:2] <= 1.05 * distances(plain)[:2]).all()
    assert (distances(sliced)[2:] < 1e-5).all()  # a bias is never half


def test_targets_outside_of_the_vocabulary_are_nan_and_no_other() -> None:
    case = Case(2, 3, 5, 11)
    strange_BT = np.array([[11, 4, -1], [0, 10, 2**31 - 1]], np.int32)
    for slices in (1, 3):
        scores = run(functools.partial(terms_in, slices, case), case.x_BTD, case.weights, strange_BT)
        np.testing.assert_array_equal(np.isnan(scores.target_BT), [[True, False, True], [False, False, True]])
        assert np.isfinite(scores.log_z_BT).all()


def terms_in(slices: int, case: Case, x_BTD: jax.Array, weights: tuple[jax.Array, ...], targets_BT: jax.Array) -> Terms:
    if slices > 1:
        return sliced_terms(x_BTD, weights, targets_BT, case.form, slices)
    return token_scores(x_BTD, case.readout(weights), targets_BT)


def test_slices_are_as_many_as_keep_their_logits_small(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_slices(16, 256, 2048) == 1
    assert num_slices(1, 8192, 128256) == 16  # 4.2 GB
    assert num_slices(2**20, 2**20, 7) == 7
    with placed(make_mesh(dict(zip(AXES, (1, 2, 2, 2), strict=True))), make_rules(1)):
        assert num_slices(1, 8192, 128256) == 1  # half a gibibyte
        assert num_slices(8, 8192, 128256) == 16
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", 4 * 6 * 4)
    case = Case(2, 3, 5, 11)
    program = str(jax.make_jaxpr(functools.partial(terms_in, 1, case))(case.x_BTD, case.weights, case.targets_BT))
    assert "6,4]" in program
    assert ",11]" not in program.replace("[5,11]", "")


@pytest.mark.rest
def test_forward_mode_goes_through_model_and_loss_of_one_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    config = GPTConfig(num_layers=1, width=6, num_heads=1, vocab_size=11, max_length=5, core="dense", position="none")
    graphdef, params = nnx.split(GPT(config, rngs=nnx.Rngs(0)))
    params, case = nnx.to_pure_dict(params), Case(2, 5, 6, 11)
    ones_BT = jnp.ones((2, 5), jnp.int32)
    batch = {"tokens": case.targets_BT[::-1], "targets": case.targets_BT, "weights": case.weights_BT}
    batch |= {"segment_ids": ones_BT, "positions": ones_BT}

    def total(params: Any) -> jax.Array:
        return language_model(graphdef, label_smoothing=SMOOTHING)(params, batch, None)["loss"][0]

    def along(params: Any) -> tuple[jax.Array, ...]:
        tangent = jax.tree.map(jnp.cos, params)
        value, linear = jax.linearize(total, params)
        return jax.jvp(total, (params,), (tangent,))[1], linear(tangent), *jax.tree.leaves(jax.grad(total)(params))

    pushed, linear, *grads = run(along, params)
    pulled = sum(np.vdot(np.cos(a), b) for a, b in zip(jax.tree.leaves(params), grads, strict=True))
    np.testing.assert_allclose([pushed, linear], pulled, rtol=1e-5)
    monkeypatch.setattr(vocabulary, "SLICE_BYTES", 64)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jit(lambda params: along(params)).lower(params)  # traced anew


EVEN, UNEVEN = (16, 8, 24, 40), (3, 5, 7, 11)  # B, T, D, V, which each mesh of eight devices divides, or not


def both_ends(sizes: tuple[int, ...], seeds: int, tied: bool) -> tuple[Any, ...]:
    """A function that gives the loss of a model without layers, and its gradients by table, kernel and bias, of each
    seed; and its arguments.
    """
    B, T, D, V = sizes
    case, rng = Case(B, T, D, V), np.random.default_rng(2)
    tokens_BT = rng.integers(0, V, (B, T), np.int32)
    shapes: dict[str, tuple[int, ...]] = {"table": (V, D), "bias": (V,)}
    shapes |= {} if tied else {"kernel": (D, V)}
    params = {name: rng.standard_normal((seeds, *shape)) for name, shape in shapes.items()}
    params = jax.tree.map(lambda x: np.float32(x if seeds > 1 else x[0]), params)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Embedding(V, D, dtype="float32", rngs=nnx.Rngs(0))))

    def objective(params: Any, tokens_BT: jax.Array, targets_BT: jax.Array) -> jax.Array:
        x_BTD = nnx.merge(graphdef, {"embedding": params["table"]})(tokens_BT)
        kernel, axis = (params["table"], 0) if tied else (params["kernel"], 1)
        log_z, target, mean, _ = token_scores(x_BTD, Readout(kernel, axis, "float32", 5.0, params["bias"]), targets_BT)
        return jnp.sum((log_z - 0.8 * target - 0.2 * mean) * case.weights_BT)

    function = jax.value_and_grad(objective)
    if seeds > 1:
        function = jax.vmap(function, (0, None, None), spmd_axis_name="replica")
    return function, params, tokens_BT, case.targets_BT


def program(sizes: tuple[int, ...], seeds: int, tied: bool, shape: tuple[int, ...]) -> tuple[Any, str]:
    """What `both_ends` gives on a mesh, and the text of what was compiled for it."""
    function, params, *batch = both_ends(sizes, seeds, tied)
    mesh = make_mesh(dict(zip(AXES, shape, strict=True)), jax.devices()[: int(np.prod(shape))])
    with placed(mesh, make_rules(seeds)):
        lead = ("replica",) if seeds > 1 else ()
        places = {"table": ("vocab", "embed"), "kernel": ("embed", "vocab"), "bias": ("vocab",)}
        if sizes == EVEN:
            specs = {name: NamedSharding(mesh, P(*lead, *partition_spec(places[name]))) for name in params}
            params = jax.device_put(params, specs)
        compiled = jax.jit(function).lower(params, *batch).compile({"xla_backend_optimization_level": 0})
        return jax.device_get(compiled(params, *batch)), compiled.as_text()


@functools.cache
def on_one_device(sizes: tuple[int, ...], seeds: int, tied: bool) -> Any:
    """In one slice."""
    assert num_slices(*sizes[:2], sizes[3]) == 1
    return program(sizes, seeds, tied, (1, 1, 1, 1))[0]


@pytest.mark.parametrize(
    ("shape", "sizes", "tied", "seeds"),
    tiered(
        [
            *((shape, EVEN, tied, seeds) for shape in MESHES for tied in (True, False) for seeds in (1, 8)),
            *((shape, UNEVEN, True, 1) for shape in ((1, 2, 2, 2), (1, 8, 1, 1))),
        ],
        lambda shape, sizes, *case: (
            (shape, sizes == EVEN, *case)
            in [((2, 2, 2, 1), True, True, 1), ((1, 2, 2, 2), False, True, 1), ((2, 2, 1, 2), True, False, 8)]
        ),
    ),
    ids=str,
)
def test_both_ends_are_the_same_on_every_mesh(
    shape: tuple[int, ...], sizes: tuple[int, ...], tied: bool, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a loss in about three slices on each device; no device ever has a table, a kernel or a gradient of all."""
    (_, _, D, V), (_, fsdp, tensor, _) = sizes, shape
    text = same_in_slices(shape, sizes, tied, seeds, 0, monkeypatch)
    if sizes == EVEN and fsdp * tensor > 1:
        made = {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[([\d,]+)\]", text)}
        assert any(one[-2:] == (V // tensor, D // fsdp) for one in made)
        wholes = {(V, D), (D, V)} | ({(V // tensor, D), (D, V // tensor)} if fsdp > 1 else set())
        assert [one for one in made if one[-2:] in wholes] == []


@pytest.mark.parametrize(
    ("shape", "sizes", "tied", "seeds"),
    tiered(
        [
            *((shape, EVEN, tied, 1) for shape in MESHES if shape[1] > 1 for tied in (True, False)),
            ((2, 4, 1, 1), EVEN, False, 8),
            *((shape, UNEVEN, tied, 1) for shape in ((1, 2, 2, 2), (1, 8, 1, 1)) for tied in (True, False)),
        ],
        lambda *case: case in [((2, 2, 2, 1), EVEN, True, 1), ((1, 2, 2, 2), UNEVEN, False, 1)],
    ),
    ids=str,
)
def test_a_kernel_that_is_kept_is_gathered_once_and_gives_the_same(
    shape: tuple[int, ...], sizes: tuple[int, ...], tied: bool, seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its gradient is never there whole."""
    kept, sliced = (same_in_slices(shape, sizes, tied, seeds, most, monkeypatch) for most in (2**30, 0))
    B, T, D, V = sizes
    part = {D + -D % shape[1], -(-V // shape[2])}  # of a device's vocabulary, all of it

    def gathered(text: str) -> list[bool]:
        """Of each collective that gathers a kernel or a slice of it, whether it is a whole one."""
        shapes = re.findall(r"= f32\[([\d,]+)\]\S* all-gather(?:-start)?\(.*shard_map", text)
        made = [[int(size) for size in one.split(",")][-2:] for one in shapes]
        return [set(one) == part for one in made if max(part) in one or min(part) in one]

    assert gathered(kept).count(True) == 1
    assert gathered(sliced).count(True) == 0
    assert len(gathered(sliced)) == 2


def same_in_slices(
    shape: tuple[int, ...], sizes: tuple[int, ...], tied: bool, seeds: int, kept: int, patch: pytest.MonkeyPatch
) -> str:
    """Compares both ends, their loss in about three slices a device, with those of one device; the program's text."""
    known, known_grads = on_one_device(sizes, seeds, tied)
    B, T, _, V = sizes
    patch.setattr(vocabulary, "SLICE_BYTES", 4 * B * T * V // (8 // (shape[0] if seeds > 1 else 1)) // 3)
    patch.setattr(vocabulary, "KEPT_BYTES", kept)
    (value, grads), text = program(sizes, seeds, tied, shape)
    patch.undo()
    np.testing.assert_allclose(value, known, rtol=1e-6)
    for name, grad in known_grads.items():
        np.testing.assert_allclose(grads[name], grad, rtol=0, atol=5e-6 * np.abs(grad).max(), err_msg=name)
    return text
