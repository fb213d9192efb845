"""Trains a model: `.venv/bin/python -m launch.train --config=configs/gpt.py:quickstart --workdir=runs/try`.

From a notebook: `state, history = fit(config)`.
"""

import contextlib
from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from eval.evaluators import MEASURED, Evaluators
from eval.runs import bound
from eval.summary import is_whole, summarize
from launch import cli, hosts, output
from launch.configs import load
from train.attention import check_attention
from train.collapse import Watch
from train.data import eval_batches
from train.devices.machine import use_compilation_cache
from train.devices.memory import check_memory
from train.devices.together import agree, compiled_together
from train.experiment import Experiment, make_experiment
from train.limits import doubts
from train.loop import Values, train
from train.run.folder import RunFolder, shared_keys
from train.run.opening import open_run
from train.run.profiler import profiler
from train.run.session import Session
from train.run.signals import stop_signals
from train.sharding import placed
from train.state import State


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
    use_compilation_cache()
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_signals())
        experiment = check(config)
        check_memory(experiment)
        agree("--config", shared_keys(config))
        recorded = stack.enter_context(profiler(profile_steps, workdir))
        folder = stack.enter_context(RunFolder(workdir, config, extend=extend)) if workdir else None
        stop.begin("the tokenizer")
        tokenizer = folder.tokenizer() if folder else None
        data = experiment.task.open(config, tokenizer, allow_overlap=allow_overlap, while_waiting=stop.check)
        agree("the text of --config.data, and its tokens,", data.fingerprint)
        stop.begin("the tokens of the text")
        rows = experiment.task.rows(data)
        validation = experiment.task.measured(data, config.train.evaluate_windows)
        experiment = experiment.with_data(data)
        stack.enter_context(placed(experiment.mesh, experiment.rules))
        step, sums, place = compiled_together(experiment.step), compiled_together(experiment.sums), experiment.place
        stop.begin("the comparison of attention with its reference")
        key = jax.random.key(config.train.seed)
        errors = check_attention(experiment.model_config, experiment.attention, key)
        given = sums, validation, config.data.batch_size, place, experiment.rows, bound(config), experiment.task
        evaluate = Evaluators(config.task, *given)
        stop.begin("the baselines")
        baselines = MEASURED[config.task].baselines(experiment.task, data) if folder else {}
        watch = Watch(experiment, next(iter(eval_batches(validation, config.data.batch_size, experiment.rows))))
        stop.begin("the first state")
        opened = open_run(stack, experiment, folder, data, rows, validation, errors, baselines)
        for doubt in doubts(config, experiment.mesh.size, jax.device_count()):
            opened.report.say(doubt)
        stop.begin(f"the compilation of the step, and step {opened.start + 1}")
        state = train(
            step,
            opened.state,
            experiment.batches(rows, opened.start),
            Session(experiment, opened, evaluate, recorded, stop, watch),
            start=opened.start,
            steps=config.train.steps,
            evaluate_every=config.train.evaluate_every,
            saves=lambda step: step % config.train.checkpoint_every == 0 or step == opened.stable,
            should_stop=stop,
            owes_evaluation=not opened.evaluated,
        )
    return state, opened.report.history


def check(config: ConfigDict) -> Experiment:
    """The experiment, with the vocabulary that is asked for; refuses what can be refused before any data is read."""
    return make_experiment(config)


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("train", __doc__ or "")
    made.add_argument("--extend", action="store_true", help="let a run go on to more train.steps than it began with")
    made.add_argument("--allow_overlap", action="store_true", help="let validation text be in the train split, too")
    made.add_argument("--profile_steps", default="", metavar="10:13", help="trace these steps for xprof")
    hosts.add_flags(made)
    return made


def main(argv: Sequence[str]) -> int:
    """Trains, or goes on with, the run of a folder, and tells how it ended: by the status too, where it is to go on."""
    flags, overrides = cli.parse(parser(), argv)
    config = load(flags.config, **overrides)
    free = {"extend": flags.extend, "profile_steps": flags.profile_steps, "allow_overlap": flags.allow_overlap}
    with hosts.joined(flags), stop_signals(command=True) as stop:
        state, history = fit(config, flags.workdir, **free)
        stop.doing("the closing words (all is saved)")
        with output.unheard():
            cli.say(summarize(config, state, flags.workdir, *cli.again(parser(), flags, overrides)))
    return 0 if is_whole(config, state, history, stop.told) else hosts.AGAIN


if __name__ == "__main__":
    cli.run(main)
