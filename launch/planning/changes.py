"""What to change of a config that does not fit: each tried, none guessed."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from ml_collections import ConfigDict

from launch.planning.chips import Slice
from model.errors import UserError
from train.devices.mesh import AXES

Plan = Callable[[ConfigDict, Slice], dict[str, Any]]


def tries(config: ConfigDict, where: Slice) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes that may make a config fit, each with the flags that make it, from the one that costs least on."""
    size, accumulate = config.data.batch_size, config.train.accumulate
    rows = _ways(config, where)
    remat = config.model.get("remat")
    if remat is not None and remat != "full":
        yield _told({"model.remat": "full"})
    for parts in (2, 4, 8):
        if size % (accumulate * parts * rows) == 0:
            yield _told({"train.accumulate": accumulate * parts} | ({"model.remat": "full"} if remat else {}))
            break
    for tensor in (2, 4):
        if config.mesh.fsdp == -1 and config.model.get("num_heads", 0) % (tensor * config.mesh.tensor) == 0:
            yield _told({"mesh.tensor": tensor * config.mesh.tensor})
            break


def largest_batch(config: ConfigDict, where: Slice, plan: Plan, say: Callable[[str], None]) -> int | None:
    """The largest batch below the config's that fits, to an eighth, of those that the mesh and micro-batches divide;
    None where not even a row for each does.
    """
    least = _ways(config, where) * config.train.accumulate
    fits, too_large = 0, -(-config.data.batch_size // least)
    while too_large - fits > max(1, too_large // 8):
        rows = (fits + too_large) // 2
        found = changed(config, where, plan, {"data.batch_size": rows * least}, say)
        fits, too_large = (rows, too_large) if found and found["fits"] else (fits, rows)
    return fits * least or None


def _ways(config: ConfigDict, where: Slice) -> int:
    """Over how many devices the rows of a batch are spread."""
    sizes = {axis: config.mesh[axis] for axis in AXES}
    rest = where.devices // math.prod(size for size in sizes.values() if size != -1)
    return math.prod(rest if sizes[axis] == -1 else sizes[axis] for axis in ("replica", "fsdp"))


def changed(
    config: ConfigDict, where: Slice, plan: Plan, changes: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any] | None:
    """The plan of the config with some keys changed, told in a line; None where it is none that can be trained."""
    other = ConfigDict(config.to_dict())
    other.update_from_flattened_dict(changes)
    name = _told(changes)[0]
    try:
        found = plan(other, where)
    except UserError as error:
        say(f"  tried {name}: {error}")
        return None
    say(f"  tried {name}: needs {found['needed_bytes'] / 2**30:.2f} GiB, {'fits' if found['fits'] else 'does not fit'}")
    return found


def _told(changes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return " ".join(f"--config.{key}={value}" for key, value in changes.items()), changes
