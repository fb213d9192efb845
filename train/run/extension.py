"""More steps for a run that has begun: what becomes of its learning rate, and from where it goes on smoothly."""

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from train.run.checkpoints import DECAYED, Checkpoints, Restored
from train.run.files.json_files import free_name
from train.schedules import decay_start, make_schedule

log = logging.getLogger("heed")


def extra(step: int, config: ConfigDict) -> dict[str, int]:
    """What a checkpoint keeps besides the state: the batches that it has seen, and the steps that it was made for."""
    return {"batches": step, "steps": config.train.steps}


def _check_extra(found: dict[str, Any]) -> None:
    if not all(type(found[name]) is int for name in ("batches", "steps")):
        raise ValueError("its number of batches or of steps is no whole number")


def restore(checkpoints: Checkpoints, abstract: Any, folder: Path, config: ConfigDict) -> Restored | None:
    """The state to go on from: the newest, also where more steps are asked for than it was made for.

    A schedule that depends on the total changes abruptly then, which is said with both values. A wsd schedule does not,
    from before its decay began: then that step is returned, what the run wrote of later ones is kept beside, and it is,
    bit for bit, the longer run from there on.

    Raises:
        UserError: no step can be read, or it is of another model.
    """
    found = checkpoints.restore(abstract, check=_check_extra)
    if found is None or found[1]["steps"] == config.train.steps:
        return found
    before, stable = found[1]["steps"], decay_start(config.optimizer, found[1]["steps"])
    if stable is not None and found[2] > stable and stable in checkpoints.steps():
        _keep_metrics(folder)
        found = None  # the other state needs its memory
        found = checkpoints.restore(abstract, stable, _check_extra)
    if found is not None:
        _tell(found[2], before, config)
    return found


def _tell(step: int, before: int, config: ConfigDict) -> None:
    old, new = (float(make_schedule(config.optimizer, steps)(step)) for steps in (before, config.train.steps))
    name, total = config.optimizer.schedule, f"train.steps={before} -> {config.train.steps}"
    if math.isclose(old, new, rel_tol=1e-6):
        log.warning("--extend: the learning rate goes on at %.4g from step %d (%s, %s).", old, step, name, total)
        return
    log.warning(
        "--extend: the learning rate jumps from %.4g to %.4g at step %d, for %s depends on the total (%s);"
        " constant, inverse_sqrt and, from before its decay, wsd would go on smoothly.",
        old,
        new,
        step,
        name,
        total,
    )


def _keep_metrics(folder: Path) -> None:
    file = folder / "metrics.jsonl"
    if jax.process_index() == 0 and file.is_file():
        shutil.copyfile(file, free_name(file, DECAYED))
