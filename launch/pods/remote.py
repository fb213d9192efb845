"""The machines' side: the code and its packages brought there, a run that belongs to them, its log and its results."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import cli
from launch.pods.gcloud import Answer, Tpus, meaning, start
from launch.pods.spec import NODE, Found
from model.errors import UserError

_LINES = 30  # of what hosts say when something fails
_UV = "uv>=0.13,<0.14"
# Bash, started as `bash -c SCRIPT heed WORDS...`: what the user gives is only ever "$1" and so on. Each says what it
# has done on a line of its own, heed-..., so that the hosts which did can be counted. A run lives where its process is
# in its folder: after a reboot another process may have its number.
_UNPACK = """set -e
mkdir -p "$HOME/heed/$1" && cd "$HOME/heed/$1"
if [ ! -e run.status ] && [ "/proc/$(cat run.pid 2>/dev/null)/cwd" -ef . ]; then echo heed-running; exit 0; fi
if [ -d .git ]; then git ls-files -z | xargs -0 rm -f; rm -rf .git; fi
tar -xzf "$HOME/heed-$1.tar.gz" && rm "$HOME/heed-$1.tar.gz"
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || python3 -m pip install --quiet --user "$3"
[ -x .venv/bin/python ] || uv venv --quiet --python "$2" .venv
for lock in requirements-build.txt requirements.txt; do
  uv pip install --quiet --python .venv/bin/python --no-build-isolation --require-hashes --requirement "$lock"
done
uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo heed-installed
"""
# A secret's value is never a word of a process: `export` is bash's own. The port is one that networks let through.
# An attempt is known by when it began: the one before has ended by then.
_START = """cd "$HOME/heed/$1" || exit 4
rm -f run.status
setsid nohup bash -c '
  (
    for name in $1; do
      value=$(gcloud secrets versions access latest --secret="$name") || exit 78
      export "$name=$value"
    done
    shift
    export JAX_COORDINATOR_PORT=8476 HEED_ATTEMPT=$(date +%s)
    exec "$@"
  )
  echo $? > run.status.new && mv run.status.new run.status
' heed "${@:2}" >> run.log 2>&1 < /dev/null &
echo $! > run.pid
echo heed-started
"""
# Again and again, for what has only just begun may not have its group yet.
_STOP = """cd "$HOME/heed/$1" && pid=$(cat run.pid) || exit 0
for i in $(seq 100); do
  [ "/proc/$pid/cwd" -ef . ] || exit 0
  kill -- "-$pid" 2>/dev/null
  sleep 0.1
done
kill -9 -- "-$pid"
"""
_STATE = """cd "$HOME/heed/$1" 2>/dev/null || { echo heed-state nothing; exit 0; }
if [ "/proc/$(cat run.pid 2>/dev/null)/cwd" -ef . ]; then echo heed-state running
elif [ -e run.status ]; then echo "heed-state ended with status $(cat run.status)"
elif [ ! -e run.pid ]; then echo heed-state not started
else echo heed-state lost; fi
"""
_LOGS = """cd "$HOME/heed/$1" 2>/dev/null && [ -e run.pid ] || { echo "nothing was started here yet" >&2; exit 4; }
exec tail -n +1 --pid="$(cat run.pid)" -F run.log"""


@dataclasses.dataclass(frozen=True)
class Machines:
    """All hosts of a resource's nodes."""

    tpus: Tpus
    name: str
    nodes: dict[str, int]  # hosts of each
    project: str = ""  # as Google calls it, even where it is gcloud's own

    @classmethod
    def of(cls, tpus: Tpus, found: Found) -> "Machines":
        """Those of a resource.

        Raises:
            UserError: it cannot be used now.
        """
        if not found.ready:
            raise UserError(
                f"--name={found.name} is {'+'.join(found.states)}, and all must be READY: launch.pod status."
            )
        counts = {node: len(told["networkEndpoints"]) for node, told in found.nodes.items() if told}
        return cls(tpus, found.name, counts, found.project)

    @property
    def hosts(self) -> int:
        """Of all nodes."""
        return sum(self.nodes.values())

    def _all(self, node: str) -> tuple[str, str]:
        # In one batch: gcloud takes 64 hosts at a time, of which the first would wait for the others.
        return "--worker=all", f"--batch-size={self.nodes[node]}"

    def _ssh(self, node: str, script: str, words: Sequence[str], *where: str) -> list[str]:
        line = shlex.join(["bash", "-c", script, "heed", self.name, *words])
        return self.tpus.words(NODE, "ssh", node, f"--command={line}", *where)

    def everywhere(self, script: str, *words: str) -> Answer:
        """Runs a script on every host, node after node; what all wrote, and the first status that is not 0."""
        answers = [self.tpus.change(self._ssh(node, script, words, *self._all(node))) for node in self.nodes]
        status = next((one.status for one in answers if one.status), 0)
        return Answer(status, "".join(one.out for one in answers), "".join(one.err for one in answers))

    def must(self, said: str, doing: str, script: str, *words: str) -> None:
        """As `everywhere`.

        Raises:
            UserError: not every host said that it did.
        """
        try:
            answer = self.everywhere(script, *words)
        except KeyboardInterrupt:
            if said == "heed-started":
                cli.say(f"stopped: the run of {self.name} is ended on the hosts that have begun it")
                self.everywhere(_STOP)
            raise
        if self.tpus.dry:
            return
        lines = [line.strip() for line in answer.out.splitlines()]
        if "heed-running" in lines:
            raise UserError(f"--name={self.name}: a run is still there: see launch.pod logs, or give another --name.")
        if (done := lines.count(said)) < self.hosts:
            if said == "heed-started":
                self.everywhere(_STOP)  # some of a run's processes would wait for the others
            cli.say("\n".join(answer.err.splitlines()[-_LINES:]))
            raise UserError(
                f"{doing} was done by {done} of {self.hosts} hosts of {self.name}, so the run was not started"
                f" ({str(meaning(answer.err)).rstrip('.')})."
            )

    def install(self, archive: Path) -> None:
        """Brings the code, Python and the locked packages to every host.

        Raises:
            UserError: not all of them could be reached, or have it.
        """
        for node in self.nodes:
            to = f"{node}:heed-{self.name}.tar.gz"
            self.tpus.must_change(self.tpus.words(NODE, "scp", str(archive), to, *self._all(node)))
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        self.must("heed-installed", "the installation", _UNPACK, version, _UV)

    def start(self, words: Sequence[str], secrets: Sequence[str]) -> None:
        """Starts `python -m WORDS...` on every host; it belongs to them, and goes on without us.

        Raises:
            UserError: it did not start on all of them, and runs on none.
        """
        argv = ["env", f"HEED_RUN={self.project}/{self.tpus.zone}/{self.name}", ".venv/bin/python", "-m", *words]
        self.must("heed-started", "the start", _START, " ".join(secrets), *argv)

    def states(self) -> list[str]:
        """How the run is on each host that answers: running, lost, `ended with status 0`, not started, or nothing."""
        asking = dataclasses.replace(self, tpus=dataclasses.replace(self.tpus, dry=False))
        lines = asking.everywhere(_STATE).out.splitlines()
        return [line.strip().removeprefix("heed-state ") for line in lines if line.startswith("heed-state ")]

    def logs(self, worker: int) -> int:
        """Shows a host's log from its beginning, and on while the run lives; gcloud's exit status."""
        first = next(iter(self.nodes))
        words = [*self._ssh(first, _LOGS, (), f"--worker={worker}"), "--quiet"]
        return self.tpus.change(words[:-1]).status if self.tpus.dry else start(words, shown=True).status

    def fetch(self, folder: str) -> None:
        """Copies a folder of the run's, such as runs/try, from the first host to the same place here.

        Raises:
            UserError: it cannot be such a folder, is here already, or is not there.
        """
        to = Path(folder)
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", folder, re.ASCII) or ".." in to.parts:
            raise UserError(f"--workdir={folder} must be a folder below the run's own, such as runs/try.")
        if to.exists():
            raise UserError(
                f"--workdir={folder} exists here: move it away first, for it would be mixed with the run's."
            )
        if not self.tpus.dry:
            to.parent.mkdir(parents=True, exist_ok=True)
        source = f"{next(iter(self.nodes))}:heed/{self.name}/{folder}"
        copy = self.tpus.words(NODE, "scp", source, str(to.parent), "--recurse", "--worker=0")
        self.tpus.must_change(copy)
        if not self.tpus.dry:
            running = (
                "; the run goes on, and what it writes from now on is not in it" if "running" in self.states() else ""
            )
            cli.say(f"{self.name}: {folder} is here{running}")
