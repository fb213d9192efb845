"""Runs whose numbers mean something else: none of them goes on, is evaluated or sampled."""

from pathlib import Path
from typing import Any

from model.errors import UserError
from train.run.bucket.address import called
from train.run.files.json_files import read_checked
from train.run.files.mending import newest_copy

# Raised by whoever changes what a run's config, parameters or batches mean: first values, the order of the data, places
# of masks, frequencies of positions, names of keys and parameters. tests/train/run/files/test_format.py notices.
#   1: all runs that carry no number.
#   2: first values are keyed by path and layer; each seed of a population reads its own order (data.order); rope_yarn
#      ramps over the number of the pair.
#   3: masks speak of places in documents, not in windows.
#   4: a config names its family; optimizers keep the numbers of layers by how many layers have them.
#   5: keys of optimizers (epsilon, decayed), and of what stands around attention.
#   6: dropout may have a seed of its own (train.dropout_seed).
#   7: a config names its task, which has keys of its own.
FORMAT = 7


def check_format(folder: Path) -> None:
    """Refuses a run of another format, or of none, before anything of it is interpreted; reads its passport alone.

    Raises:
        UserError: names the commit that made it; or the passport is lost.
    """
    passport = _passport(folder)
    if passport is None and not (folder / "checkpoints").is_dir():
        return  # no run
    if passport is None:
        raise UserError(
            f"--workdir={called(folder)} holds a run whose passport.json is lost, and no checkpoint keeps a copy of it,"
            f" so its format is unknown, and this code is of format {FORMAT}, which may give "
            "other meanings to keys and numbers: bring it back, or give another --workdir."
        )
    found, git = passport.get("format", 1), passport.get("git")
    if found == FORMAT:
        return
    commit = f"commit {git['commit']}" if isinstance(git, dict) and "commit" in git else "an unknown commit"
    raise UserError(
        f"--workdir={called(folder)} holds a run of format {found}, made by {commit}, and this code is of format "
        f"{FORMAT}, which gives other meanings to keys and numbers: go back to that commit, or give another --workdir."
    )


def _passport(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(read_checked(folder / "passport.json", _check_table))
    except ValueError:
        copy = newest_copy(folder, "passport.json")
        return None if copy is None else dict(copy[1])


def _check_table(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError("it holds no names")
