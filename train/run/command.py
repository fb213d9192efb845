"""Commands that are printed for the user: by the interpreter that runs, as they are typed where the user stands."""

import os
import shlex
import shutil
import sys
from pathlib import Path


def command(verb: str, *words: str) -> str:
    """The line that a shell takes for `launch.<verb>` with these words."""
    return " ".join([interpreter(), "-m", f"launch.{verb}", *map(_quoted, words)])


def interpreter() -> str:
    """The shortest name by which a shell in this folder starts this Python: below the folder, found as `python`, or the
    whole path.
    """
    own = Path(sys.executable)
    found = shutil.which("python")
    if own.is_relative_to(Path.cwd()):
        name = os.path.join("." if own.parent == Path.cwd() else "", own.relative_to(Path.cwd()))
    # By its folder, too: the interpreters of two virtual environments are links to one file.
    elif found and Path(found).parent == own.parent and Path(found).samefile(own):
        name = "python"
    else:
        name = str(own)
    return shlex.quote(name)


def _quoted(word: str) -> str:
    """A word for a shell, of which only the value of a flag is quoted where it must be."""
    flag, equals, value = word.partition("=")
    if equals and flag == shlex.quote(flag):
        return f"{flag}={shlex.quote(value)}"
    return shlex.quote(word)
