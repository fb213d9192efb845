"""Whether a disk holds a grid: the checkpoints of all programs that have not ended."""

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

import jax

from launch.ablation.plan import Plan, config_of, packs
from launch.train import check
from model.errors import UserError

_SPARE = 2**26  # bytes beside: metrics, events, pages, and the text's tokens


def check_disk(plan: Plan, folder: Path) -> None:
    """Refuses a grid whose checkpoints the disk of `folder` does not hold, beside what is there of it already.

    Raises:
        UserError: says how much there is, and how much is needed.
    """
    needed = sum(_bytes(plan, arm) for arm in plan.arms) + _SPARE
    there = sum(file.stat().st_size for file in folder.glob("store/*/run/checkpoints/**/*") if file.is_file())
    free = shutil.disk_usage(folder).free
    if needed > free + there:
        raise UserError(
            f"--workdir={folder}: the disk has {free / 1e9:.1f} GB free, and the checkpoints of this grid may take"
            f" {needed / 1e9:.1f} GB: make room, give another --workdir, or lower --config.train.keep_last and"
            " --config.train.keep_best."
        )


def _bytes(plan: Plan, arm: str) -> int:
    """Of all checkpoints of an arm: those of one seed times all seeds, and one more of each that is being written."""
    config = config_of(plan, arm)
    leaves = jax.tree.leaves(check(config).abstract)
    state = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return state * plan.runs(arm) * (config.train.keep_last + config.train.keep_best) + state * _largest(plan)


def _largest(plan: Plan) -> int:
    every: Iterable[tuple[int, ...]] = (plan.tune_seeds, plan.pilot_seeds, plan.seeds)
    return max(len(one) for seeds in every for one in packs(plan, seeds))
