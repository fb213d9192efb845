"""What a config may ask for on any devices: numbers in their ranges, and a mask that leaves something to learn."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from model.attention import parse_mask
from model.attention.masks.looking import looks_ahead, shows
from model.cycles import read_cycle
from model.errors import Range, UserError, check_ranges
from model.families.table import FAMILIES
from model.layers import choose
from train.data import check_data
from train.data.order import ORDERS
from train.decay import parse_decayed
from train.optimizers import OPTIMIZERS
from train.optimizers import RANGES as OPTIMIZER
from train.schedules import RANGES as SCHEDULE
from train.schedules import SCHEDULES
from train.tasks.table import make_task

TRAIN = {
    "steps": Range(1),
    "accumulate": Range(1),
    "seeds": Range(1, 2**16),
    "dropout_seed": Range(-1, 2**32 - 1),
    "label_smoothing": Range(0, 1, below=True),
    "z_loss": Range(0, 1e6),
    "log_every": Range(1),
    "evaluate_every": Range(1),
    "evaluate_windows": Range(0),
    "checkpoint_every": Range(1),
    "keep_last": Range(1),
    "keep_best": Range(0),
}


def check_config(config: ConfigDict) -> None:
    """Refuses what cannot be trained, whatever the devices.

    Raises:
        UserError: a number outside of its range, a name that is not in its table, micro-batches that do not divide the
            batch, a family that cannot learn the task, or a mask that hides all or shows what is to be predicted.
    """
    check_ranges("config.train", config.train, TRAIN)
    for key, bits in (("train", 32), ("data", 63)):
        seed, largest = config[key].seed, 2**bits - config.train.seeds
        if not 0 <= seed <= largest:
            raise UserError(
                f"--config.{key}.seed={seed} must be between 0 and {largest}, so that every seed has {bits} bits."
            )
    check_data(config.data)
    check_ranges("config.optimizer", config.optimizer, OPTIMIZER | SCHEDULE)
    choose(OPTIMIZERS, config.optimizer.name, "optimizer.name")
    choose(SCHEDULES, config.optimizer.schedule, "optimizer.schedule")
    parse_decayed(config.optimizer.decayed)
    choose(ORDERS, config.data.order, "data.order")
    rows, parts = config.data.batch_size, config.train.accumulate
    if rows % parts:
        raise UserError(f"--config.train.accumulate={parts} does not divide --config.data.batch_size={rows}.")
    task, length = make_task(config), config.data.length
    if task.HEAD not in choose(FAMILIES, config.family, "family").HEADS:
        fit = ", ".join(name for name, kind in FAMILIES.items() if task.HEAD in kind.HEADS)
        raise UserError(f"--config.family={config.family!r} cannot learn --config.task={config.task!r}; take {fit}.")
    for text in read_cycle(config.model.mask, "model.mask").values if "mask" in config.model else ():
        mask = parse_mask(text)
        if not shows(mask, length):
            raise UserError(f"--config.model.mask={text!r} hides every token from every other; write 'causal'.")
        if not task.LOOKS_AHEAD and looks_ahead(mask, length):
            raise UserError(
                f"--config.model.mask={text!r} shows tokens what they are to predict; write 'causal & ...'."
            )


def doubts(config: ConfigDict, used: int, there: int) -> Iterator[str]:
    """What may not have been meant, of a run on so many of the devices that are there; no reason to refuse it."""
    if used < there:
        yield f"the mesh of {used} leaves {there - used} of {there} devices idle: --config.mesh.* divides them."
    warmup, steps = config.optimizer.warmup_steps, config.train.steps
    if warmup >= steps:
        yield (
            f"--config.optimizer.warmup_steps={warmup} is not below --config.train.steps={steps}: the run ends in its"
            " warm-up."
        )
