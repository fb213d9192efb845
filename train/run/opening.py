"""Opening a run: what it writes of itself, the state that it begins or goes on with, and what shows it."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import jax

from train.attention import Errors, described, said
from train.data import Data, Rows
from train.devices.machine import machine_rate
from train.devices.together import agree, compiled_together
from train.experiment import Experiment
from train.flops import flops_per_token
from train.run import extension
from train.run.bucket.address import checkpoints_of
from train.run.checkpoints import Checkpoints
from train.run.files.json_files import read_lines
from train.run.folder import RunFolder, passport
from train.run.report import Report
from train.schedules import decay_start
from train.state import State


@dataclasses.dataclass(frozen=True)
class Opened:
    """A run that is ready to learn: its state after `start` updates, and what takes and shows what it does.

    `evaluated`: the state was evaluated, if that was due; `windows`: on how many the next ones are. `stable` is the
    last step before a wsd schedule's decay, whose checkpoint is kept. A notebook's run has no checkpoints. `publish`
    is called before each save.
    """

    state: State
    start: int
    evaluated: bool
    windows: int
    stable: int | None
    checkpoints: Checkpoints | None
    report: Report
    publish: Callable[[], None]


def open_run(
    stack: ExitStack,
    experiment: Experiment,
    folder: RunFolder | None,
    data: Data,
    rows: Rows,
    validation: Rows,
    errors: Errors,
    baselines: Mapping[str, float],
) -> Opened:
    """Writes passport, baselines and tokenizer, and restores the newest state; `stack` closes what is opened here.

    rows, validation: what it learns from, and what measures it. errors: how far its attention is from the reference.
    Runs inside of `placed(mesh, rules)`.

    Raises:
        UserError: what is in the folder cannot be gone on from.
    """
    config = experiment.config
    attention = described(config.model, experiment.model_config, experiment.attention, errors)
    windows = len(validation)
    stable, checkpoints, found = decay_start(config.optimizer, config.train.steps), None, None
    if folder is not None:
        measured = {"windows": windows, "of": len(experiment.task.measured(data))}
        folder.write_passport(passport(config, data.described(), attention) | {"evaluation": measured})
        folder.write("baselines.json", baselines)
        folder.write_with("tokenizer.json", data.tokenizer.save)
        keep, metric = (config.train.keep_last, config.train.keep_best), f"val/loss of {windows} windows"
        checkpoints = Checkpoints(checkpoints_of(folder.path), *keep, metric, folder.copies(), stable)
        stack.enter_context(checkpoints)
        found = extension.restore(checkpoints, experiment.abstract, folder.path, config)
    first = experiment.make_state
    state, extra, _ = found or (compiled_together(first.func)(*first.args), extension.extra(0, config), 0)
    start, flops, rate = extra["batches"], flops_per_token(experiment.model_config), machine_rate(config.model.dtype)
    evaluated = folder is None or start == 0 or _is_evaluated(folder.path, start)
    report = Report(
        None if folder is None else folder.path,
        config.train.steps,
        start=start,
        log_every=config.train.log_every,
        tokens_per_step=config.data.batch_size * config.data.length * config.train.seeds,
        flops_per_token=flops,
        rate=rate,
    )
    stack.enter_context(report)
    cache = jax.config.values["jax_compilation_cache_dir"]
    report.say(f"resumed from step {start}" if start else f"compiled programs are kept in {cache}")
    report.say(f"learns from {rows.told()}; is measured on {validation.told()}")
    _say_layers(report, experiment)
    for line in said(experiment.attention, errors):
        report.say(line)
    if stable:
        report.say(f"wsd decays after step {stable}: its checkpoint is kept, and --extend goes on smoothly from there")

    def publish() -> None:
        report.flush()
        if folder is not None:
            folder.publish()

    return Opened(state, start, evaluated, windows, stable, checkpoints, report, publish)


def _is_evaluated(folder: Path, step: int) -> bool:
    """Whether metrics.jsonl holds a score of the step; one that was due and is missing is made up for."""
    lines, _ = read_lines(folder / "metrics.jsonl")
    found = any(line["step"] == step and "val/loss" in line for line in lines)
    agree(f"what is seen of {folder / 'metrics.jsonl'}", str(found))
    return found


def _say_layers(report: Report, experiment: Experiment) -> None:
    """Says, where layers differ, how often their cycle repeats, and what remains."""
    stacks = {site.stack: name for name, site in experiment.model_config.sites.items() if not site.own}
    for stack, name in stacks.items():
        turns, rest = divmod(stack.num_layers, stack.unit)
        if stack.unit > 1:
            remain = f", and the first {rest} of it once more" if rest else ""
            where = f" of the {name}" * (len(stacks) > 1)
            report.say(f"{stack.num_layers} layers{where}: a cycle of {stack.unit}, {turns} times{remain}")
