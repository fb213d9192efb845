"""Measures a run's newest checkpoint on its validation text: `python -m launch.evaluate --workdir=runs/try`."""

from collections.abc import Sequence

import jax
from flax import nnx

from eval.baselines import known_baselines
from eval.likelihood import Likelihood, Value
from eval.runs import Run, open_run
from eval.summary import compare
from launch import cli
from model.errors import UserError
from train.run.folder import PLACES
from train.tasks.language_model import token_sums


def main(argv: Sequence[str]) -> None:
    """Prints loss, perplexity and bits per byte, beside those of n-grams and compressors on the same text."""
    flags, overrides = cli.parse(cli.make_parser("evaluate", __doc__ or "", config=False), argv)
    if others := [key for key in overrides if key not in PLACES]:
        raise UserError(
            f"--config.{others[0]}: a run keeps the config it was trained with, but for where its text lies "
            f"({', '.join(PLACES)}); leave this out."
        )
    if "data.name" in overrides:  # which only counts without a path
        overrides = {"data.path": ""} | overrides
    run = open_run(flags.workdir, overrides)
    values, windows = evaluate(run), run.data.windows("validation")
    if run.config.train.seeds > 1:
        print(f"of the {run.config.train.seeds} seeds, the first: {run.config.train.seed}")
    print(f"{flags.workdir}, step {run.step}, {windows.num_tokens} tokens, {windows.num_bytes} bytes:")
    if 0 < run.config.train.evaluate_windows < len(windows):
        few = f"--config.train.evaluate_windows={run.config.train.evaluate_windows}"
        print(f"of all {len(windows)} windows: these scores do not compare with the run's own, by {few}")
    for name, value in values.items():
        print(f"  {name:<18} {value:.4f}")
    print(compare(float(values["val/bits_per_byte"]), known_baselines(run.data)))


def evaluate(run: Run) -> dict[str, Value]:
    """Returns val/loss, val/perplexity and val/bits_per_byte of a run's validation text, all by one device."""
    graphdef, params = nnx.split(run.model)
    sums = jax.jit(token_sums(graphdef))
    return dict(Likelihood(sums, run.data.windows("validation"), run.config.data.batch_size)(params))


if __name__ == "__main__":
    cli.run(main)
