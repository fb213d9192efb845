"""The committed tree of this code, which is what runs elsewhere."""

import subprocess
from pathlib import Path

from model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Its name.

    Raises:
        UserError: this is no git checkout, or tracked files differ from the commit.
    """
    found = _git("rev-parse", "HEAD")
    if changed := _git("status", "--porcelain", "--untracked-files=no"):
        first = changed.splitlines()[0].strip().split()[-1]
        raise UserError(f"{first} differs from the commit, and the pods run what is committed: commit it first.")
    return found


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{ROOT} is no git checkout, of which --bucket would hold the tree: give --image instead.")
    return done.stdout.strip()
