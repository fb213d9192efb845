"""More steps for a run that has begun: what becomes of its learning rate, and from where it goes on smoothly."""

import logging
import math
import shutil
from pathlib import Path

import jax
from ml_collections import ConfigDict

from train.run.json_files import free_name
from train.run.mending import newest_copy
from train.schedules import decay_start, make_schedule

log = logging.getLogger("heed")
PREFIX = "decayed"  # of what a run did after its decay began, once it goes on from before


def extension(folder: Path, config: ConfigDict) -> int | None:
    """The step to go on from where more steps are asked for than the newest checkpoint was made for; None: the newest.

    A schedule that depends on the total changes abruptly, which is said with both values. A wsd schedule does not, from
    before its decay began: then that step is returned, what the run wrote of later ones is kept beside, and it is, bit
    for bit, the longer run from there on.
    """
    found = newest_copy(folder, "config.json")
    if found is None or found[1]["train"]["steps"] == config.train.steps:
        return None
    step, before = found[0], found[1]["train"]["steps"]
    stable = decay_start(config.optimizer, before)
    goes_back = stable is not None and step > stable and (folder / f"checkpoints/{stable}").is_dir()
    if stable is not None and goes_back:
        step = stable
        _keep_metrics(folder)
    old, new = (float(make_schedule(config.optimizer, steps)(step)) for steps in (before, config.train.steps))
    name, total = config.optimizer.schedule, f"train.steps={before} -> {config.train.steps}"
    if math.isclose(old, new, rel_tol=1e-6):
        log.warning("--extend: the learning rate goes on at %.4g from step %d (%s, %s).", old, step, name, total)
    else:
        log.warning(
            "--extend: the learning rate jumps from %.4g to %.4g at step %d, for %s depends on the total (%s);"
            " constant, inverse_sqrt and, from before its decay, wsd would go on smoothly.",
            old,
            new,
            step,
            name,
            total,
        )
    return step if goes_back else None


def _keep_metrics(folder: Path) -> None:
    file = folder / "metrics.jsonl"
    if jax.process_index() == 0 and file.is_file():
        shutil.copyfile(file, free_name(file, PREFIX))
