"""Measures a run's newest checkpoint on its text: `.venv/bin/python -m launch.evaluate --workdir=runs/try`."""

from collections.abc import Sequence

import jax
from flax import nnx

from eval.evaluator import Value
from eval.evaluators import MEASURED, Evaluators, compare
from eval.runs import Run, open_run
from eval.summary import last_score
from launch import cli, hosts
from model.errors import UserError
from train.devices.together import compiled_together
from train.run.files.learned import PLACES


def parser() -> cli.Parser:
    """The flags of this command."""
    made = cli.make_parser("evaluate", __doc__ or "", config=False)
    hosts.add_flags(made)
    return made


def main(argv: Sequence[str]) -> None:
    """Prints loss, perplexity and bits per byte, beside those of n-grams and compressors on the same text, and loss by
    position.
    """
    flags, overrides = cli.parse(parser(), argv)
    if others := [key for key in overrides if key not in PLACES]:
        raise UserError(
            f"--config.{others[0]}: a run keeps the config it was trained with, but for where its text lies "
            f"({', '.join(PLACES)}); leave this out."
        )
    if "data.name" in overrides:  # which only counts without a path
        overrides = {"data.path": ""} | overrides
    with hosts.joined(flags):
        run = open_run(flags.workdir, overrides)
        cli.say(_report(run, flags.workdir))


def _report(run: Run, workdir: str) -> str:
    values, rows = evaluate(run), run.experiment.task.measured(run.data)
    lines = []
    if run.config.train.seeds > 1:
        lines.append(f"of the {run.config.train.seeds} seeds, the first: {run.config.train.seed}")
    lines.append(f"{workdir}, step {run.step}, {rows.told()}:")
    own = last_score(run.folder, run.step)
    if own is not None and own["val/windows"] < len(rows):
        few = f"of {own['val/windows']:.0f} (--config.train.evaluate_windows)"
        lines.append(f"of all {len(rows)} windows: these scores do not compare with the run's own, {few}")
    lines += [f"  {name:<24} {value:.4f}" for name, value in values.items()]
    task, measured = run.config.task, MEASURED[run.config.task]
    baselines = measured.baselines(run.experiment.task, run.data)
    return "\n".join([*lines, compare(task, float(values[measured.score]), baselines)])


def evaluate(run: Run) -> dict[str, Value]:
    """Returns what every evaluator measures of a run's validation text: val/loss, val/bits_per_byte, ...

    By one device; on several processes, all of which must call this, by all of their devices.
    """
    here = run.experiment
    graphdef, params = nnx.split(run.model)
    sums, rows = compiled_together(jax.jit(here.task.sums(graphdef))), here.config.data.batch_size
    with run.placed():
        validation = here.task.measured(run.data)
        return dict(Evaluators(run.config.task, sums, validation, rows, here.place, here.rows)(params))


if __name__ == "__main__":
    cli.run(main)
