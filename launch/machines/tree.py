"""The committed tree of this code, which is what runs elsewhere."""

import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from launch import cli
from model.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def commit() -> str:
    """Its name.

    Raises:
        UserError: this is no git checkout, or tracked files differ from the commit.
    """
    found = _git(ROOT, "rev-parse", "HEAD").strip()
    if changed := _changed():
        raise UserError(
            f"{changed[0][3:]} differs from the commit, and the pods run what is committed: commit it first."
        )
    return found


def pack(archive: Path, dirty: bool) -> None:
    """Writes the committed tree, with `dirty` all tracked changes too, and its commit, so that a passport names it.

    Raises:
        UserError: this is no checkout, or has changes and is not to be dirty.
    """
    changed = _changed()
    if changed and not dirty:
        raise UserError(
            f"{len(changed)} files differ from the commit, such as {changed[0][3:]}: commit them, or give --dirty."
        )
    for line in changed:
        cli.say(f"not committed, and sent: {line}")
    with tempfile.TemporaryDirectory() as folder:
        tree, index = Path(folder, "tree"), Path(folder, "index")
        tree.mkdir()
        _git(tree, "init", "--quiet")
        _git(tree, "fetch", "--quiet", "--depth=1", str(ROOT), "HEAD")
        _git(tree, "update-ref", "--no-deref", "HEAD", "FETCH_HEAD")
        _git(tree, "read-tree", "HEAD")
        (tree / ".git/FETCH_HEAD").unlink()  # names a folder of this machine
        content = "HEAD"
        if changed:  # in an index of our own: the user's stays as it is
            shutil.copy(ROOT / _git(ROOT, "rev-parse", "--git-path", "index").strip(), index)
            _git(ROOT, "add", "--update", index=index)
            content = _git(ROOT, "write-tree", index=index).strip()
        plain = Path(folder, "tree.tar")
        _git(ROOT, "archive", "--format=tar", f"--output={plain}", content)
        with tarfile.open(plain) as files:
            files.extractall(tree, filter="tar")
        with tarfile.open(archive, "w:gz") as sent:
            sent.add(tree, ".")


def _changed() -> list[str]:
    """Tracked files that differ from the commit, as git tells them."""
    return _git(ROOT, "status", "--porcelain", "--untracked-files=no").splitlines()


def _git(folder: Path, *words: str, index: Path | None = None) -> str:
    command, own = ["git", "-C", str(folder), *words], {"GIT_INDEX_FILE": str(index)} if index else {}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **own})
    except FileNotFoundError as error:
        raise UserError("there is no git on the PATH, which packs the committed code: install it.") from error
    if done.returncode:
        raise UserError(
            f"git {words[0]} failed ({done.stderr.strip()}): {ROOT}, of which the code is sent, must be a checkout."
        )
    return done.stdout
