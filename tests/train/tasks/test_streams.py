"""Text in streams of windows, whose state goes on, against documents in one piece, one token after the other."""

import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eval.likelihood import Likelihood
from launch.configs import load
from launch.train import check
from model import UserError
from model.recurrent.language_model import RecurrentConfig
from tests.model.recurrent import loops
from tests.model.recurrent.cases import Model, check_gradient, compiled, made
from tests.small import SIZES, compiled_step, losses
from tests.train.tasks.every import keys_of
from train.data import Streams, Windows
from train.experiment import Experiment, make_experiment
from train.state import State
from train.step import make_step
from train.tasks.language_model import LanguageModel
from train.tasks.streams import StreamedText

V, D, L, T, K = 23, 6, 2, 5, 3
END = V - 1
# With the ends before them and the last one: documents that end with a window, begin with one, fill streams, are empty.
LENGTHS = [3, 5, 8, 0, 1, 19, 2, 7, 13]
TASK = StreamedText(windows=K)
TRAIN = load("base").train


@functools.cache
def stream() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.array([END, *itertools.chain(*([*rng.integers(0, END, size), END] for size in LENGTHS))])


def whole() -> Windows:
    return Windows(stream(), END, K * T, num_bytes=sum(LENGTHS))


@functools.cache
def model(cell: str, rate: float = 0.0) -> Model:
    return made(RecurrentConfig(vocab_size=V, max_length=T, num_layers=L, width=D, cell=cell, tied=False, dropout=rate))


def of_loop(m: Model, params: Any, tokens: np.ndarray, states: Any = None) -> tuple[list[float], Any]:
    """(nats at each place of tokens that begin a document or go on from states, the states after them)."""
    logits_TV, states = loops.language_model(params, m.config, tokens[:-1], states)
    return [
        loops.cross_entropy(row[None], target[None]) for row, target in zip(logits_TV, tokens[1:], strict=True)
    ], states


def pieces(first: int, last: int) -> list[tuple[int, int]]:
    """Where documents, or what is between first and last of them, begin and end among inputs."""
    cuts = [first, *(place for place in range(first + 1, last) if stream()[place] == END), last]
    return list(itertools.pairwise(cuts))


@pytest.mark.parametrize("cell", ["lstm", pytest.param("gru", marks=pytest.mark.rest)])
def test_windows_that_go_on_are_the_documents_in_one_piece(cell: str) -> None:
    """Loss and gradient of each step, whose rows are all streams; and what an evaluation makes of these."""
    m = model(cell)
    rows = Streams(Windows(stream(), END, T, num_bytes=sum(LENGTHS)), K, np.flatnonzero(stream() == END))
    params, places = jax.tree.map(np.float64, m.params), range(0, len(stream()) - 1, K * T)
    begins = {place for place in range(0, len(stream()) - 1, T) if stream()[place] == END}
    assert begins - {*places}, "else no document begins with a window that is not the first of its stream"
    nats: dict[int, float] = {}  # by place
    states: dict[int, Any] = {}  # what a window goes on from
    for start in places:
        for one, end in pieces(start, min(start + K * T, len(stream()) - 1)):
            state = None
            for a, b in pieces_of_windows(one, end):
                states[a] = state
                found, state = of_loop(m, params, stream()[a : b + 1], state)
                nats |= dict(zip(range(a, b), found, strict=True))
    step = compiled(make_step(TASK.carried(m.graphdef, TRAIN), LOOKS_ON))
    carry = jax.tree.map(lambda x: x + 7, TASK.empty_carry(m.merge(), len(places)))  # of the streams before
    state = State(jnp.int32(0), m.params, m.params, jax.random.key(0), carry)
    for part in range(K):
        batch = rows.rows(np.arange(len(places)) * K + part)
        state, metrics = step(state, batch)
        windows = [(start + part * T, min(start + part * T + T, len(stream()) - 1)) for start in places]
        inside = [place for first, last in windows for place in range(first, last)]
        np.testing.assert_allclose(metrics["loss"], np.mean([nats[place] for place in inside]), rtol=1e-5)

        def expected(params: Any, windows: list[tuple[int, int]] = windows) -> float:
            parts = [piece for window in windows if window[0] < window[1] for piece in pieces(*window)]
            found = [of_loop(m, params, stream()[a : b + 1], states[a])[0] for a, b in parts]
            return sum(map(sum, found)) / sum(map(len, found))

        if part == 1:  # one tells as much as all
            check_gradient(expected, m.params, state.opt_state)
    found = dict(Likelihood(jax.jit(TASK.sums(m.graphdef)), whole(), 2)(m.params))
    assert found["val/loss"] == pytest.approx(np.mean([*nats.values()]), rel=1e-5)


def test_a_stream_begins_as_a_language_model_with_its_dropout() -> None:
    m, batch = model("lstm", 0.5), whole().rows([0, 1])
    alone, carried = LanguageModel().loss(m.graphdef, TRAIN), TASK.carried(m.graphdef, TRAIN)

    def losses(keys_B: jax.Array) -> list[jax.Array]:
        sums, _ = carried(m.params, batch, keys_B, TASK.empty_carry(m.merge(), 2))
        return [found["loss"][0] for found in (sums, alone(m.params, batch, keys_B), alone(m.params, batch, None))]

    found, expected, without = compiled(losses)(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert abs(found - without) > 1e-2


def pieces_of_windows(first: int, last: int) -> list[tuple[int, int]]:
    """What is between first and last, cut where windows are."""
    return list(itertools.pairwise(sorted({first, last, *range(-(-first // T) * T, last, T)})))


# Keeps the last gradient, and changes nothing.
LOOKS_ON = optax.GradientTransformation(
    lambda params: params, lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads)
)
RECURRENT = {"family": "recurrent", "task": "streamed_text", "objective.windows": K, "model.dropout": 0.1}
MINE = {key: value for key, value in SIZES.items() if key not in ("model.num_heads", "model.mlp_width")}
STEPS = 2 * K + 1


@functools.cache
def experiment(**changes: Any) -> Experiment:
    return make_experiment(load("base", **(MINE | RECURRENT | changes)), V + 1)


def learned(**changes: Any) -> np.ndarray:
    """The losses of some steps, in which streams end and others begin."""
    one = experiment(**changes)
    stream = np.append(0, np.random.default_rng(0).integers(0, V, 31 * K * 16 - 6))
    rows = Streams(Windows(stream, 0, 16, len(stream)), K, np.flatnonzero(stream == 0))
    batches = one.batches(rows, 0)
    return losses(one, compiled_step(one), itertools.islice(batches, STEPS))


@pytest.mark.rest
@pytest.mark.parametrize(
    "changes",
    [
        {"train.accumulate": 3},
        {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
        {"mesh.fsdp": 4, "train.accumulate": 2},
    ],
    ids=str,
)
def test_rows_go_on_in_micro_batches_and_on_a_mesh(changes: dict[str, int]) -> None:
    np.testing.assert_allclose(learned(**changes), learned(), rtol=1e-5)
    ways = experiment(**changes).mesh.size // experiment(**changes).mesh.shape["tensor"]
    for leaf in jax.tree.leaves(experiment(**changes).abstract.carry):
        assert (leaf.shape, leaf.sharding.shard_shape(leaf.shape)) == ((24, 2, 48), (24 // ways, 2, 48))


@pytest.mark.rest
def test_rows_of_a_population_go_on_as_those_of_its_seeds() -> None:
    both = learned(**{"train.seeds": 2, "mesh.replica": 2, "mesh.fsdp": 2})
    for seed in range(2):
        np.testing.assert_allclose(both[:, seed], learned(**{"train.seed": seed, "data.seed": seed}), rtol=1e-5)


def test_streams_are_measured_whole(tmp_path: Path) -> None:
    config = load("base", **keys_of("streamed_text", "recurrent", tmp_path))
    data, length = TASK.open(config), config.data.length
    rows, some, every = TASK.rows(data), TASK.measured(data, 1), TASK.measured(data)
    assert (rows.length, rows.in_turn, len(some)) == (length, K, 1)
    assert some.length == every.length == TASK.measured_length(config) == K * length
    weights = every.rows(range(len(every)))["weights"].sum()
    assert weights == data.windows("validation").num_tokens > some.num_tokens == K * length
    long = data.windows("train", K)
    read, wanted = rows.rows(range(len(rows))), long.rows(range(len(long)))
    assert read["positions"].ravel().tolist() == wanted["positions"].ravel().tolist()
    tokens = long.num_tokens
    fit = StreamedText(windows=tokens // length)
    assert fit.rows(data).rows([0])["weights"].all()
    assert fit.measured(data).rows([0])["weights"].sum() == weights  # of less than a stream as of all others
    with pytest.raises(UserError) as error:
        StreamedText(windows=tokens // length + 1).rows(data)
    assert f"holds {tokens} tokens, fewer than one stream of --config.objective.windows={fit.windows + 1} " in str(
        error.value
    )


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({}, "--config.family='gpt' cannot learn --config.task='streamed_text'; take recurrent."),
        ({"family": "recurrent", "objective.windows": 0}, "--config.objective.windows=0 must be at least 1 and "),
    ],
)
def test_mistakes_are_answered_in_one_sentence(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        check(load("base", task="streamed_text", **keys))
    assert str(error.value).startswith(sentence)
