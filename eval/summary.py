"""How a run ended: its score beside n-grams and compressors, a sample, a picture, and where everything is."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from eval.attention_picture import attention_figure
from eval.evaluators import MEASURED, compare
from eval.generation import generate
from eval.prompting import WRITING
from eval.runs import Run, open_run
from model.errors import UserError
from train.devices.placing import on_host
from train.run.bucket.address import called
from train.run.bucket.run import published
from train.run.command import command
from train.run.files.json_files import read_lines
from train.run.files.mending import read_kept
from train.state import State

SAMPLE_TOKENS = 96


def updates(state: State) -> int:
    """How many updates a state has seen, or each of its seeds."""
    return int(np.ravel(on_host(state.step))[0])


def is_whole(config: ConfigDict, state: State, history: Sequence[Mapping[str, Any]], told: bool) -> bool:
    """Whether a run has all of its updates, and, if it was told to stop meanwhile, has evaluated the last, too."""
    step, steps = updates(state), config.train.steps
    return step >= steps and (not told or any(line["step"] == step and "val/loss" in line for line in history))


def summarize(config: ConfigDict, state: State, workdir: str, again: str, more: str) -> str:
    """The closing words of a run; writes attention.png into its folder. All of its processes must call this.

    again, more: the commands that go on with it, and to more steps.
    """
    step = updates(state)
    if step < config.train.steps:
        return f"stopped at step {step} of {config.train.steps}; the same command goes on from there:\n  {again}"
    run = open_run(workdir)
    prompt = config.train.prompt
    try:
        sample = _sample(run, prompt)
    except UserError as error:  # the run itself has ended well
        sample, prompt = f"no sample of --config.train.prompt: {error}", "TEXT"
    parts = [_comparison(config.task, run.folder, step, again), sample, _places(run, prompt, more)]
    return "\n\n".join(part for part in parts if part)


def _comparison(task: str, folder: Path, step: int, again: str) -> str:
    score = last_score(folder, step)
    if score is None or score["step"] != step:  # told to stop in the last evaluation
        return f"step {step} is not evaluated yet, which this makes up for:\n  {again}"
    table = compare(task, float(np.mean(score[MEASURED[task].score])), read_kept(folder, "baselines.json"))
    windows, of = int(score["val/windows"]), read_kept(folder, "passport.json")["evaluation"]["of"]
    if windows == of:
        return table
    few = f"this model is measured on {windows} of {of} rows, the others on all of them"
    return f"{table}\n{few}; of all of it:\n  {command('evaluate', f'--workdir={called(folder)}')}"


def last_score(folder: Path, step: int) -> dict[str, Any] | None:
    """The line of metrics.jsonl of the last evaluation up to a step, with the number of windows of which it is."""
    lines, _ = read_lines(folder / "metrics.jsonl")
    scores = [line for line in lines if line["step"] <= step and {"val/loss", "val/windows"} <= line.keys()]
    return scores[-1] if scores else None


def _sample(run: Run, prompt: str) -> str:
    if not prompt or not _writes(run):
        return ""
    of_pairs = "target" in run.model.config.HEADS
    if of_pairs or run.model.config.sites:
        with run.placed():
            figure = attention_figure(run.model, run.tokenizer, prompt)
        if jax.process_index() == 0:
            figure.savefig(run.folder / "attention.png", dpi=120)
            published(run.folder / "attention.png")
    if of_pairs:
        with run.placed():
            return f"{prompt}\n> {generate(run.model, run.tokenizer, prompt, temperature=0.0)[0]}"
    room = run.model.config.max_length - len(run.tokenizer.encode(prompt))
    most = min(SAMPLE_TOKENS, room)
    with run.placed():
        text = generate(run.model, run.tokenizer, prompt, max_new_tokens=most, temperature=0.8, top_p=0.95)[0]
    return f"sample (temperature 0.8, top_p 0.95):\n{prompt}{text}"


def _places(run: Run, prompt: str, more: str) -> str:
    folder, prompt = called(run.folder), prompt or "def main("
    rows = {
        "everything": f"{folder}",
        "curves": f"{folder}/metrics.jsonl, tensorboard --logdir={shlex.quote(f'{folder}/tensorboard')}",
        "attention": f"{folder}/attention.png" if (run.folder / "attention.png").exists() else "",
        "more text": command("generate", f"--workdir={folder}", f"--prompt={prompt}") if _writes(run) else "",
        "go on": more,
    }
    return "\n".join(f"{name:<11} {text}" for name, text in rows.items() if text)


def _writes(run: Run) -> bool:
    return bool({*WRITING} & {*run.model.config.HEADS})
