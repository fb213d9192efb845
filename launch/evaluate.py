"""Measures a run's newest checkpoint on its text: `.venv/bin/python -m launch.evaluate --workdir=runs/try`.

Where a task has answers to examples (classes, tags, ...) it also writes predictions-STEP.jsonl into the run's folder: a
line for each example of the validation split, in their order, with the columns of the data, `predicted` and `right`.
Texts that are written are the likeliest token each time, or the best of a beam: `--beam=4`, whose predictions lie in
predictions-STEP-beam4.jsonl.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from eval.evaluator import Value
from eval.evaluators import MEASURED, Evaluators, compare
from eval.runs import Run, open_run
from eval.summary import last_score
from launch import beams, cli, hosts
from model.beam import Beam
from model.errors import UserError
from train.data import Rows
from train.devices.together import compiled_together
from train.run.bucket.run import published
from train.run.files.json_files import write_lines
from train.run.files.learned import PLACES


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("evaluate", __doc__ or "", config=False)
    beams.add_flags(made)
    hosts.add_flags(made)
    return made


def main(argv: Sequence[str]) -> None:
    """Prints what is measured, such as loss, perplexity and bits per byte, beside what rules without a model reach on
    the same rows; writes the predictions.
    """
    flags, overrides = cli.parse(parser(), argv)
    if others := [key for key in overrides if key not in PLACES]:
        raise UserError(
            f"--config.{others[0]}: a run keeps the config it was trained with, but for where its text lies "
            f"({', '.join(PLACES)}); leave this out."
        )
    if "data.name" in overrides:  # which only counts without a path
        overrides = {"data.path": ""} | overrides
    beam = beams.asked_for(flags)
    with hosts.joined(flags):
        run = open_run(flags.workdir, overrides)
        if beam and not run.experiment.task.WRITES:
            raise UserError(
                f"--beam={beam.size}: {run.config.task} is scored by no text that is written; leave it out."
            )
        values, records = answered(run, beam=beam)
        cli.say(_report(run, flags.workdir, values, beam))
        for split, rows in run.experiment.task.reported(run.data).items():
            found, _ = answered(run, rows, beam)
            lines = [f"  {name.replace('val', split, 1):<24} {value:.4f}" for name, value in found.items()]
            cli.say("\n".join([f"{split}, which counts for nothing, {rows.told()}:", *lines]))
        cli.say(_write(run, records, beam))


def _report(run: Run, workdir: str, values: dict[str, Value], beam: Beam | None) -> str:
    rows = run.experiment.task.measured(run.data)
    lines = []
    if run.config.train.seeds > 1:
        lines.append(f"of the {run.config.train.seeds} seeds, the first: {run.config.train.seed}")
    lines.append(f"{workdir}, step {run.step}, {rows.told()}:")
    if beam:
        lines.append(f"written by a beam: {beam.size} hypotheses, form {beam.form}, alpha {beam.alpha:g}")
    own = last_score(run.folder, run.step)
    if own is not None and own["val/windows"] < len(rows):
        few = f"of {own['val/windows']:.0f} (--config.train.evaluate_windows)"
        lines.append(f"of all {len(rows)} rows: these scores do not compare with the run's own, {few}")
    lines += [f"  {name:<24} {value:.4f}" for name, value in values.items()]
    task, measured = run.config.task, MEASURED[run.config.task]
    lines += [f"  {name}: {text}" for name, text in measured.notes().items()]
    baselines = measured.baselines(run.experiment.task, run.data)
    return "\n".join([*lines, compare(task, float(values[measured.score]), baselines)])


def _write(run: Run, records: list[dict[str, Any]], beam: Beam | None) -> str:
    """Writes the predictions, on the first process only; what there is to say of them.

    Raises:
        UserError: they cannot be written.
    """
    if not records:
        return f"predictions: none, as what {run.config.task} foretells are tokens of a text"
    written_by = f"-beam{beam.size}" if beam else ""
    file = run.folder / f"predictions-{run.step}{written_by}.jsonl"
    if jax.process_index() == 0:
        try:
            write_lines(file, records)
        except OSError as error:
            raise UserError(
                f"{file} cannot be written ({error.strerror}): the scores are above; let this command write there, or "
                "give --workdir a copy."
            ) from None
    return f"predictions: {published(file) if jax.process_index() == 0 else file}"


def evaluate(run: Run) -> dict[str, Value]:
    """Returns what every evaluator measures of a run's validation text: val/loss, val/bits_per_byte, ..."""
    return answered(run)[0]


def answered(
    run: Run, measured: Rows | None = None, beam: Beam | None = None
) -> tuple[dict[str, Value], list[dict[str, Any]]]:
    """Returns the same, and a record of each example, if the task has answers to such: as `eval.metrics.records`; of
    other rows, if they are given; of what is written by a beam, if there is one, instead of the likeliest tokens.

    By all devices; of several processes all must call this.
    """
    here = run.experiment
    graphdef, params = nnx.split(run.model)
    how = {"beam": beam} if beam else {}
    sums, rows = compiled_together(jax.jit(here.task.sums(graphdef, **how))), here.config.data.batch_size
    with run.placed():
        validation = here.task.measured(run.data) if measured is None else measured
        models = {run.config.train.seed: run.model}
        given = sums, validation, rows, here.place, here.rows, lambda params: models, here.task
        return Evaluators(run.config.task, *given).answered(params)


if __name__ == "__main__":
    cli.run(main)
