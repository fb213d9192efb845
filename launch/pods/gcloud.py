"""`gcloud`, started without a shell: its JSON as values, its failures as one sentence each."""

import contextlib
import dataclasses
import re
import shlex
import subprocess
from collections.abc import Sequence
from typing import Any

from launch import cli
from model.errors import UserError
from train.run.files.json_files import loads

_PATIENCE_SECONDS = 20  # that a gcloud has to end after Ctrl-C


class NotFound(UserError):
    """There is nothing of that name."""


class Unclear(UserError):
    """It failed in words that we do not know, and may have done what it was asked for."""


# What gcloud says, and what we make of it: the first that is found. `{0}` is what the brackets hold.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"active account selected|valid credentials|auth login|[Rr]eauthentication|refreshing your current auth",
        "gcloud is not logged in: run gcloud auth login, then the same command.",
    ),
    (r"ssh-add ([^\"]+)\"", "the SSH key of gcloud is not in the agent, without which several hosts ask: ssh-add {0}."),
    (
        r"(Quota limit '[^']*'[^\n]*?|[Qq]uota [^\n]*?exceeded[^\n]*?)\.?\s*$",
        "the quota is too small ({0}): ask for more of it, or take another --zone or --capacity.",
    ),
    (
        r"no more capacity|Insufficient (?:reserved )?capacity",
        "there is no capacity left in this zone: take another --zone or --capacity.",
    ),
    (r"ALREADY_EXISTS|already exists", "the name is taken: give another --name."),
    (r"(PERMISSION_DENIED[^\n]*|[Pp]ermission '[^']*' denied[^\n]*?)\.?\s*$", "the account may not do this: {0}."),
    (r"has state \"(\w+)\"|terminal state \"(\w+)\"", "the machine is {0}: see launch.pod status."),
)


def meaning(text: str) -> UserError:
    """What gcloud wrote on its standard error, as one sentence."""
    if re.search(r"NOT_FOUND|was not found|could not be found", text):
        return NotFound("there is nothing of that name in this zone and project.")
    for pattern, sentence in _MEANINGS:
        if found := re.search(pattern, text, re.MULTILINE):
            return UserError(sentence.format(*filter(None, found.groups())))
    lines = [line for line in text.splitlines() if line.strip()] or ["it said nothing"]
    said = next((line for line in lines if "ERROR" in line), lines[-1])
    return Unclear(f"gcloud failed: {said.strip().rstrip('.')}.")


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a gcloud ended: its exit status, and what it wrote."""

    status: int
    out: str
    err: str


def start(words: Sequence[str], *, shown: bool = False, apart: bool = False) -> Answer:
    """Runs `gcloud` with these words. `shown`: its output goes to ours; `apart`: Ctrl-C does not reach it.

    Raises:
        UserError: there is no gcloud.
    """
    pipe = None if shown else subprocess.PIPE
    try:
        # A group of its own does not get the terminal's Ctrl-C; nothing is read from the terminal.
        child = subprocess.Popen(
            ["gcloud", *words],
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            text=True,
            errors="replace",
            process_group=0 if apart else None,
        )
    except FileNotFoundError as error:
        raise UserError(
            "there is no gcloud on the PATH: install the Google Cloud CLI, then gcloud auth login."
        ) from error
    with child:
        try:
            out, err = child.communicate()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=_PATIENCE_SECONDS)  # what it has asked for is then known there
            child.kill()
            raise
    return Answer(child.returncode, out or "", err or "")


def ask(words: Sequence[str]) -> Any:
    """What gcloud answers, from its JSON.

    Raises:
        NotFound: there is nothing of that name.
        UserError: it failed.
    """
    answer = start([*words, "--format=json", "--quiet"])
    if answer.status:
        raise meaning(answer.err)
    try:
        return loads(answer.out or "null")
    except ValueError as error:
        raise UserError(f"gcloud {' '.join(words[:4])} answered what is no JSON ({error}).") from error


@dataclasses.dataclass(frozen=True)
class Tpus:
    """The TPU machines of a zone and a project (empty: gcloud's own); `dry` shows what would change."""

    zone: str
    project: str = ""
    dry: bool = False

    def words(self, kind: str, verb: str, *words: str, alpha: bool = False) -> list[str]:
        """The words after `gcloud` for a verb of `queued-resources` or `tpu-vm`."""
        place = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return [*(["alpha"] if alpha else []), "compute", "tpus", kind, verb, *words, *place]

    def read(self, kind: str, verb: str, *words: str) -> Any:
        """What a verb answers that changes nothing; see `ask`."""
        return ask(self.words(kind, verb, *words))

    def change(self, words: Sequence[str], *, apart: bool = False) -> Answer:
        """Runs what changes something, or shows it."""
        words = [*words, "--quiet"]
        if self.dry:
            cli.say(shlex.join(["gcloud", *words]))
            return Answer(0, "", "")
        return start(words, apart=apart)

    def must_change(self, words: Sequence[str], *, apart: bool = False) -> None:
        """As `change`.

        Raises:
            UserError: it failed.
        """
        answer = self.change(words, apart=apart)
        if answer.status:
            raise meaning(answer.err)

    def check_login(self) -> str:
        """The project, where somebody is logged in; asks this machine only.

        Raises:
            UserError: nobody is, or there is no project.
        """
        core = (ask(["config", "list"]) or {}).get("core", {})
        if not core.get("account"):
            raise meaning("You do not currently have an active account selected.")
        if not (project := self.project or core.get("project", "")):
            raise UserError("gcloud has no project: give --project=ID.")
        return str(project)
