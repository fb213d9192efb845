"""Trains a model: `python -m launch.train --config=configs/gpt.py:quickstart --workdir=runs/try`.

From a notebook: `state, history = fit(config)`.
"""

import contextlib
import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from eval.baselines import known_baselines
from eval.likelihood import Likelihood
from eval.summary import summarize
from launch import cli, hosts, output
from launch.configs import flatten, load
from train.collapse import Watch
from train.data import Data, eval_batches, open_data
from train.experiment import Experiment, flops_per_token, make_experiment
from train.loop import Values, check_finite, train
from train.memory import check_memory
from train.run.checkpoints import Checkpoints
from train.run.extension import extension
from train.run.folder import FREE, RunFolder, passport
from train.run.machine import machine_rate, use_compilation_cache
from train.run.profiler import profiler
from train.run.report import Report
from train.run.signals import Stop, stop_signals
from train.run.together import agree, compiled_together
from train.schedules import decay_start, warn_if_short
from train.sharding import placed
from train.state import State


@dataclasses.dataclass(frozen=True)
class Session:
    """A run in progress, as the loop sees it; a notebook's run has no checkpoints."""

    experiment: Experiment
    likelihood: Likelihood
    report: Report
    checkpoints: Checkpoints | None
    recorded: Callable[[int], None]
    stop: Stop
    watch: Watch

    def evaluate(self, step: int, state: State) -> Values:
        """Loss, perplexity and bits per byte of the validation text."""
        # Asked between two batches only where it costs no agreement among processes.
        stop = (lambda: self.stop(step)) if jax.process_count() == 1 else (lambda: False)
        self.stop.doing(f"the evaluation of step {step}")
        values = dict(self.likelihood(state.params, stop))
        if values:
            check_finite(step, {"val/loss": values["val/loss"]})  # before it is written
            self.report.evaluation(step, values)
            for sign in self.watch.signs(step, state.params, values["val/loss"]):
                self.report.say(f"step {step}: the run has collapsed, {sign}; this state is not kept as the best")
        return values

    def save(self, step: int, state: State, values: Values) -> None:
        """Starts to write the state; the best is the one of the lowest validation loss, the mean over seeds, none of
        which has collapsed.
        """
        if self.checkpoints is not None:
            self.stop.doing(f"the save of step {step}")
            sound = bool(values) and self.watch.collapsed_at != step
            metric = float(np.mean(values["val/loss"])) if sound else None
            self.checkpoints.save(step, state, {"batches": step, "evaluated": bool(values)}, metric)

    def record(self, step: int, values: Values, waited: float) -> None:
        """Shows and writes the metrics of a step."""
        if self.checkpoints is not None:
            self.checkpoints.check()
        self.recorded(step)
        self.stop.doing(f"step {step + 1}")
        rate = {"train/learning_rate": float(self.experiment.schedule(step - 1))}
        self.report.step(step, {f"train/{name}": value for name, value in values.items()} | rate, waited)


def fit(
    config: ConfigDict,
    workdir: str | None = None,
    *,
    extend: bool = False,
    profile_steps: str = "",
    allow_overlap: bool = False,
) -> tuple[State, list[Values]]:
    """Trains as the config says; returns the last state and the history of logged values.

    With a `workdir` the run has its folder there and goes on from its newest checkpoint; without one it leaves nothing.
    `extend` allows more `train.steps` than the run began with; `profile_steps='10:13'` traces those steps;
    `allow_overlap` lets validation text be in the train split.

    Raises:
        UserError: a config, a data set or a folder that cannot be used, or a step that is not finite.
    """
    cache = use_compilation_cache()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        experiment = check(config)
        agree("--config", str({key: value for key, value in flatten(config).items() if key not in FREE}))
        check_memory(experiment)
        recorded = stack.enter_context(profiler(profile_steps, workdir))
        folder = stack.enter_context(RunFolder(workdir, config, extend=extend)) if workdir else None
        stop.begin("the comparison of attention with its reference")
        errors = experiment.check_attention()
        stop.begin("the tokenizer")
        data = open_data(
            config.data,
            folder.tokenizer() if folder else None,
            allow_overlap=allow_overlap,
            while_waiting=stop.check,
        )
        agree("the text of --config.data, and its tokens,", data.fingerprint)
        stop.begin("the tokens of the text")
        windows, validation = data.windows("train"), data.measured(config.train.evaluate_windows)
        # A short text makes fewer tokens than asked for.
        if data.tokenizer.vocab_size != experiment.model_config.vocab_size:
            experiment = make_experiment(config, data.tokenizer.vocab_size)
        stack.enter_context(placed(experiment.mesh, experiment.rules))
        stop.begin("the baselines")
        checkpoints = None
        if folder is not None:
            checkpoints = stack.enter_context(_checkpoints(folder, experiment, errors, data, len(validation)))
        stop.begin("the first state")
        state, start, evaluated = _begin(experiment, checkpoints)
        report = stack.enter_context(_report(experiment, folder, start))
        report.say(f"resumed from step {start}" if start else f"compiled programs are kept in {cache}")
        others = "".join(f"; not {name}: {no.reason}" for name, no in experiment.attention.refused.items())
        report.say(
            f"attention by {experiment.attention.name}, {max(errors.values()):.0e} from dense on this device{others}"
        )
        step, sums = compiled_together(experiment.step), compiled_together(experiment.sums)
        likelihood = Likelihood(sums, validation, config.data.batch_size, experiment.place, experiment.rows)
        stable = decay_start(config.optimizer, config.train.steps)
        if stable:
            report.say(
                f"wsd decays after step {stable}: its checkpoint is kept, and --extend goes on smoothly from there"
            )
        first = next(iter(eval_batches(validation, config.data.batch_size, experiment.rows)))
        stop.begin(f"the compilation of the step, and step {start + 1}")
        state = train(
            step,
            state,
            experiment.batches(windows, start),
            Session(experiment, likelihood, report, checkpoints, recorded, stop, Watch(experiment, first)),
            start=start,
            steps=config.train.steps,
            evaluate_every=config.train.evaluate_every,
            saves=lambda n: n % config.train.checkpoint_every == 0 or n == stable,
            should_stop=stop,
            owes_evaluation=not evaluated,
        )
    return state, report.history


def check(config: ConfigDict) -> Experiment:
    """The experiment, with the vocabulary that is asked for; refuses what can be refused before any data is read."""
    experiment = make_experiment(config, 256 if config.data.tokenizer == "bytes" else config.data.vocab_size)
    warn_if_short(config.optimizer, config.train.steps)
    return experiment


def _attention(experiment: Experiment, errors: dict[str, float]) -> dict[str, Any]:
    """What the passport says of attention: the core asked for, the one that runs, why not a faster one, and how far it
    is from the reference.
    """
    refused = {name: f"{no.reason}; {no.fix}" for name, no in experiment.attention.refused.items()}
    asked = experiment.config.model.core
    return {"asked": asked, "core": experiment.attention.name, "refused": refused, "self_check": errors}


def _checkpoints(
    folder: RunFolder, experiment: Experiment, errors: dict[str, float], data: Data, windows: int
) -> Checkpoints:
    """The run's checkpoints, which keep copies of what is written here of the run; `windows` measure it."""
    config = experiment.config
    measured = {"windows": windows, "of": len(data.windows("validation"))}
    about = passport(config, data.described(), _attention(experiment, errors)) | {"evaluation": measured}
    folder.write_passport(about)
    folder.write("baselines.json", known_baselines(data))
    folder.write_with("tokenizer.json", data.tokenizer.save)
    return Checkpoints(
        folder.path / "checkpoints",
        config.train.keep_last,
        config.train.keep_best,
        f"val/loss of {windows} windows",
        folder.copies(),
        decay_start(config.optimizer, config.train.steps),
    )


def _begin(experiment: Experiment, checkpoints: Checkpoints | None) -> tuple[State, int, bool]:
    """The state to start from, the number of batches it has seen, and whether it was evaluated if that was due."""
    found = None
    if checkpoints is not None:
        found = checkpoints.restore(experiment.abstract, extension(checkpoints.folder.parent, experiment.config))
    if found is None:
        return experiment.make_state(), 0, True
    state, extra, _ = found
    return state, extra["batches"], extra["evaluated"]


def _report(experiment: Experiment, folder: RunFolder | None, start: int) -> Report:
    config, seeds = experiment.config, experiment.config.train.seeds
    return Report(
        None if folder is None else folder.path,
        config.train.steps,
        start=start,
        log_every=config.train.log_every,
        tokens_per_step=config.data.batch_size * config.data.length * seeds,
        flops_per_token=flops_per_token(experiment.model_config),
        rate=machine_rate(config.model.dtype),
    )


def main(argv: Sequence[str]) -> None:
    """Trains, or goes on with, the run of a folder, and tells how it ended."""
    parser = cli.make_parser("train", __doc__ or "")
    parser.add_argument("--extend", action="store_true", help="let a run go on to more train.steps than it began with")
    parser.add_argument("--allow_overlap", action="store_true", help="let validation text be in the train split, too")
    parser.add_argument("--profile_steps", default="", metavar="10:13", help="trace these steps for xprof")
    hosts.add_flags(parser)
    flags, overrides = cli.parse(parser, argv)
    config = load(flags.config, **overrides)
    command = f"python -m launch.train {shlex.join(argv)}"
    free = {"extend": flags.extend, "profile_steps": flags.profile_steps, "allow_overlap": flags.allow_overlap}
    with hosts.joined(flags), stop_signals(command=True) as stop:
        state, _ = fit(config, flags.workdir, **free)
        stop.doing("the closing words (all is saved)")
        closing = summarize(config, state, Path(flags.workdir), command)
        with output.unheard():
            cli.say(closing)


if __name__ == "__main__":
    cli.run(main)
