"""The loop's order, its refusals and its stops, seen by a step that counts and hooks that write down what they hear."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from model.errors import UserError
from train.loop import Values, check_finite, train
from train.run.signals import stop_signals
from train.state import State


class Diary:
    """Writes down, in order, what the loop does: `take` a batch, run the `step` on it, and call each hook."""

    def __init__(
        self, *, bad_loss: int = -1, bad_parameter: int = -1, at_batch: Callable[[int], None] = lambda number: None
    ):
        self.entries: list[tuple[Any, ...]] = []
        self.values: dict[int, Values] = {}
        self.bad_loss, self.bad_parameter, self.at_batch = bad_loss, bad_parameter, at_batch

    def batches(self, start: int) -> Iterator[int]:
        number = start
        while True:
            self.at_batch(number)
            self.entries.append(("take", number))
            yield number
            number += 1

    def step(self, state: State, batch: int) -> tuple[State, Values]:
        self.entries.append(("step", int(state.step) + 1, batch))
        number = int(state.step) + 1
        mlp = jnp.array([1.0, np.nan if number == self.bad_parameter else 2.0])
        metrics = {
            "loss": jnp.array(np.nan if number == self.bad_loss else number / 8),
            "grad_norm/embed": jnp.array(1.0),
            "grad_norm/stack/mlp": jnp.array([1.0, np.inf if number == self.bad_loss else 1.0]),
        }
        return State(state.step + 1, {**PARAMS, "stack": {"blocks": {"mlp": {"kernel": mlp}}}}, (), state.rng), metrics

    def evaluate(self, step: int, state: State) -> Values:
        assert int(state.step) == step
        self.entries.append(("evaluate", step))
        return {"val/loss": step / 4}

    def save(self, step: int, state: State, values: Values) -> None:
        assert int(state.step) == step
        self.entries.append(("save", step, values))

    def record(self, step: int, values: Values, waited: float) -> None:
        assert waited >= 0
        self.values[step] = values
        self.entries.append(("record", step))

    def of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [entry for entry in self.entries if entry[0] in kinds]


PARAMS = {"embed": {"embedding": jnp.ones(3)}, "stack": {"blocks": {"mlp": {"kernel": jnp.ones(2)}}}}


def run(
    diary: Diary, *, start: int = 0, steps: int, should_stop: Callable[[int], bool] = lambda step: False, **every: int
) -> State:
    state = State(jnp.int32(start), PARAMS, (), jnp.zeros(()))
    every = {"evaluate_every": 100, "checkpoint_every": 100} | every
    cadence = {"evaluate_every": every["evaluate_every"], "saves": lambda n: n % every["checkpoint_every"] == 0}
    return train(
        diary.step, state, diary.batches(start), diary, start=start, steps=steps, should_stop=should_stop, **cadence
    )


def test_the_order_of_a_whole_run() -> None:
    """A state is saved before the next batch is taken, and step n is recorded after step n + 1 was started."""
    diary = Diary()
    state = run(diary, steps=5, evaluate_every=3, checkpoint_every=2)
    assert diary.entries == [
        ("take", 0),
        ("step", 1, 0),
        ("take", 1),
        ("step", 2, 1),
        ("record", 1),
        ("record", 2),  # a checkpoint waits for its step's metrics, to see that they are finite
        ("save", 2, {}),
        ("take", 2),
        ("step", 3, 2),
        ("record", 3),  # and so does an evaluation
        ("evaluate", 3),
        ("take", 3),
        ("step", 4, 3),
        ("record", 4),
        ("save", 4, {}),
        ("take", 4),
        ("step", 5, 4),
        ("record", 5),
        ("evaluate", 5),
        ("save", 5, {"val/loss": 1.25}),
    ]
    assert int(state.step) == 5
    assert [diary.values[step]["loss"] for step in range(1, 6)] == [step / 8 for step in range(1, 6)]


def test_the_last_step_is_evaluated_and_saved_once() -> None:
    diary = Diary()
    run(diary, steps=6, evaluate_every=3, checkpoint_every=3)
    assert diary.of("evaluate", "save") == [
        ("evaluate", 3),
        ("save", 3, {"val/loss": 0.75}),
        ("evaluate", 6),
        ("save", 6, {"val/loss": 1.5}),
    ]


def test_a_resumed_run_does_the_rest_and_nothing_for_the_state_it_was_given() -> None:
    diary = Diary()
    run(diary, start=4, steps=7, evaluate_every=2, checkpoint_every=2)
    assert diary.of("take") == [("take", 4), ("take", 5), ("take", 6)]
    assert diary.of("evaluate") == [("evaluate", 6), ("evaluate", 7)]
    assert [entry[1] for entry in diary.of("save")] == [6, 7]
    assert diary.of("record") == [("record", 5), ("record", 6), ("record", 7)]


def test_a_finished_run_does_nothing() -> None:
    diary = Diary()
    assert int(run(diary, start=7, steps=7).step) == 7
    assert diary.entries == []


def test_a_run_that_is_told_to_stop_saves_and_returns() -> None:
    diary = Diary()
    state = run(diary, steps=9, should_stop=lambda step: step == 3, evaluate_every=3, checkpoint_every=3)
    assert int(state.step) == 3
    # It is not evaluated: who stops a run is in a hurry.
    assert diary.of("evaluate", "save") == [("save", 3, {})]
    assert diary.of("record") == [("record", 1), ("record", 2), ("record", 3)]


def test_a_loss_that_is_not_finite_stops_the_run_before_its_state_is_saved() -> None:
    diary = Diary(bad_loss=4)
    with pytest.raises(
        UserError, match=r"^step 4 is not finite in .*: nothing of it was saved.*clip_norm\.$"
    ) as refusal:
        run(diary, steps=9, checkpoint_every=2)
    named = str(refusal.value).removeprefix("step 4 is not finite in ").split(":")[0]
    assert sorted(named.split(", ")) == ["loss", "stack/mlp"]
    assert diary.of("save") == [("save", 2, {})]
    assert diary.of("record") == [("record", 1), ("record", 2), ("record", 3)]


def test_the_last_loss_is_looked_at_too() -> None:
    diary = Diary(bad_loss=4)
    with pytest.raises(UserError, match="^step 4 is not finite in .*loss"):
        run(diary, steps=4)
    assert diary.of("save", "evaluate") == []


def test_a_parameter_that_is_not_finite_is_not_saved_though_its_loss_was() -> None:
    diary = Diary(bad_parameter=3)
    with pytest.raises(UserError, match="^step 3 is not finite in stack/mlp: "):
        run(diary, steps=9, checkpoint_every=3)
    assert diary.of("save") == []


def test_finite_values_are_let_through() -> None:
    check_finite(1, {"loss": np.array([0.5, 3e38]), "grad_norm/embed": 0.0})


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals that reached the process's own handlers, which are the ones that a stop has to put back."""
    arrived: list[int] = []
    handlers = {number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in SIGNALS}
    yield arrived
    for number, handler in handlers.items():
        signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_the_run_after_the_step_it_interrupts(heard: list[int], number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    diary = Diary(at_batch=lambda batch: os.kill(os.getpid(), number) if batch == 2 else None)
    with stop_signals() as should_stop:
        assert not should_stop(0)
        state = run(diary, steps=9, should_stop=should_stop)
        assert should_stop(3)
    assert int(state.step) == 3
    assert diary.of("save") == [("save", 3, {})]
    assert heard == []
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_second_signal_interrupts_at_once(heard: list[int]) -> None:
    with stop_signals() as should_stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert heard == []
        os.kill(os.getpid(), signal.SIGINT)
        assert heard == [signal.SIGINT]
        assert should_stop(0)


def test_handlers_are_put_back_after_an_error(heard: list[int]) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    inside = contextlib.ExitStack()
    inside.enter_context(stop_signals())
    assert [signal.getsignal(each) for each in SIGNALS] != before
    assert not inside.__exit__(UserError, UserError("a step is not finite"), None)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_outside_of_the_main_thread_signals_are_left_alone() -> None:
    before, asked = [signal.getsignal(each) for each in SIGNALS], []

    def inside() -> None:
        with stop_signals() as should_stop:
            asked.append((should_stop(0), [signal.getsignal(each) for each in SIGNALS]))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert asked == [(False, before)]
