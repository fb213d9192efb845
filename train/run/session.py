"""What the loop calls while a run is in progress: evaluation, checkpoints, and what is shown of each step."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from train.collapse import Watch
from train.experiment import Experiment
from train.loop import Values, check_finite
from train.run.extension import extra
from train.run.opening import Opened
from train.run.signals import Stop
from train.state import Params, State

Evaluator = Callable[[Params, Callable[[], bool]], Iterable[tuple[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Session:
    """A run in progress, as the loop sees it."""

    experiment: Experiment
    opened: Opened
    evaluator: Evaluator
    recorded: Callable[[int], None]
    stop: Stop
    watch: Watch

    def evaluate(self, step: int, state: State) -> Values:
        """What the evaluator measures of the state; a run that has collapsed is told so."""
        # Asked between two batches only where it costs no agreement among processes.
        stop = (lambda: self.stop(step)) if jax.process_count() == 1 else (lambda: False)
        self.stop.doing(f"the evaluation of step {step}")
        values = dict(self.evaluator(state.params, stop))
        if values:
            check_finite(step, {"val/loss": values["val/loss"]})  # before it is written
            self.opened.report.evaluation(step, values, self.opened.windows)
            for sign in self.watch.signs(step, state.params, values["val/loss"]):
                self.opened.report.say(
                    f"step {step}: the run has collapsed, {sign}; this state is not kept as the best"
                )
        return values

    def save(self, step: int, state: State, values: Values) -> None:
        """Starts to write the state; the best is the one of the lowest validation loss, the mean over seeds, none of
        which has collapsed.
        """
        if self.opened.checkpoints is not None:
            self.stop.doing(f"the save of step {step}")
            self.opened.publish()
            sound = bool(values) and self.watch.collapsed_at != step
            metric = float(np.mean(values["val/loss"])) if sound else None
            self.opened.checkpoints.save(step, state, extra(step, self.experiment.config), metric)

    def record(self, step: int, values: Values, waited: float) -> None:
        """Shows and writes the metrics of a step."""
        if self.opened.checkpoints is not None:
            self.opened.checkpoints.check()
        self.recorded(step)
        self.stop.doing(f"step {step + 1}")
        rate = {"train/learning_rate": float(self.experiment.schedule(step - 1))}
        self.opened.report.step(step, {f"train/{name}": value for name, value in values.items()} | rate, waited)
