"""Runs whose numbers mean something else: none of them goes on, is evaluated or sampled."""

import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.errors import UserError

# Raised by whoever changes what a run's config, parameters or batches mean: first values, the order of the data, places
# of masks, frequencies of positions, names of keys or parameters. tests/train/run/test_format.py notices.
#   1: all runs that carry no number.
#   2: first values are keyed by path and layer; seed i of a population reads its own order (data.order).
FORMAT = 2


def check_format(passport: Mapping[str, Any], folder: Path) -> None:
    """Refuses a run that another format made, by its passport, before anything else of it is read.

    Raises:
        UserError: names the commit that made it.
    """
    found = passport.get("format", 1)
    if found != FORMAT:
        commit = (passport.get("git") or {}).get("commit", "an unknown commit")
        raise UserError(
            f"--workdir={folder} holds a run of format {found}, made by {commit}, and this code is of format {FORMAT}, "
            "in which the same numbers mean something else: go back to that commit, or give another --workdir."
        )


@functools.cache
def git_state() -> dict[str, Any] | None:
    """Commit of this code, and whether files differ from it; None where it is not a git checkout."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if commit is None else {"commit": commit, "changed": bool(changed)}
